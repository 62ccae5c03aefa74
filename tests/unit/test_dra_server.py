"""The DRA services over real gRPC: every claim gets its own answer, in both versions, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import grpc
import pytest

from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import dra_v1_pb2_grpc as v1_grpc
from dra_v1.api import dra_v1beta1_pb2 as v1beta1
from dra_v1.api import dra_v1beta1_pb2_grpc as v1beta1_grpc
from dra_v1.api import health_v1_pb2 as h1
from dra_v1.api import health_v1_pb2_grpc as h1_grpc
from dra_v1.api import health_v1alpha1_pb2 as h1alpha1
from dra_v1.api import health_v1alpha1_pb2_grpc as h1alpha1_grpc
from dra_v1.claims import AllocatedDevice, Claim, ClaimError, ClaimProblem, ClaimRef
from dra_v1.driver import (
    DeviceHealth,
    HealthStatus,
    PreparedClaim,
    PreparedDevice,
    PrepareError,
    UnprepareError,
)
from dra_v1.server import Answer, DraServer
from dra_v1.sockets import grpc_target
from tests.unit.kubelet_peer import LIMIT, short_folder

SHARE = "2f6f4f0e-0000-4000-8000-000000000001"


def claim(uid: str) -> Claim:
    results = (
        AllocatedDevice("acc/small", "node1", f"dev-{uid}", share_id=SHARE),
        AllocatedDevice("acc/small", "node1", f"more-{uid}"),
    )
    return Claim(ClaimRef("ns", f"claim-{uid}", uid), results)


def answer(one: Claim) -> PreparedClaim:
    return PreparedClaim(
        tuple(
            PreparedDevice(
                (r.request, r.request), r.pool, r.device, (f"example.com/acc={r.device}",), r.share_id
            )
            for r in one.results
        )
    )


class ScriptedDriver:
    """Prepares at once, unless told otherwise by UID."""

    def __init__(self) -> None:
        self.prepare_calls: list[list[str]] = []
        self.unprepare_calls: list[list[str]] = []
        self.errors: dict[str, PrepareError | Exception] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.begun = asyncio.Event()

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim | PrepareError]:
        self.prepare_calls.append([one.ref.uid for one in claims])
        self.begun.set()
        answers: dict[str, PreparedClaim | PrepareError] = {}
        for one in claims:
            if event := self.hold.get(one.ref.uid):
                await event.wait()
            trouble = self.errors.get(one.ref.uid)
            if isinstance(trouble, Exception):
                raise trouble
            answers[one.ref.uid] = trouble or answer(one)
        return answers

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, UnprepareError | None]:
        self.unprepare_calls.append([ref.uid for ref in claims])
        for ref in claims:
            if ref.uid == "explodes":
                raise OSError("disk full")
        return {ref.uid: UnprepareError("busy") if ref.uid == "busy" else None for ref in claims}


class RememberingDriver(ScriptedDriver):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, PreparedClaim] = {}

    def remembered(self, ref: ClaimRef) -> PreparedClaim | None:
        return self.known.get(ref.uid)

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim | PrepareError]:
        answers = await super().prepare(claims)
        self.known |= {uid: one for uid, one in answers.items() if isinstance(one, PreparedClaim)}
        return answers


class HealthyDriver(ScriptedDriver):
    def __init__(self) -> None:
        super().__init__()
        self.reports: asyncio.Queue[Sequence[DeviceHealth] | Exception] = asyncio.Queue()

    async def health(self) -> AsyncIterator[Sequence[DeviceHealth]]:
        while True:
            report = await self.reports.get()
            if isinstance(report, Exception):
                raise report
            yield report


class Claims:
    """The API server's part: every UID is a claim, but for those that are not."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: dict[str, str] = {}
        self.hangs = False

    async def __call__(self, refs: Sequence[ClaimRef]) -> Mapping[str, Claim | ClaimError]:
        self.asked += [ref.uid for ref in refs]
        if self.hangs:
            await asyncio.Event().wait()
        return {
            ref.uid: ClaimError(ref, ClaimProblem.MISSING, self.broken[ref.uid])
            if ref.uid in self.broken
            else claim(ref.uid)
            for ref in refs
        }


