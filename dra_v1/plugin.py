"""A whole DRA driver for its author: the kubelet's socket, registration and publication in one object.

Order (kubelet-contract B.4): the server answers before the kubelet hears of it, and the scheduler hears of devices
only when the kubelet can have them prepared; at the end the registration goes first, then the server. Slices stay.
Whoever needs the parts in another order takes the parts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dra_v1.claims import Claim, ClaimError, ClaimRef, fetch_claims
from dra_v1.driver import Driver
from dra_v1.follow import Turn, at_once
from dra_v1.kube import KubeApi
from dra_v1.registration import RegistrationStatus, WatcherRegistration
from dra_v1.resource_api import ResourceApi
from dra_v1.server import DraServer, Observer
from dra_v1.slice_plan import SMALL_LIMIT
from dra_v1.slice_publisher import Published, PublisherStatus, SlicePublisher
from dra_v1.slice_rules import check_driver_name
from dra_v1.slices import Pool, SliceDevice
from dra_v1.sockets import fits, fitting_path

KUBELET_ROOT: Final = Path("/var/lib/kubelet")

REGISTRATION_PATIENCE_S: Final = 10.0
"""How long publication waits for the kubelet. A pod whose driver is not registered fails to be prepared, and the
kubelet tries again only at its next periodic sync, 60 to 90 s later (seen on 1.37.1); it registers within 1 to 2 s. A
kubelet that is away for longer must not keep slices from before as they are."""


@dataclass(frozen=True, slots=True)
class PluginSockets:
    """Where a driver serves.

    Attributes:
        endpoint: the DRA services.
        registration: the kubelet's way to find it.
    """

    endpoint: Path
    registration: Path


def plugin_sockets(driver_name: str, root: Path = KUBELET_ROOT, pod_uid: str | None = None) -> PluginSockets:
    """The paths that the Go helper would choose (kubelet-contract B.1).

    Args:
        driver_name: name of the driver.
        root: the kubelet's root directory.
        pod_uid: set for rolling updates, where two instances live side by side; needs kubelet 1.33.
    """
    own, registry = root / "plugins" / driver_name, root / "plugins_registry"
    if pod_uid is None:
        return PluginSockets(own / "dra.sock", fitting_path(registry, f"{driver_name}-reg"))
    endpoint = _first_fit(own, f"dra-{pod_uid}.sock", f"dra-{_short_hash(pod_uid, 6)}.sock")
    registration = _first_fit(
        registry,
        f"{driver_name}-{pod_uid}-reg.sock",
        f"{driver_name}-{_short_hash(pod_uid, 8)}-reg.sock",
        f"dra-{_short_hash(chr(0).join((driver_name, pod_uid)), 16)}-reg.sock",
    )
    return PluginSockets(endpoint, registration)


def _first_fit(folder: Path, *names: str) -> Path:
    """The first name whose path a socket can have, else the last: binding it will say what is wrong."""
    return next((folder / name for name in names if fits(folder / name)), folder / names[-1])


def _short_hash(text: str, size: int) -> str:
    digest = hashlib.sha256(text.encode()).digest()[:size]
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class DraPlugin:
    """A driver that is served, registered and published.

    Args:
        driver_name: DNS subdomain of at most 63 characters.
        node_name: this node.
        driver: the author's driver.
        kube: the API server; closing it stays the caller's.
        kubelet_root: the kubelet's root directory.
        pod_uid: UID of this pod, for rolling updates with two instances side by side (kubelet 1.33 on).
        node_uid: UID of the Node; read from the API server if not given.
        devices_per_slice: see `SlicePublisher`.
        on_dropped: called with the fields that this cluster does not keep.
        on_registration: called with each word of the kubelet on the registration.
        observe: called after each Prepare and Unprepare, see `server.Observer`.
        turn: awaited before each list and watch of slices, see `follow.follow`.
    """

    def __init__(
        self,
        *,
        driver_name: str,
        node_name: str,
        driver: Driver,
        kube: KubeApi,
        kubelet_root: Path = KUBELET_ROOT,
        pod_uid: str | None = None,
        node_uid: str | None = None,
        devices_per_slice: int = SMALL_LIMIT,
        on_dropped: Callable[[frozenset[str]], None] | None = None,
        on_registration: Callable[[RegistrationStatus], None] | None = None,
        observe: Observer | None = None,
        turn: Turn = at_once,
    ) -> None:
        check_driver_name(driver_name)
        self.driver_name, self.node_name = driver_name, node_name
        self.sockets = plugin_sockets(driver_name, kubelet_root, pod_uid)
        self._resources = ResourceApi(kube)
        self._server = DraServer(driver_name, driver, self._claims, self.sockets.endpoint, observe=observe)
        self._registration = WatcherRegistration(
            type="DRAPlugin",
            name=driver_name,
            endpoint=self.sockets.endpoint,
            versions=self._server.versions,
            socket_path=self.sockets.registration,
            on_status=on_registration,
        )
        self._publisher = SlicePublisher(
            self._resources,
            driver_name,
            node_name,
            node_uid=node_uid,
            devices_per_slice=devices_per_slice,
            on_dropped=on_dropped,
            turn=turn,
        )
        self._opening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve, register, publish as soon as the kubelet has registered the driver.

        Raises:
            SocketError: one of the sockets cannot be served; then nothing stays behind.
        """
        try:
            await self._server.start()
            await self._registration.start()
        except BaseException:
            await self.stop()
            raise
        self._opening = asyncio.create_task(self._open(), name=f"slices of {self.driver_name}: begin")

    async def _open(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REGISTRATION_PATIENCE_S):
                await self.wait_registered()
        self._publisher.start()

    async def stop(self) -> None:
        """Deregister, stop serving; slices stay for the next start, or for the kubelet to remove."""
        await self._registration.stop()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._publisher.stop()
        await self._server.stop()

    async def publish(self, devices: Sequence[SliceDevice]) -> Published:
        """Publish one pool, named after the node, and wait until it is stored. See `SlicePublisher.publish`."""
        return await self.publish_pools([Pool(self.node_name, devices)])

    async def publish_pools(self, pools: Sequence[Pool]) -> Published:
        """Publish pools and wait until they are stored. See `SlicePublisher.publish`."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        return await self._publisher.publish(pools)

    def offer_pools(self, pools: Sequence[Pool]) -> None:
        """Say what is wanted from now on, without waiting. See `SlicePublisher.offer`."""
        self._publisher.offer(pools)

    async def stored(self) -> None:
        """Return when the API server has what was last offered. See `SlicePublisher.settle`."""
        await self._publisher.settle()

    async def wait(self) -> None:
        """Wait until publication ends by itself, which only a defect can do: for ever, else. Raises the defect."""
        await self._publisher.wait()

    async def wait_registered(self) -> None:
        """Return when the kubelet has registered the driver."""
        await self._registration.wait_registered()

    @property
    def registration(self) -> RegistrationStatus:
        """What the kubelet last said."""
        return self._registration.status

    @property
    def publication(self) -> PublisherStatus:
        """How publication stands."""
        return self._publisher.status

    async def _claims(self, refs: Sequence[ClaimRef]) -> Mapping[str, Claim | ClaimError]:
        return await fetch_claims(self._resources, refs, self.driver_name)
