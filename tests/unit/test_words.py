"""What pods say of claims, and which claims are followed."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.planes.words import Place, Pod, PodRef, Pods, Sight, followed, prune, read_pod


def pod_object(
    name: str = "p",
    *,
    claims: tuple[str, ...] = (),
    templates: tuple[str, ...] = (),
    made: dict[str, str | None] | None = None,
    extended: str = "",
    phase: str = "Pending",
) -> dict[str, Any]:
    entries = [{"name": claim, "resourceClaimName": claim} for claim in claims]
    entries += [{"name": template, "resourceClaimTemplateName": template} for template in templates]
    status: dict[str, Any] = {"phase": phase, "podIP": "10.0.0.1"}
    if made is not None:
        status["resourceClaimStatuses"] = [
            {"name": inside, **({"resourceClaimName": claim} if claim else {})}
            for inside, claim in made.items()
        ]
    if extended:
        status["extendedResourceClaimStatus"] = {"resourceClaimName": extended, "requestMappings": []}
    meta = {"namespace": "default", "name": name, "uid": f"uid-{name}", "labels": {"a": "b"}}
    return {"metadata": meta, "spec": {"resourceClaims": entries, "containers": [{}]}, "status": status}


@pytest.mark.parametrize(
    ("body", "claims"),
    [
        (pod_object(), ()),
        (pod_object(claims=("c",)), (("c", True),)),
        (pod_object(templates=("t",)), ()),
        (pod_object(templates=("t",), made={"t": "p-t-x1"}), (("p-t-x1", True),)),
        (pod_object(templates=("t",), made={"t": None}), ()),
        (pod_object(extended="p-extended-resources-x"), (("p-extended-resources-x", False),)),
        (pod_object(claims=("c",), extended="e"), (("c", True), ("e", False))),
        (pod_object(claims=("c",), phase="Succeeded"), ()),
        (pod_object(claims=("c",), extended="e", phase="Failed"), ()),
        (pod_object(claims=("c",), phase="Running"), (("c", True),)),
    ],
)
def test_which_claims_a_pod_names_and_whether_its_spec_does(body: dict[str, Any], claims: object) -> None:
    assert read_pod(body).claims == claims
    assert read_pod(prune(body)) == read_pod(body), "nothing that matters is pruned"


def test_a_pods_progress_touches_no_claim() -> None:
    pods = Pods()
    one = read_pod(pod_object(claims=("c",)))
    assert pods.put(Place.OWN, one) == {("default", "c")}
    assert pods.put(Place.OWN, read_pod(pod_object(claims=("c",), phase="Running"))) == set()
    assert pods.put(Place.OWN, read_pod(pod_object(claims=("c",), phase="Succeeded"))) == {("default", "c")}
    assert pods.of(("default", "c")) == ()


def test_a_pod_that_is_bound_counts_as_bound_whichever_watch_speaks_first() -> None:
    pods = Pods()
    one = read_pod(pod_object(claims=("c",)))
    key = ("default", "c")
    pods.put(Place.NOMINATED, one)
    assert pods.places(key) == {Place.NOMINATED}
    pods.put(Place.OWN, one)
    assert pods.places(key) == {Place.OWN}
    assert pods.of(key) == (PodRef("default", "p", "uid-p", True),)
    assert pods.drop(Place.NOMINATED, one.uid) == {key}
    assert pods.places(key) == {Place.OWN}
    pods.drop(Place.OWN, one.uid)
    assert not pods.places(key) and pods.named() == ()


def test_h34_a_list_is_the_truth() -> None:
    pods = Pods()
    pods.list(Place.OWN, [Pod("default", "a", "1", (("x", True),)), Pod("default", "b", "2", (("y", True),))])
    touched = pods.list(
        Place.OWN, [Pod("default", "b", "2", (("y", True),)), Pod("n", "c", "3", (("z", False),))]
    )
    assert touched == {("default", "x"), ("n", "z")}
    assert not pods.places(("default", "x"))
    assert pods.of(("n", "z")) == (PodRef("n", "c", "3", False),)


@pytest.mark.parametrize("place", [None, *Place])
@pytest.mark.parametrize("sight", list(Sight))
@pytest.mark.parametrize("open_", [False, True])
def test_what_is_reserved_is_always_followed_and_what_nobody_names_never_else(
    place: Place | None, sight: Sight, open_: bool
) -> None:
    places = frozenset[Place]() if place is None else frozenset({place})
    assert followed(places, sight, reserved=True, prepared=False, open_=open_)
    assert not followed(frozenset(), sight, reserved=False, prepared=False, open_=open_)


@pytest.mark.parametrize(
    ("place", "sight", "prepared", "open_", "is_followed"),
    [
        (Place.OWN, Sight.UNKNOWN, False, False, True),
        (Place.NOMINATED, Sight.UNKNOWN, False, False, True),
        (
            Place.NOMINATED,
            Sight.UNALLOCATED,
            False,
            False,
            True,
        ),  # the nomination comes before the allocation
        (Place.OWN, Sight.UNALLOCATED, False, False, False),
        (Place.NOMINATED, Sight.OTHERS, False, False, False),
        (Place.OWN, Sight.MISSING, False, False, False),
        (Place.NOMINATED, Sight.MISSING, False, False, True),  # it is made anew (H6)
        (Place.OWN, Sight.OURS, False, True, True),
        (Place.OWN, Sight.OURS, True, True, False),  # it is served: what is still open does not matter
        (Place.OWN, Sight.OURS, False, False, False),  # admin access, answered
    ],
)
def test_which_claims_are_followed(
    place: Place, sight: Sight, prepared: bool, open_: bool, is_followed: bool
) -> None:
    now = followed(frozenset({place}), sight, reserved=False, prepared=prepared, open_=open_)
    assert now is is_followed


@pytest.mark.parametrize("sight", [Sight.UNALLOCATED, Sight.MISSING])
def test_a_pod_that_ends_does_not_hide_the_next_one_that_waits_for_its_claim(sight: Sight) -> None:
    places = frozenset({Place.OWN, Place.NOMINATED})
    assert followed(places, sight, reserved=False, prepared=False, open_=False)