@asynccontextmanager
async def kubelet_of(
    driver: ScriptedDriver, claims: Claims, **options: float
) -> AsyncIterator[tuple[DraServer, grpc.aio.Channel]]:
    with short_folder() as folder:
        server = DraServer("acc.example.com", driver, claims, folder / "d" / "dra.sock", **options)  # type: ignore[arg-type]
        await server.start()
        try:
            async with grpc.aio.insecure_channel(
                grpc_target(server.socket_path), options=[("grpc.default_authority", "localhost")]
            ) as channel:
                yield server, channel
        finally:
            await server.stop(grace=0)


def request(*uids: str) -> v1.NodePrepareResourcesRequest:
    return v1.NodePrepareResourcesRequest(
        claims=[v1.Claim(namespace="ns", name=f"claim-{uid}", uid=uid) for uid in uids]
    )


async def prepare(channel: grpc.aio.Channel, *uids: str) -> v1.NodePrepareResourcesResponse:
    stub = v1_grpc.DRAPluginStub(channel)
    return await stub.NodePrepareResources(request(*uids), timeout=LIMIT)


async def unprepare(channel: grpc.aio.Channel, *uids: str) -> v1.NodeUnprepareResourcesResponse:
    asked = v1.NodeUnprepareResourcesRequest(claims=request(*uids).claims)
    return await v1_grpc.DRAPluginStub(channel).NodeUnprepareResources(asked, timeout=LIMIT)


async def test_prepare_answers_with_devices_and_base_request_names() -> None:
    async with kubelet_of(ScriptedDriver(), Claims()) as (_, channel):
        response = await prepare(channel, "u1")
    first, second = response.claims["u1"].devices
    assert response.claims["u1"].error == ""
    assert list(first.request_names) == ["acc"]
    assert (first.pool_name, first.device_name) == ("node1", "dev-u1")
    assert list(first.cdi_device_ids) == ["example.com/acc=dev-u1"]
    assert first.share_id == SHARE
    assert not second.HasField("share_id")


async def test_v1beta1_answers_the_same_without_shares() -> None:
    async with kubelet_of(ScriptedDriver(), Claims()) as (_, channel):
        stub = v1beta1_grpc.DRAPluginStub(channel)
        asked = v1beta1.NodePrepareResourcesRequest(
            claims=[v1beta1.Claim(namespace="ns", name="claim-u1", uid="u1")]
        )
        response = await stub.NodePrepareResources(asked, timeout=LIMIT)
        gone = await stub.NodeUnprepareResources(
            v1beta1.NodeUnprepareResourcesRequest(claims=asked.claims), timeout=LIMIT
        )
    assert [device.device_name for device in response.claims["u1"].devices] == ["dev-u1", "more-u1"]
    assert gone.claims["u1"].error == ""


async def test_h28_what_is_wrong_with_one_claim_is_said_of_that_claim_alone() -> None:
    driver, claims = ScriptedDriver(), Claims()
    driver.errors = {"refused": PrepareError("acc0 is held by pod x"), "broken": RuntimeError("no such file")}
    claims.broken = {"gone": "claim ns/claim-gone does not exist any longer"}
    async with kubelet_of(driver, claims) as (_, channel):
        response = await prepare(channel, "good", "refused", "broken", "gone", "fine")
    errors = {uid: one.error for uid, one in response.claims.items()}
    assert errors.keys() == {"good", "refused", "broken", "gone", "fine"}
    assert errors["good"] == errors["fine"] == ""
    assert errors["refused"] == "acc0 is held by pod x"
    assert (
        errors["broken"] == "the driver failed to prepare claim ns/claim-broken: RuntimeError: no such file"
    )
    assert errors["gone"] == "claim ns/claim-gone does not exist any longer"
    assert all(not one.devices for uid, one in response.claims.items() if errors[uid])


async def test_h13_prepare_repeated_after_a_kubelet_restart_is_answered_identically() -> None:
    driver, claims = RememberingDriver(), Claims()
    async with kubelet_of(driver, claims) as (_, channel):
        first = await prepare(channel, "u1", "u2")
        claims.broken = {"u1": "the API server is away", "u2": "the API server is away"}
        second = await prepare(channel, "u1", "u2")
    assert first == second
    assert driver.prepare_calls == [["u1", "u2"]]
    assert claims.asked == ["u1", "u2"]


