"""The DRA kubelet plugin services, v1 and v1beta1, over one driver (kubelet-contract B.1, B.2).

Answers every claim of a call by itself: what is wrong with one never touches another (H28). One claim is never in
two driver calls at once. A call ends within its own deadline even if the driver hangs; the driver's work goes on
and the kubelet's next try finds its result (H40). Reads claims through a function that it is given.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from dra_v1 import points
from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import dra_v1_pb2_grpc as v1_grpc
from dra_v1.api import dra_v1beta1_pb2 as v1beta1
from dra_v1.api import dra_v1beta1_pb2_grpc as v1beta1_grpc
from dra_v1.claims import Claim, ClaimError, ClaimRef, base_request
from dra_v1.driver import (
    Driver,
    PreparedClaim,
    PrepareError,
    Remembers,
    ReportsHealth,
    UnprepareError,
)
from dra_v1.flights import Flights
from dra_v1.folders import FolderWatch
from dra_v1.health import HealthService
from dra_v1.registration import RECHECK_SECONDS
from dra_v1.sockets import SocketError, SocketServer, make_folder

log = logging.getLogger(__name__)

DEADLINE_S: Final = 30.0
"""Longest answer time. The kubelet gives up at 45 s, and then nobody would hear why (H40)."""

DRA_VERSIONS: Final = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
HEALTH_VERSIONS: Final = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")

ClaimsSource = Callable[[Sequence[ClaimRef]], Awaitable[Mapping[str, Claim | ClaimError]]]
"""Reads claims; by UID, the claim or why it cannot be used."""

Observer = Callable[[str, int, int, float], None]
"""Called after each call with (`prepare` or `unprepare`, claims, of them failed, seconds)."""

_CDI_ID = re.compile(
    r"[A-Za-z]([-\w.]*[A-Za-z0-9])?/[A-Za-z]([-\w]*[A-Za-z0-9])?=[A-Za-z0-9]([-\w.:]*[A-Za-z0-9])?", re.ASCII
)

Answer = PreparedClaim | PrepareError


class DraService:
    """The behaviour behind both versions, in the library's own values.

    Args:
        driver: the author's driver.
        claims: reads claims.
        deadline_s: longest answer time in seconds.
        observe: see `Observer`.
    """

    def __init__(
        self,
        driver: Driver,
        claims: ClaimsSource,
        *,
        deadline_s: float = DEADLINE_S,
        observe: Observer | None = None,
    ) -> None:
        self._driver = driver
        self._claims = claims
        self._deadline_s = deadline_s
        self._observe = observe
        self._prepares: Flights[Claim, Answer] = Flights(self._call_prepare)
        self._unprepares: Flights[ClaimRef, UnprepareError | None] = Flights(self._call_unprepare)

    async def prepare(self, refs: Sequence[ClaimRef]) -> dict[str, Answer]:
        """Prepare claims; by UID, an answer for every one asked for. Never raises for a claim."""
        started = time.monotonic()
        answers: dict[str, Answer] = {}
        for ref in refs:
            if (known := self._remembered(ref)) is not None:
                answers[ref.uid] = known
        rest = {ref.uid: ref for ref in refs if ref.uid not in answers}
        pending = self._prepares.under_way(rest)
        try:
            async with asyncio.timeout(self._deadline_s):
                fetched = await self._fetch([ref for uid, ref in rest.items() if uid not in pending], answers)
                await self._unprepares.landed(fetched)
                pending |= self._prepares.board(fetched)
                if pending:
                    await asyncio.wait(pending.values())
        except TimeoutError:
            log.error("claims not prepared in time", extra={"claims": len(rest), "seconds": self._deadline_s})
        answers |= {uid: flight.result() for uid, flight in pending.items() if _landed(flight)}
        for uid, ref in rest.items():
            answers.setdefault(uid, PrepareError(self._late("prepared", ref)))
        failed = sum(isinstance(answer, PrepareError) for answer in answers.values())
        self._tell("prepare", len(answers), failed, started)
        return answers

    async def unprepare(self, refs: Sequence[ClaimRef]) -> dict[str, UnprepareError | None]:
        """Unprepare claims, without the API server; by UID, None for done. Never raises for a claim."""
        started = time.monotonic()
        wanted = {ref.uid: ref for ref in refs}
        pending: dict[str, asyncio.Future[UnprepareError | None]] = {}
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._prepares.landed(wanted)
                pending = self._unprepares.board(wanted)
                if pending:
                    await asyncio.wait(pending.values())
        except TimeoutError:
            log.error(
                "claims not unprepared in time", extra={"claims": len(wanted), "seconds": self._deadline_s}
            )
        answers = {uid: flight.result() for uid, flight in pending.items() if _landed(flight)}
        for uid, ref in wanted.items():
            answers.setdefault(uid, UnprepareError(self._late("unprepared", ref)))
        failed = sum(answer is not None for answer in answers.values())
        self._tell("unprepare", len(answers), failed, started)
        return answers

    async def stop(self) -> None:
        """Cancel driver calls that still run; the kubelet asks again after the restart."""
        await self._prepares.stop()
        await self._unprepares.stop()

    def _remembered(self, ref: ClaimRef) -> PreparedClaim | None:
        if not isinstance(self._driver, Remembers):
            return None
        # What is under way may not be durable yet: whoever asks again gets the answer of that, when it ends.
        if self._prepares.under_way((ref.uid,)) or self._unprepares.under_way((ref.uid,)):
            return None
        try:
            return self._driver.remembered(ref)
        except Exception:  # the driver's code is its author's; reading the claim is the way that always works
            log.exception("the driver failed to say whether it remembers a claim", extra={"claim": str(ref)})
            return None

    async def _fetch(self, refs: Sequence[ClaimRef], answers: dict[str, Answer]) -> dict[str, Claim]:
        """Read claims; those that cannot be used are answered at once."""
        found = await self._claims(refs) if refs else {}
        claims: dict[str, Claim] = {}
        for ref in refs:
            match found.get(ref.uid):
                case Claim() as claim:
                    claims[ref.uid] = claim
                case ClaimError() as error:
                    log.warning("claim cannot be used", extra={"claim": str(ref), "error": str(error)})
                    answers[ref.uid] = PrepareError(str(error))
                case None:
                    answers[ref.uid] = PrepareError(f"claim {ref} was not read; see the driver's log")
        return claims

    async def _call_prepare(self, claims: Sequence[Claim]) -> dict[str, Answer]:
        try:
            given = await self._driver.prepare(claims)
        except Exception as error:
            if len(claims) > 1:
                log.exception("preparing claims together failed; trying each alone")
                alone = [await self._call_prepare([claim]) for claim in claims]
                return {uid: answer for answers in alone for uid, answer in answers.items()}
            ref = claims[0].ref
            log.exception("the driver failed to prepare a claim", extra={"claim": str(ref), "uid": ref.uid})
            return {ref.uid: PrepareError(_defect("prepare", ref, error))}
        self._unknown(given, {claim.ref.uid for claim in claims})
        return {claim.ref.uid: _checked(claim, given.get(claim.ref.uid)) for claim in claims}

    async def _call_unprepare(self, refs: Sequence[ClaimRef]) -> dict[str, UnprepareError | None]:
        try:
            given = await self._driver.unprepare(refs)
        except Exception as error:
            if len(refs) > 1:
                log.exception("unpreparing claims together failed; trying each alone")
                alone = [await self._call_unprepare([ref]) for ref in refs]
                return {uid: answer for answers in alone for uid, answer in answers.items()}
            ref = refs[0]
            log.exception("the driver failed to unprepare a claim", extra={"claim": str(ref), "uid": ref.uid})
            return {ref.uid: UnprepareError(_defect("unprepare", ref, error))}
        self._unknown(given, {ref.uid for ref in refs})
        silent = UnprepareError("the driver gave no answer for this claim, which is a defect of the driver")
        return {ref.uid: given.get(ref.uid, silent) for ref in refs}

    def _unknown(self, given: Iterable[str], asked: set[str]) -> None:
        """The kubelet takes an answer for a claim it did not ask for as an error of the whole call."""
        if extra := set(given) - asked:
            log.error("the driver answered for claims nobody asked for", extra={"uids": sorted(extra)})

    def _late(self, what: str, ref: ClaimRef) -> str:
        return (
            f"claim {ref} was not {what} within {self._deadline_s:g} s; work that was begun goes on, and the "
            "kubelet's next try finds its result"
        )

    def _tell(self, call: str, claims: int, failed: int, started: float) -> None:
        if self._observe is not None:
            self._observe(call, claims, failed, time.monotonic() - started)


class DraServer:
    """One driver's endpoint: both versions of the plugin service, and health where the driver reports it.

    Args:
        driver_name: for the log.
        driver: the author's driver.
        claims: reads claims, see `ClaimsSource`.
        socket_path: where to serve; its folder is made.
        observe: see `Observer`.
        deadline_s: longest answer time in seconds.
    """

    def __init__(
        self,
        driver_name: str,
        driver: Driver,
        claims: ClaimsSource,
        socket_path: Path,
        *,
        observe: Observer | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.service = DraService(driver, claims, deadline_s=deadline_s, observe=observe)
        self._driver_name = driver_name
        self._health = HealthService(driver, driver_name) if isinstance(driver, ReportsHealth) else None
        self._server = SocketServer(socket_path, self._add_services)
        self._keeper: asyncio.Task[None] | None = None

    @property
    def socket_path(self) -> Path:
        """The endpoint to register."""
        return self._server.path

    @property
    def versions(self) -> tuple[str, ...]:
        """What to register, newest first: the kubelet takes the first it knows."""
        return DRA_VERSIONS + (HEALTH_VERSIONS if self._health is not None else ())

    async def start(self) -> None:
        """Serve, and keep the socket in its place. Raises `SocketError`."""
        await self._serve()
        if self._health is not None:
            self._health.start()
        self._keeper = asyncio.create_task(self._keep(), name=f"socket of {self._driver_name}")

    async def stop(self, grace: float | None = 5.0) -> None:
        """Stop serving; calls under way get `grace` seconds."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if self._health is not None:
            await self._health.stop()
        await self._server.stop(grace)
        await self.service.stop()

    async def _serve(self) -> bool:
        make_folder(self.socket_path.parent)
        return await self._server.serve()

    async def _keep(self) -> None:
        watch = FolderWatch(self.socket_path.parent)
        try:
            while True:
                try:
                    if await self._serve():
                        log.warning("socket served again", extra={"path": str(self.socket_path)})
                except (SocketError, OSError) as error:
                    log.error("socket cannot be served again", extra={"error": str(error)})
                await watch.wait(RECHECK_SECONDS)
        finally:
            watch.close()

    def _add_services(self, server: grpc.aio.Server) -> None:
        v1_grpc.add_DRAPluginServicer_to_server(_V1(self.service), server)
        v1beta1_grpc.add_DRAPluginServicer_to_server(_V1Beta1(self.service), server)
        if self._health is not None:
            self._health.add_to(server)


