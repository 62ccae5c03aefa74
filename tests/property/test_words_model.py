"""The pods of a node against the plainest model there is: a set of them for each watch."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bridge.planes.words import Key, Place, Pod, PodRef, Pods

PLACES = st.sampled_from(list(Place))
NAMES = st.sampled_from(["a", "b", "c"])
CLAIMS = st.dictionaries(NAMES, st.booleans(), max_size=3).map(lambda found: tuple(sorted(found.items())))


class OfANode(RuleBasedStateMachine):
    """Pods come, change, move and go, and lists replace what watches said."""

    def __init__(self) -> None:
        super().__init__()
        self.pods = Pods()
        self.model: dict[Place, dict[str, Pod]] = {place: {} for place in Place}

    def naming(self, key: Key) -> dict[str, tuple[Place, Pod]]:
        found: dict[str, tuple[Place, Pod]] = {}
        for place in Place:
            for uid, pod in self.model[place].items():
                if pod.namespace == key[0] and key[1] in dict(pod.claims):
                    found[uid] = (place, pod)
        return found

    def change(self, place: Place, after: dict[str, Pod]) -> set[Key]:
        """Which claims have other pods of that place afterwards."""
        before, self.model[place] = self.model[place], after

        def pairs(pods: dict[str, Pod]) -> set[tuple[str, Key]]:
            return {(uid, ("default", name)) for uid, pod in pods.items() for name, _ in pod.claims}

        return {key for _, key in pairs(before) ^ pairs(after)}

    @rule(place=PLACES, uid=NAMES, claims=CLAIMS)
    def put(self, place: Place, uid: str, claims: tuple[tuple[str, bool], ...]) -> None:
        pod = Pod("default", f"pod-{uid}", uid, claims)
        assert self.pods.put(place, pod) == self.change(place, {**self.model[place], uid: pod})

    @rule(place=PLACES, uid=NAMES)
    def drop(self, place: Place, uid: str) -> None:
        left = {known: pod for known, pod in self.model[place].items() if known != uid}
        assert self.pods.drop(place, uid) == self.change(place, left)

    @rule(place=PLACES, found=st.dictionaries(NAMES, CLAIMS, max_size=3))
    def list(self, place: Place, found: dict[str, tuple[tuple[str, bool], ...]]) -> None:
        pods = {uid: Pod("default", f"pod-{uid}", uid, claims) for uid, claims in found.items()}
        assert self.pods.list(place, pods.values()) == self.change(place, pods)

    @invariant()
    def every_claim_is_named_by_who_names_it(self) -> None:
        for name in ("a", "b", "c"):
            key = ("default", name)
            naming = self.naming(key)
            assert self.pods.uids(key) == naming.keys()
            assert self.pods.places(key) == {place for place, _ in naming.values()}
            refs = {
                PodRef("default", pod.name, uid, dict(pod.claims)[name]) for uid, (_, pod) in naming.items()
            }
            assert {ref.uid for ref in self.pods.of(key)} == {ref.uid for ref in refs}
            assert (key in self.pods.named()) is bool(naming)


TestOfANode = OfANode.TestCase
