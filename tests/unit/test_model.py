import re

from bridge.devices.model import (
    NAME_LIMIT,
    ContainerEdits,
    Device,
    DeviceNode,
    base_name,
    device_name,
    natural_key,
)

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def test_a_plain_path_keeps_its_name() -> None:
    assert device_name("crypto/acc0") == "crypto-acc0"


def test_what_does_not_survive_as_a_label_gets_a_hash() -> None:
    for text in ("dm-3", "ttyS0", "a_b", "x" * 200, "ä", "crypto-acc0"):
        name = device_name(text)
        assert LABEL.fullmatch(name)
        assert len(name) <= NAME_LIMIT
        assert re.search(r"[0-9a-f]{8}$", name)
    assert device_name("crypto-acc0") != device_name("crypto/acc0")


def test_natural_order_counts_digits_as_numbers() -> None:
    assert sorted(["acc10", "acc2", "acc", "b1"], key=natural_key) == ["acc", "acc2", "acc10", "b1"]


def test_an_exclusive_device_has_one_share_its_own_name() -> None:
    assert Device("g", "acc0", "k", ContainerEdits()).share_names() == ("acc0",)


def test_shares_lead_back_to_their_device() -> None:
    device = Device("g", "nx-gzip", "k", ContainerEdits(), shares=3)
    assert device.share_names() == ("nx-gzip--0", "nx-gzip--1", "nx-gzip--2")
    assert {base_name(share) for share in device.share_names()} == {"nx-gzip"}


def test_of_added_edits_the_later_environment_counts_and_nodes_are_not_repeated() -> None:
    node = DeviceNode("/dev/a", "/dev/a")
    total = ContainerEdits((node,), (("A", "1"), ("B", "1"))) + ContainerEdits((node,), (("A", "2"),))
    assert total.nodes == (node,)
    assert dict(total.env) == {"A": "2", "B": "1"}
