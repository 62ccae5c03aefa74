"""Properties of discovery over generated trees and groups."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.devices.inventory import merge, scan
from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import Found
from bridge.devices.model import NAME_LIMIT, ContainerEdits, Device, Inventory, device_name
from bridge.devices.schema import decode
from bridge.platform.roots import Roots

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
file_names = names.filter(lambda name: name not in (".", "..") and not name.startswith("."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@dataclass(frozen=True)
class Group:
    name: str
    kind: str
    options: object


@given(st.sets(paths, min_size=1, max_size=20))
def test_names_are_labels_and_differ_as_their_texts_do(texts: set[str]) -> None:
    found = {text: device_name(text) for text in texts}
    assert len(set(found.values())) == len(texts)
    assert all(LABEL.fullmatch(name) and len(name) <= NAME_LIMIT for name in found.values())
    assert found == {text: device_name(text) for text in texts}


@settings(max_examples=40, deadline=None)
@given(st.lists(file_names, min_size=2, max_size=12, unique=True), st.data())
def test_the_order_of_the_file_system_does_not_show(found: list[str], data: st.DataObject) -> None:
    assert _scanned(found) == _scanned(data.draw(st.permutations(found)))


def _scanned(created: list[str]) -> Inventory:
    group = Group("g", "device-node", decode(KINDS["device-node"].options, {"include": ["/dev/*"]}))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "dev").mkdir()
        for name in created:
            (root / "dev" / name).touch()
        return scan([group], Roots(root / "dev", root / "sys", "/generated"))


@st.composite
def findings(draw: st.DrawFn) -> dict[str, Found]:
    """Groups over a few parts, some of them one silicon under several names; exclusive and shared."""
    identity = draw(
        st.fixed_dictionaries({f"/dev/p{i}": st.sampled_from(["c4:1", "c4:2", "c4:3"]) for i in range(5)})
    )
    found: dict[str, Found] = {}
    for g in range(draw(st.integers(1, 4))):
        replicas = draw(st.integers(1, 5))
        chosen = draw(
            st.lists(st.sets(st.sampled_from(sorted(identity)), min_size=1, max_size=2), max_size=4)
        )
        devices = tuple(
            Device(
                f"g{g}",
                f"d{i}",
                "k",
                ContainerEdits(),
                parts=dict.fromkeys(sorted(parts), 1),
                shares=replicas,
            )
            for i, parts in enumerate(chosen)
        )
        used = {part for parts in chosen for part in parts}
        found[f"g{g}"] = Found(
            devices, dict.fromkeys(used, replicas), (), {part: identity[part] for part in used}
        )
    return found


def _fit(held: list[Device], inventory: Inventory) -> bool:
    return all(
        sum(device.parts.get(part, 0) for device in held) <= capacity
        for part, capacity in inventory.parts.items()
    )


@settings(max_examples=200)
@given(findings())
def test_h29_an_exclusive_device_never_fits_beside_another_that_shares_its_silicon(
    found: dict[str, Found],
) -> None:
    inventory = merge(found)
    identity = {part: name for findings in found.values() for part, name in findings.identities.items()}

    def silicon(device: Device) -> set[str]:
        return {identity[part] for part in device.parts}

    for one in inventory.devices:
        assert _fit([one], inventory)
        if not one.shareable:
            assert not _fit([one, one], inventory)
        for other in inventory.devices:
            touching = silicon(one) & silicon(other)
            if touching and not one.shareable:
                assert not _fit([one, other], inventory)
            if not touching:
                assert _fit([one, other], inventory)


@settings(max_examples=200)
@given(findings())
def test_every_share_of_a_device_fits_and_one_more_does_not(found: dict[str, Found]) -> None:
    inventory = merge(found)
    for device in inventory.devices:
        assert _fit([device] * device.shares, inventory)
        assert (
            1
            <= device.shares
            <= max(findings.devices[0].shares for findings in found.values() if findings.devices)
        )
        if device.shares == min(inventory.parts[part] for part in device.parts):
            assert not _fit([device] * (device.shares + 1), inventory)