class _V1(v1_grpc.DRAPluginServicer):
    def __init__(self, service: DraService) -> None:
        self._service = service

    async def NodePrepareResources(
        self,
        request: v1.NodePrepareResourcesRequest,
        context: grpc.aio.ServicerContext[v1.NodePrepareResourcesRequest, v1.NodePrepareResourcesResponse],
    ) -> v1.NodePrepareResourcesResponse:
        response = v1.NodePrepareResourcesResponse()
        for uid, answer in (await self._service.prepare(_refs(request.claims))).items():
            _fill_prepared(response.claims[uid], answer)
        points.reached(points.Point.PREPARE_ANSWER_V1)
        return response

    async def NodeUnprepareResources(
        self,
        request: v1.NodeUnprepareResourcesRequest,
        context: grpc.aio.ServicerContext[
            v1.NodeUnprepareResourcesRequest, v1.NodeUnprepareResourcesResponse
        ],
    ) -> v1.NodeUnprepareResourcesResponse:
        response = v1.NodeUnprepareResourcesResponse()
        for uid, answer in (await self._service.unprepare(_refs(request.claims))).items():
            response.claims[uid].error = answer.message if answer is not None else ""
        points.reached(points.Point.UNPREPARE_ANSWER_V1)
        return response


class _V1Beta1(v1beta1_grpc.DRAPluginServicer):
    def __init__(self, service: DraService) -> None:
        self._service = service

    async def NodePrepareResources(
        self,
        request: v1beta1.NodePrepareResourcesRequest,
        context: grpc.aio.ServicerContext[
            v1beta1.NodePrepareResourcesRequest, v1beta1.NodePrepareResourcesResponse
        ],
    ) -> v1beta1.NodePrepareResourcesResponse:
        response = v1beta1.NodePrepareResourcesResponse()
        for uid, answer in (await self._service.prepare(_refs(request.claims))).items():
            _fill_prepared(response.claims[uid], answer)
        points.reached(points.Point.PREPARE_ANSWER_V1BETA1)
        return response

    async def NodeUnprepareResources(
        self,
        request: v1beta1.NodeUnprepareResourcesRequest,
        context: grpc.aio.ServicerContext[
            v1beta1.NodeUnprepareResourcesRequest, v1beta1.NodeUnprepareResourcesResponse
        ],
    ) -> v1beta1.NodeUnprepareResourcesResponse:
        response = v1beta1.NodeUnprepareResourcesResponse()
        for uid, answer in (await self._service.unprepare(_refs(request.claims))).items():
            response.claims[uid].error = answer.message if answer is not None else ""
        points.reached(points.Point.UNPREPARE_ANSWER_V1BETA1)
        return response