async def test_h40_a_driver_that_hangs_is_answered_for_in_time_and_its_work_is_not_lost() -> None:
    driver = ScriptedDriver()
    driver.hold["slow"] = asyncio.Event()
    async with kubelet_of(driver, Claims(), deadline_s=0.2) as (server, channel):
        late = await prepare(channel, "slow")
        assert "was not prepared within 0.2 s" in late.claims["slow"].error
        server.service._deadline_s = LIMIT
        joined = asyncio.Event()
        under_way = server.service._prepares.under_way

        def noticed(uids: Iterable[str]) -> dict[str, asyncio.Future[Answer]]:
            found = under_way(uids)
            if found:
                joined.set()
            return found

        server.service._prepares.under_way = noticed  # type: ignore[method-assign]
        again = asyncio.create_task(prepare(channel, "slow"))
        other = await prepare(channel, "quick")
        assert other.claims["quick"].error == ""
        await joined.wait()
        driver.hold["slow"].set()
        assert (await again).claims["slow"].error == ""
    assert driver.prepare_calls == [["slow"], ["quick"]]


async def test_h40_an_api_server_that_hangs_is_answered_for_in_time() -> None:
    claims = Claims()
    claims.hangs = True
    async with kubelet_of(ScriptedDriver(), claims, deadline_s=0.1) as (_, channel):
        response = await prepare(channel, "u1", "u2")
    assert {uid: "within 0.1 s" in one.error for uid, one in response.claims.items()} == {
        "u1": True,
        "u2": True,
    }


async def test_unprepare_waits_for_the_prepare_that_the_kubelet_gave_up_on() -> None:
    driver = ScriptedDriver()
    driver.hold["u1"] = asyncio.Event()
    async with kubelet_of(driver, Claims(), deadline_s=0.1) as (server, channel):
        await prepare(channel, "u1")
        assert "was not unprepared within" in (await unprepare(channel, "u1")).claims["u1"].error
        assert driver.unprepare_calls == []
        server.service._deadline_s = LIMIT
        undoing = asyncio.create_task(unprepare(channel, "u1"))
        driver.hold["u1"].set()
        assert (await undoing).claims["u1"].error == ""
    assert driver.unprepare_calls == [["u1"]]


async def test_unprepare_answers_per_claim_and_asks_no_api_server() -> None:
    driver, claims = ScriptedDriver(), Claims()
    async with kubelet_of(driver, claims) as (_, channel):
        response = await unprepare(channel, "never-prepared", "busy", "explodes")
    assert {uid: one.error for uid, one in response.claims.items()} == {
        "never-prepared": "",
        "busy": "busy",
        "explodes": "the driver failed to unprepare claim ns/claim-explodes: OSError: disk full",
    }
    assert claims.asked == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "gave no answer"),
        (
            {"u1": PreparedClaim((PreparedDevice(("acc",), "node1", "other"),))},
            "node1/other is not allocated",
        ),
        ({"u1": PreparedClaim((PreparedDevice(("acc",), "node1", "dev-u1", ("nonsense",)),))}, "no CDI name"),
        ({"u1": PreparedClaim(()), "u9": PreparedClaim(())}, ""),
    ],
)
async def test_answers_that_the_kubelet_would_refuse_are_called_the_drivers_defect(
    wrong: Mapping[str, PreparedClaim], said: str
) -> None:
    class Wrong(ScriptedDriver):
        async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim]:
            return wrong

    async with kubelet_of(Wrong(), Claims()) as (_, channel):
        response = await prepare(channel, "u1")
    assert response.claims.keys() == {"u1"}
    assert said in response.claims["u1"].error
    assert bool(said) == bool(response.claims["u1"].error)


