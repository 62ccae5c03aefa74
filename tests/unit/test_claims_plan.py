"""From an allocated claim to what is booked and answered: the plan, and what the ledger keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.devices.kinds import KINDS
from bridge.devices.model import ContainerEdits, Device
from bridge.ledger.holds import Plane
from bridge.planes.claims import Naming, Plan, Stored, decode, encode, plan, whole_quantity
from bridge.planes.roster import Unavailable
from dra_v1.claims import Claim, ClaimError, ClaimRef, check_claim
from dra_v1.driver import PreparedClaim, PreparedDevice
from tests.unit.rosters import account, device, group, hold, inventory, roster

DRIVER = "acc.device-bridge.io"
REF = ClaimRef("default", "c", "uid-1")
NAMING = Naming(lambda name: f"b/acc={name}", lambda uid, index: f"b/acc=claim-{uid}-{index}")
NX = {"apiVersion": "device.power.ibm.com/v1alpha1", "kind": "NxConfig"}


def result(of: str, request: str = "req", **more: Any) -> dict[str, Any]:
    return {"driver": DRIVER, "pool": "node-a", "device": of, "request": request, **more}


def claim(*results: Mapping[str, Any], config: list[dict[str, Any]] | None = None) -> Claim:
    body = {
        "metadata": {"namespace": "default", "name": "c", "uid": "uid-1"},
        "status": {"allocation": {"devices": {"results": list(results), "config": config or []}}},
    }
    found = check_claim(body, REF, DRIVER)
    assert not isinstance(found, ClaimError), found
    return found


def planned(of: Claim, *devices: Device, kind: str = "device-node", holds: tuple[Any, ...] = ()) -> Plan:
    kept = account(holds)
    return plan(of, roster(group(), inventory(*devices), kept), KINDS[kind], "node-a", NAMING)


def opaque(parameters: Mapping[str, Any], source: str = "FromClaim", driver: str = DRIVER) -> dict[str, Any]:
    return {"source": source, "requests": [], "opaque": {"driver": driver, "parameters": parameters}}


def test_one_device_is_booked_and_answered_by_its_static_name() -> None:
    made = planned(claim(result("acc0")), device("acc0"))
    assert [(pick.device, pick.share) for pick in made.picks] == [("acc0", "acc0")]
    assert made.answer == PreparedClaim((PreparedDevice(("req",), "node-a", "acc0", ("b/acc=acc0",), None),))
    assert made.edits == {}


def test_several_devices_keep_the_order_of_the_allocation() -> None:
    made = planned(claim(result("acc1"), result("acc0", "other")), device("acc0"), device("acc1"))
    assert [pick.device for pick in made.picks] == ["acc1", "acc0"]
    assert [one.requests for one in made.answer.devices] == [("req",), ("other",)]


def test_a_sub_request_is_answered_by_its_base_name() -> None:
    made = planned(claim(result("acc0", "req/first")), device("acc0"))
    assert made.answer.devices[0].requests == ("req",)


def test_h26_admin_access_books_nothing_and_needs_only_that_the_device_is_there() -> None:
    broken = device("acc0", ok=False)
    kept = (hold(1, Plane.DEVICE_PLUGIN, broken),)
    made = planned(claim(result("acc0", adminAccess=True)), broken, holds=kept)
    assert made.picks == () and made.answer.devices[0].cdi_ids == ("b/acc=acc0--admin",)
    with pytest.raises(Unavailable, match="acc9 is no device of group acc"):
        planned(claim(result("acc9", adminAccess=True)), broken)


@pytest.mark.parametrize(
    ("consumed", "units"),
    [({"replicas": "2"}, 2), ({f"{DRIVER}/replicas": "3"}, 3), ({}, 1), ({"memory": "9"}, 1)],
)
def test_a_share_books_what_it_consumes_under_its_id(consumed: dict[str, str], units: int) -> None:
    shared = device("acc0", shares=4)
    made = planned(claim(result("acc0", shareID="s-1", consumedCapacity=consumed)), shared)
    (pick,) = made.picks
    assert (pick.device, pick.share, pick.uses[0].amount, pick.uses[0].capacity) == ("acc0", "s-1", units, 4)
    assert made.answer.devices[0].share_id == "s-1"


def test_a_named_share_is_one_unit_of_its_device() -> None:
    (pick,) = planned(claim(result("acc0--2")), device("acc0", shares=4)).picks
    assert (pick.device, pick.share, pick.uses[0].amount) == ("acc0", "acc0--2", 1)


def test_a_shareable_device_by_its_own_name_without_a_share_is_all_of_it() -> None:
    (pick,) = planned(claim(result("acc0")), device("acc0", shares=4)).picks
    assert pick.uses[0].amount == 4


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (result("acc7"), "acc7 is no device of group acc"),
        (result("acc0", pool="node-b"), "pool node-b; this node's pool is node-a"),
        (result("acc1"), "acc1 is not healthy: too hot"),
        (result("s", shareID="x", consumedCapacity={"replicas": "5"}), "s has 2 replicas, 5 were asked for"),
        (result("s", shareID="x", consumedCapacity={"replicas": "1500m"}), "not a positive whole number"),
        (result("s", shareID="x", consumedCapacity={"replicas": "0"}), "not a positive whole number"),
        (result("s", shareID="x", consumedCapacity={"replicas": "many"}), "the amount of replicas"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_reason(bad: dict[str, Any], why: str) -> None:
    devices = (device("acc0"), device("acc1", ok=False), device("s", shares=2))
    with pytest.raises(Unavailable) as refused:
        planned(claim(result("acc0"), bad), *devices)
    assert why in str(refused.value), "and with it the whole claim (H28)"


def test_a_configuration_makes_an_entry_of_the_claims_own() -> None:
    made = planned(claim(result("acc0"), config=[opaque(NX)]), device("acc0"), kind="nx-gzip")
    assert made.answer.devices[0].cdi_ids == ("b/acc=acc0", "b/acc=claim-uid-1-0")
    assert dict(made.edits["0"].env)["NX_DEVICE"] == "acc0"


def test_a_configuration_of_another_driver_is_left_alone() -> None:
    foreign = opaque({"what": "ever"}, driver="gpu.example.com")
    made = planned(claim(result("acc0"), config=[foreign]), device("acc0"), kind="nx-gzip")
    assert made.edits == {} and len(made.answer.devices[0].cdi_ids) == 1


def test_a_configuration_that_is_not_valid_is_told_with_its_field() -> None:
    wrong = opaque(NX | {"sharing": {"strategy": "Guess"}})
    with pytest.raises(Unavailable, match=r"configuration of request req is not valid: .*sharing\.strategy"):
        planned(claim(result("acc0"), config=[wrong]), device("acc0"), kind="nx-gzip")


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("1k", 1000), ("2Ki", 2048), ("3000m", 3)])
def test_quantities(text: str, number: int) -> None:
    assert whole_quantity(text, "credits") == number


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)
DEVICES = st.builds(
    PreparedDevice,
    st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    NAMES,
    NAMES,
    st.lists(NAMES, max_size=3).map(tuple),
    st.none() | NAMES,
)
EDITS = st.builds(ContainerEdits, env=st.lists(st.tuples(NAMES, st.text(max_size=20)), max_size=3).map(tuple))


@given(st.lists(DEVICES, max_size=4), st.dictionaries(NAMES, EDITS, max_size=3))
def test_what_the_ledger_keeps_is_what_was_answered(
    devices: list[PreparedDevice], edits: dict[str, ContainerEdits]
) -> None:
    """H13: word for word."""
    stored = Stored(PreparedClaim(tuple(devices)), edits)
    assert decode(encode(stored)) == stored


@pytest.mark.parametrize("text", ["", "{}", "null", '{"answer": 1, "edits": {}}'])
def test_a_stored_text_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text)
