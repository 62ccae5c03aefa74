import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.devices.model import ContainerEdits, DeviceNode, Mount, Owner
from bridge.planes.claims import Stored, decode, encode
from dra_v1.driver import PreparedClaim, PreparedDevice

texts = st.text(max_size=12)
numbers = st.none() | st.integers(0, 2**32)
owners = st.builds(Owner, numbers, numbers, numbers)
nodes = st.builds(DeviceNode, texts, texts, texts, st.none() | texts, numbers, numbers, st.none() | owners)
tuples_of = lambda items: st.lists(items, max_size=3).map(tuple)  # noqa: E731
edits = st.builds(
    ContainerEdits,
    tuples_of(nodes),
    tuples_of(st.tuples(texts, texts)),
    tuples_of(st.builds(Mount, texts, texts, st.booleans())),
)
devices = st.builds(PreparedDevice, tuples_of(texts), texts, texts, tuples_of(texts), st.none() | texts)
stored = st.builds(
    Stored, st.builds(PreparedClaim, tuples_of(devices)), st.dictionaries(texts, edits, max_size=3)
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["answer", "edits", "devices", "pool"]) | texts, inner, max_size=3)
    ),
)


@given(stored)
def test_what_the_ledger_keeps_of_a_claim_comes_back_the_same(one: Stored) -> None:
    text = encode(one)
    assert decode(text) == one
    assert "\n" not in text


@given(JSON.map(json.dumps) | texts)
def test_a_text_that_is_no_stored_claim_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(decode(text), Stored)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        '{"answer":{"devices":[]}}',
        '{"answer":{"devices":[{"pool":"p"}]},"edits":{}}',
        '{"answer":{"devices":[]},"edits":{},"more":1}',
        '{"answer":{"devices":[]},"edits":{"0":{"env":[["A"]]}}}',
        "[" * 100_000,
    ],
)
def test_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_the_text_is_short_for_it_stays_in_memory() -> None:
    device = PreparedDevice(("r",), "node", "acc0", ("device-bridge.io/acc=acc0",))
    assert encode(Stored(PreparedClaim((device,)), {})) == (
        '{"answer":{"devices":[{"requests":["r"],"pool":"node","device":"acc0",'
        '"cdiIds":["device-bridge.io/acc=acc0"]}]},"edits":{}}'
    )