async def test_calls_are_observed_failures_included() -> None:
    seen: list[tuple[str, int, int]] = []
    driver, claims = ScriptedDriver(), Claims()
    claims.broken = {"gone": "gone"}

    def observe(call: str, asked: int, failed: int, seconds: float) -> None:
        assert seconds >= 0
        seen.append((call, asked, failed))

    async with kubelet_of(driver, claims, observe=observe) as (_, channel):  # type: ignore[arg-type]
        await prepare(channel, "u1", "gone")
        await unprepare(channel, "busy")
    assert seen == [("prepare", 2, 1), ("unprepare", 1, 1)]


async def test_an_endpoint_whose_socket_was_deleted_is_served_again() -> None:
    async with kubelet_of(ScriptedDriver(), Claims()) as (server, _):
        server.socket_path.unlink()
        async with (
            asyncio.timeout(LIMIT),
            grpc.aio.insecure_channel(grpc_target(server.socket_path)) as channel,
        ):
            stub = v1_grpc.DRAPluginStub(channel)
            response = await stub.NodePrepareResources(request("u1"), timeout=LIMIT, wait_for_ready=True)
    assert response.claims["u1"].error == ""


async def test_health_is_offered_only_by_drivers_that_report_it() -> None:
    plugin = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
    async with kubelet_of(ScriptedDriver(), Claims()) as (server, channel):
        assert server.versions == plugin
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (
                h1_grpc.DRAResourceHealthStub(channel)
                .NodeWatchResources(h1.NodeWatchResourcesRequest())
                .read()
            )
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with kubelet_of(HealthyDriver(), Claims()) as (server, _):
        assert server.versions == (*plugin, "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")


async def test_every_health_stream_gets_every_complete_list() -> None:
    driver = HealthyDriver()
    async with kubelet_of(driver, Claims()) as (_, channel):
        new = h1_grpc.DRAResourceHealthStub(channel).NodeWatchResources(h1.NodeWatchResourcesRequest())
        old = h1alpha1_grpc.DRAResourceHealthStub(channel).NodeWatchResources(
            h1alpha1.NodeWatchResourcesRequest()
        )
        for state in (HealthStatus.HEALTHY, HealthStatus.UNHEALTHY):
            driver.reports.put_nowait([DeviceHealth("node1", "acc0", state, "x" * 2000, timeout_s=7)])
            async with asyncio.timeout(LIMIT):
                for got in (await new.read(), await old.read()):
                    (device,) = got.devices
                    assert (device.device.pool_name, device.device.device_name) == ("node1", "acc0")
                    assert device.health == state.value
                    assert device.health_check_timeout_seconds == 7
                    assert len(device.message) == 1024
                    assert device.last_updated_time > 1_700_000_000


async def test_health_is_sent_again_before_the_kubelet_would_forget_it() -> None:
    driver = HealthyDriver()
    driver.reports.put_nowait([DeviceHealth("node1", "acc0", HealthStatus.HEALTHY, timeout_s=2)])
    async with kubelet_of(driver, Claims()) as (_, channel):
        stream = h1_grpc.DRAResourceHealthStub(channel).NodeWatchResources(h1.NodeWatchResourcesRequest())
        async with asyncio.timeout(LIMIT):
            assert [len((await stream.read()).devices) for _ in range(2)] == [1, 1]


async def test_a_health_report_that_fails_ends_the_streams_and_is_asked_for_again() -> None:
    driver = HealthyDriver()
    driver.reports.put_nowait([DeviceHealth("node1", "acc0", HealthStatus.HEALTHY)])
    async with kubelet_of(driver, Claims()) as (_, channel):
        stub = h1_grpc.DRAResourceHealthStub(channel)
        stream = stub.NodeWatchResources(h1.NodeWatchResourcesRequest())
        async with asyncio.timeout(LIMIT):
            await stream.read()
            driver.reports.put_nowait(OSError("sensor gone"))
            with pytest.raises(grpc.aio.AioRpcError, match="sensor gone"):
                await stream.read()
            driver.reports.put_nowait([DeviceHealth("node1", "acc0", HealthStatus.UNHEALTHY)])
            while True:
                try:
                    stream = stub.NodeWatchResources(h1.NodeWatchResourcesRequest())
                    assert (await stream.read()).devices[0].health == h1.UNHEALTHY
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