def _refs(claims: Iterable[v1.Claim | v1beta1.Claim]) -> list[ClaimRef]:
    return [ClaimRef(claim.namespace, claim.name, claim.uid) for claim in claims]


def _fill_prepared(
    response: v1.NodePrepareResourceResponse | v1beta1.NodePrepareResourceResponse, answer: Answer
) -> None:
    """Either devices or an error. An entry without devices has to be there all the same, hence the touch."""
    response.SetInParent()
    if isinstance(answer, PrepareError):
        response.error = answer.message or "the driver gave no reason"
        return
    for device in answer.devices:
        entry = response.devices.add()
        entry.request_names.extend(dict.fromkeys(base_request(name) for name in device.requests))
        entry.pool_name = device.pool
        entry.device_name = device.device
        entry.cdi_device_ids.extend(device.cdi_ids)
        if isinstance(entry, v1.Device) and device.share_id:
            entry.share_id = device.share_id


def _checked(claim: Claim, answer: Answer | None) -> Answer:
    """The driver's answer, or what the kubelet would not like about it."""
    if answer is None:
        return PrepareError(
            f"the driver gave no answer for claim {claim.ref}, which is a defect of the driver"
        )
    if isinstance(answer, PrepareError):
        return answer
    allocated = {(result.pool, result.device) for result in claim.results}
    for device in answer.devices:
        where = f"the driver's answer for claim {claim.ref}, which is a defect of the driver"
        if (device.pool, device.device) not in allocated:
            return PrepareError(f"{device.pool}/{device.device} is not allocated to it: {where}")
        wrong = [cdi_id for cdi_id in device.cdi_ids if not _CDI_ID.fullmatch(cdi_id)]
        if wrong:
            return PrepareError(f"{wrong[0]!r} is no CDI name (vendor.com/class=name): {where}")
    return answer


def _defect(what: str, ref: ClaimRef, error: Exception) -> str:
    return f"the driver failed to {what} claim {ref}: {type(error).__name__}: {error}"


def _landed(flight: asyncio.Future[Any]) -> bool:
    return flight.done() and not flight.cancelled()
