"""Early word: devices are reserved as soon as a claim is seen allocated, before the kubelet asks (design 2, races).

Follows the pods of this node, and those nominated for it where binding conditions are in use; gets the claims that
they name and nothing else, so that nothing grows with the cluster. Without the rights for it, or on a cluster that
lacks a piece, the ledger alone decides (S2, S3), and that is said once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from bridge.ledger.holds import ClaimHolder, Phase, Plane
from bridge.planes.claims import decode
from bridge.planes.pursuit import Look, Pursuit, Watches
from bridge.planes.report import Idle
from bridge.planes.reservations import Outcome, Part, Reservations, Tools
from bridge.planes.words import Key, Place, PodRef, Pods, Sight, followed, has_ended, prune, read_pod
from bridge.platform.budget import spread
from bridge.platform.pulse import Pulse
from bridge.platform.rights import Right, missing
from dra_v1.backoff import Backoff
from dra_v1.follow import Changed, Followed, Listed, Lost, follow
from dra_v1.kube import ApiError, Forbidden, Invalid, NotFound

log = logging.getLogger(__name__)

PAGE = 32
"""Pods of one list request: a pod is some ten KiB, and only a line of it is kept."""

AGAIN_S, LONGEST_S = 10.0, 300.0
"""What we have no right to, or the cluster does not know, is tried again after the first, then ever more seldom."""

ORPHAN_S = 10.0
"""A claim whose last pod is gone is deallocated within a second or two; after so long it is told that it is not."""

PODS = "/api/v1/pods"

_RIGHTS = (Right("list", "", "pods"), Right("watch", "", "pods"))


@dataclass(slots=True)
class Seen:
    """What is remembered of a claim.

    Attributes:
        uid: which claim it was.
        sight: how it was seen.
        outcome: how it stood then.
        pods: UIDs of the pods that named it then.
    """

    uid: str = ""
    sight: Sight = Sight.UNKNOWN
    outcome: Outcome = field(default_factory=Outcome)
    pods: frozenset[str] = frozenset()


class EarlyWord:
    """Follows pods and claims, and reserves. Single event loop; nothing happens before `run`.

    Args:
        tools: what reserving works with.
        groups: names of all groups, those in which nothing is reserved now among them.
        watching: told, by kind of object, whether it can be followed.
        pod_ended: called when a pod of this node has ended or is gone.

    Attributes:
        watches: on single claims.
    """

    def __init__(
        self,
        tools: Tools,
        groups: Collection[str],
        watching: Callable[[str, bool], None],
        pod_ended: Callable[[], None],
    ) -> None:
        self.watches = Watches(tools.resources, tools.budget)
        self._tools = tools
        self._node_name = tools.pool  # a node's pool has its name
        self._groups = groups
        self._watching = watching
        self._pod_ended = pod_ended
        self._reservations = Reservations(tools)
        self._pods = Pods()
        self._seen: dict[Key, Seen] = {}
        self._reserved: dict[Key, set[str]] = {}
        self._pursuits: dict[Key, Pursuit] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[Key, frozenset[int]] = {}
        self._orphans: dict[Key, tuple[float, bool]] = {}
        self._listed = False
        self._troubles: dict[Place, str] = {}
        self._switched = Pulse()
        tools.ledger.subscribe(lambda parts: self._blockers_left())

    def attach(self, part: Part) -> None:
        """Reserve in one more group."""
        self._reservations.attach(part)
        self._switched.ring()
        for key in self._pods.named():
            if key not in self._pursuits:
                self._pursue(key)

    def switched(self) -> None:
        """Two-phase binding began or ended in a group."""
        self._switched.ring()

    def prepared(self, uid: str) -> None:
        """The ledger has a claim prepared: from now on the kubelet tells of its end."""
        for key, pursuit in self._pursuits.items():
            if self._seen[key].uid == uid:
                pursuit.wake(look=False)

    def lingers(self, claim: ClaimHolder) -> None:
        """A claim was unprepared and is still allocated: hear of its end rather than ask for it ever more seldom."""
        key = (claim.namespace, claim.name)
        self._reserved.setdefault(key, set()).add(claim.uid)
        if key not in self._pursuits:
            self._pursue(key)

    @property
    def listed(self) -> bool:
        """Whether this node's pods have been listed, and are followed since."""
        return self._listed and Place.OWN not in self._troubles

    def pods_of(self, uid: str) -> tuple[PodRef, ...]:
        """The pods of this node, or nominated for it, that name a claim."""
        return tuple(pod for key, seen in self._seen.items() if seen.uid == uid for pod in self._pods.of(key))

    def claims_on(self, driver: str, device: str) -> frozenset[str]:
        """UIDs of the claims known to have a device of a driver, or a share of it; admin access is among them."""
        part = next((p for p in self._reservations.parts if p.driver == driver), None)
        if part is None:
            return frozenset()
        roster, account = part.roster(), self._tools.ledger.account

        def is_it(name: str) -> bool:
            known = roster.by_name.get(name)
            return name == device or (known is not None and known.name == device)

        held = {h.holder.uid for h in account.of_group(Plane.DRA, part.name) if is_it(h.device)}
        told = {
            claim.holder.uid
            for claim in account.prepared_claims()
            if claim.group == part.name and any(is_it(d.device) for d in decode(claim.answer).answer.devices)
        }
        seen = {
            s.uid
            for s in self._seen.values()
            if any(g == part.name and is_it(d) for g, d in s.outcome.devices)
        }
        return frozenset(held | told | seen)

    # Following pods

    async def run(self) -> None:
        """Follow until cancelled."""
        await spread()
        for hold in self._tools.ledger.account.on_plane(Plane.DRA):
            if hold.phase is Phase.RESERVED and isinstance(hold.holder, ClaimHolder):
                key = (hold.holder.namespace, hold.holder.name)
                self._reserved.setdefault(key, set()).add(hold.holder.uid)
        for key in self._reserved.keys() - self._pursuits.keys():
            self._pursue(key)  # it may be deallocated by now, or its scheduler may wait for an answer
        places = {
            Place.OWN: (lambda: bool(self._reservations.parts), f"spec.nodeName={self._node_name}"),
            # The first half of the selector uses the server's index.
            Place.NOMINATED: (
                lambda: any(part.binding.answers for part in self._reservations.parts),
                f"spec.nodeName=,status.nominatedNodeName={self._node_name}",
            ),
        }
        try:
            async with asyncio.TaskGroup() as tasks:
                for place, (wanted, selector) in places.items():
                    tasks.create_task(self._while(place, wanted, selector))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _while(self, place: Place, wanted: Callable[[], bool], selector: str) -> None:
        """Follow the pods of a place as long as that is wanted; begin again when it is again."""
        with self._switched.listen() as switched:
            while True:
                if wanted():
                    async with asyncio.TaskGroup() as tasks:
                        following = tasks.create_task(self._follow(place, selector))
                        while wanted():
                            await switched.wait()
                        following.cancel()
                    self._touch(self._pods.list(place, ()))
                await switched.wait()

    async def _follow(self, place: Place, selector: str) -> None:
        """Follow the pods that a selector names, for ever."""
        api, turn = self._tools.resources.api, self._tools.budget.take
        params = {"fieldSelector": selector}
        pauses = Backoff(AGAIN_S, LONGEST_S, min(1.0, AGAIN_S))
        while True:
            try:
                stream = follow(api, PODS, params, keep=prune, page=PAGE, turn=turn)
                async with aclosing(stream) as news:
                    async for found in news:
                        if isinstance(found, Lost) and isinstance(found.error, Forbidden):
                            self._lost(place, found.error)
                            break
                        if isinstance(found, Changed):
                            pauses.reset()
                        self._take(place, found)
                await self._allowed(pauses)
            except (NotFound, Invalid) as error:
                self._lost(place, error)
                await asyncio.sleep(pauses.next())

    async def _allowed(self, pauses: Backoff) -> None:
        """Return when pods may be followed, as far as the API server says so: a list alone would show half of it."""
        while True:
            await asyncio.sleep(pauses.next())
            await self._tools.budget.take()
            try:
                if not await missing(self._tools.resources.api, *_RIGHTS):
                    return
            except ApiError as error:
                log.info("cannot ask for the right to follow pods", extra={"error": str(error)})

    def _take(self, place: Place, found: Followed) -> None:
        match found:
            case Listed(items):
                self._back(place)
                touched = self._pods.list(place, map(read_pod, items))
                if place is Place.OWN and not self._listed:
                    self._listed = True
                    touched -= self._already_prepared(touched)
                self._touch(touched)
            case Changed(event):
                gone = event.type == "DELETED"
                if place is Place.OWN and (gone or has_ended(event.object)):
                    self._pod_ended()
                uid = str(event.object["metadata"]["uid"])
                pods = self._pods
                self._touch(pods.drop(place, uid) if gone else pods.put(place, read_pod(event.object)))
            case Lost(error):
                self._lost(place, error)

    def _already_prepared(self, keys: set[Key]) -> set[Key]:
        """Those of the claims that the ledger has prepared: after a start nothing is asked about them."""
        prepared = {
            (claim.holder.namespace, claim.holder.name): claim.holder.uid
            for claim in self._tools.ledger.account.prepared_claims()
        }
        known = keys & prepared.keys() - self._pursuits.keys()
        for key in known:
            self._seen[key] = Seen(prepared[key], Sight.OURS, Outcome(), self._pods.uids(key))
        return known

    def _lost(self, place: Place, error: ApiError) -> None:
        """Note that a place cannot be followed now."""
        said = str(error)
        if self._troubles.get(place, "") != said:
            log.warning(
                "no early word of pods, devices are decided on when the kubelet asks",
                extra={"pods": place.name.lower(), "error": said},
            )
        self._troubles[place] = said
        self._watching(f"{place.name.lower()} pods", False)

    def _back(self, place: Place) -> None:
        if self._troubles.pop(place, ""):
            log.info("early word of pods is back", extra={"pods": place.name.lower()})
        self._watching(f"{place.name.lower()} pods", True)

    # Following claims

    def _touch(self, keys: Iterable[Key]) -> None:
        """The pods of these claims are others than before."""
        for key in keys:
            pods, seen = self._pods.uids(key), self._seen.get(key, Seen())
            if (pursuit := self._pursuits.get(key)) is not None:
                pursuit.wake(look=seen.sight is not Sight.OURS or not pods)
            elif not pods:
                self._forget(key)
            elif not pods <= seen.pods:
                self._pursue(key)

    def _pursue(self, key: Key) -> None:
        self._seen[key] = Seen()
        tools = self._tools
        pursuit = Pursuit(
            key,
            tools.resources,
            tools.budget,
            self.watches,
            wanted=lambda: self._wanted(key),
            hurried=lambda: Place.NOMINATED in self._pods.places(key),
            seen=lambda look: self._saw(key, look),
        )
        self._pursuits[key] = pursuit
        task = asyncio.create_task(self._run(key, pursuit), name=f"claim {'/'.join(key)}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: Key, pursuit: Pursuit) -> None:
        unheard = False
        try:
            await pursuit.run()
            unheard = pursuit.unheard
        except Exception:
            # One claim that nobody foresaw must not end the daemon; its device is decided on at Prepare.
            log.exception("early word of a claim broke", extra={"claim": "/".join(key)})
        finally:
            del self._pursuits[key]
            self._refused.pop(key, None)
            if not self._pods.places(key):
                self._forget(key)
            elif unheard and self._seen[key].sight is not Sight.OURS:
                self._pursue(key)  # its allocation, or the pod that waits for it, came while it was looked at

    def _wanted(self, key: Key) -> bool:
        seen = self._seen[key]
        return followed(
            self._pods.places(key),
            seen.sight,
            reserved=bool(self._still_reserved(key)),
            prepared=bool(seen.uid) and self._is(seen.uid, Phase.PREPARED),
            open_=seen.outcome.again or seen.outcome.refused,
        )

    def _still_reserved(self, key: Key) -> set[str]:
        """UIDs of the claims of that name for which the ledger has something reserved, or not yet released."""
        open_ = (Phase.RESERVED, Phase.RELEASING)
        uids = {uid for uid in self._reserved.get(key, ()) if self._is(uid, *open_)}
        if uids:
            self._reserved[key] = uids
        else:
            self._reserved.pop(key, None)
        return set(uids)

    def _is(self, uid: str, *phases: Phase) -> bool:
        account = self._tools.ledger.account
        return any(h.phase in phases for group in self._groups for h in account.of_claim(group, uid))

    async def _saw(self, key: Key, look: Look) -> bool:
        """Act on what was seen of a claim; whether nothing is left to be tried again."""
        body = look.body
        uid = str(body["metadata"]["uid"]) if body is not None else ""
        await self._let_go(key, look)
        seen = self._seen[key]
        if seen.uid and seen.uid != uid:
            self._reservations.forget(seen.uid)
        seen.uid, seen.pods, seen.outcome = uid, self._pods.uids(key), Outcome()
        if body is None:
            seen.sight = Sight.MISSING
        elif not (body.get("status") or {}).get("allocation"):
            seen.sight = Sight.UNALLOCATED
        else:
            self._reserved.setdefault(key, set()).add(uid)
            seen.outcome = await self._reservations.take(body, self._pods.of(key))
            seen.sight = Sight.OURS if seen.outcome.devices else Sight.OTHERS
        self._refused.pop(key, None)
        if seen.outcome.refused:
            self._refused[key] = seen.outcome.blockers
        stuck = seen.outcome.refused and not seen.outcome.blockers
        self._tell_orphan(key, seen)
        return not seen.outcome.again and not stuck

    async def _let_go(self, key: Key, look: Look) -> None:
        """End what is reserved for a claim that does not have it any longer; the proof is a claim just read."""
        deallocations = self._tools.deallocations
        for uid in self._still_reserved(key):
            if look.read:
                await deallocations.judge(uid, look.body)
            elif deallocations.would_free(uid, look.body):
                await self._tools.budget.take()
                await deallocations.check_now(uid)

    def _tell_orphan(self, key: Key, seen: Seen) -> None:
        """Tell once of a claim that keeps devices although no pod names it, after a while (H5)."""
        if self._pods.places(key) or not self._listed or not self._still_reserved(key):
            self._orphans.pop(key, None)
            return
        now = time.monotonic()
        if key not in self._orphans:
            self._orphans[key] = (now, False)
            asyncio.get_running_loop().call_later(ORPHAN_S + 0.1, self._look_again, key)
        since, told = self._orphans[key]
        if told or now - since < ORPHAN_S:
            return
        self._orphans[key] = (since, True)
        devices = [device for _, device in seen.outcome.devices]
        claim = ClaimHolder(*key, seen.uid)
        for group in dict.fromkeys(group for group, _ in seen.outcome.devices):
            theirs = tuple(device for one, device in seen.outcome.devices if one == group)
            self._tools.report.tell(Idle(group, theirs, claim))
        log.warning(
            "a claim keeps devices and no pod of this node names it; delete it if it is not needed",
            extra={"claim": "/".join(key), "devices": devices},
        )

    def _look_again(self, key: Key) -> None:
        if key in self._pursuits:
            self._pursuits[key].wake(look=True)

    def _blockers_left(self) -> None:
        """The ledger changed: whoever was refused for a hold that has ended is tried again."""
        account = self._tools.ledger.account
        for key, blockers in list(self._refused.items()):
            if key in self._pursuits and any(account.get(hold_id) is None for hold_id in blockers):
                self._pursuits[key].wake(look=True)

    def _forget(self, key: Key) -> None:
        seen = self._seen.pop(key, None)
        if seen is not None:
            self._reservations.forget(seen.uid)
        self._orphans.pop(key, None)
