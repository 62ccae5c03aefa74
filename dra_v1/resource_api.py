"""The resource.k8s.io API in whichever version the cluster serves; above this file only the shape of v1.

Chooses v1, else v1beta2, else v1beta1 (kubelet-contract C, C.6) and converts claims and slices. Chooses again
when the server stops serving what was chosen, as an upgrade of the cluster under a running daemon does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from dra_v1 import points
from dra_v1.kube import Json, KubeApi, NotFound

log = logging.getLogger(__name__)

GROUP = "resource.k8s.io"
VERSIONS = ("v1", "v1beta2", "v1beta1")
"""What this library speaks, best first."""

T = TypeVar("T")


class NoResourceApi(Exception):
    """The cluster serves no resource.k8s.io version that this library speaks: there is no DRA here."""

    def __init__(self, served: tuple[str, ...]) -> None:
        super().__init__(served)
        self.served = served

    def __str__(self) -> str:
        found = f"only {', '.join(self.served)}" if self.served else "no version at all"
        return (
            f"the cluster serves {found} of {GROUP}, and DRA needs one of {', '.join(VERSIONS)}: "
            "use Kubernetes 1.34 or newer, or enable the API (--runtime-config) and the gate "
            "DynamicResourceAllocation on 1.32 and 1.33"
        )


class ResourceApi:
    """Claims and slices of one cluster, in the shape of v1.

    Args:
        api: the client; its errors pass through.
    """

    def __init__(self, api: KubeApi) -> None:
        self.api = api
        self._version = ""

    async def version(self) -> str:
        """The version in use; asked of the server once and after `forget`. Raises `NoResourceApi`."""
        if not self._version:
            try:
                group = await self.api.get(f"/apis/{GROUP}", attempts=3)
            except NotFound as error:
                raise NoResourceApi(()) from error
            served = tuple(str(entry.get("version")) for entry in group.get("versions") or ())
            best = next((version for version in VERSIONS if version in served), None)
            if best is None:
                raise NoResourceApi(served)
            log.info("resource API chosen", extra={"version": best, "served": ", ".join(served)})
            self._version = best
        return self._version

    def forget(self) -> None:
        """Ask again at the next use which version is served."""
        self._version = ""

    async def slices_path(self, name: str = "") -> str:
        """Path of the ResourceSlices, or of one."""
        return self._path(await self.version(), "resourceslices", name)

    async def claim_path(self, namespace: str, name: str, subresource: str = "") -> str:
        """Path of one ResourceClaim, or of its `status`."""
        path = self._path(await self.version(), f"namespaces/{namespace}/resourceclaims", name)
        return f"{path}/{subresource}" if subresource else path

    async def get_claim(self, namespace: str, name: str, *, attempts: int = 1) -> Json:
        """One ResourceClaim in the shape of v1."""

        async def read(version: str) -> Json:
            path = self._path(version, f"namespaces/{namespace}/resourceclaims", name)
            return claim_to_v1(await self.api.get(path, attempts=attempts), version)

        return await self._with_version(read)

    async def find_claim(self, namespace: str, name: str) -> Json | None:
        """The same, or None if there is none of that name. Raises what `get_claim` does where that cannot be told: a
        server that does not know the kind knows nothing of the claim."""
        try:
            return await self.get_claim(namespace, name)
        except NotFound as error:
            if error.unserved:
                raise
            return None

    async def claims_path(self, namespace: str) -> str:
        """Path of a namespace's ResourceClaims: to watch one of them by its name, never all."""
        return self._path(await self.version(), f"namespaces/{namespace}/resourceclaims")

    async def claim_event(self, body: Json) -> Json:
        """A ResourceClaim from a watch of `claims_path`, in the shape of v1."""
        return claim_to_v1(body, await self.version())

    async def apply_claim_status(
        self, namespace: str, name: str, meta: Json, status: Json, *, manager: str
    ) -> Json:
        """Apply what one field manager has to say in a claim's status (kubelet-contract C.5); the stored claim.

        `meta`: `uid` and `resourceVersion` make sure that it is said of that very state, else `Conflict`.
        """

        async def write(version: str) -> Json:
            path = self._path(version, f"namespaces/{namespace}/resourceclaims", name) + "/status"
            body = {
                "apiVersion": f"{GROUP}/{version}",
                "kind": "ResourceClaim",
                "metadata": {"name": name, "namespace": namespace, **meta},
                "status": status,
            }
            params = {"fieldManager": manager, "force": "true"}
            return claim_to_v1(await self.api.patch(path, body, kind="apply", params=params), version)

        points.reached(points.Point.CLAIM_STATUS_APPLYING)
        stored = await self._with_version(write)
        points.reached(points.Point.CLAIM_STATUS_APPLIED)
        return stored

    async def create_slice(self, body: Json) -> Json:
        """Create a ResourceSlice given in the shape of v1; the stored one."""

        async def write(version: str) -> Json:
            sent = slice_from_v1(body, version)
            return slice_to_v1(await self.api.create(self._path(version, "resourceslices"), sent), version)

        points.reached(points.Point.SLICE_CREATING)
        stored = await self._with_version(write)
        points.reached(points.Point.SLICE_CREATED)
        return stored

    async def replace_slice(self, body: Json) -> Json:
        """Replace a ResourceSlice given in the shape of v1; the stored one. Raises `Conflict`."""

        async def write(version: str) -> Json:
            path = self._path(version, "resourceslices", str(body["metadata"]["name"]))
            return slice_to_v1(await self.api.replace(path, slice_from_v1(body, version)), version)

        points.reached(points.Point.SLICE_UPDATING)
        stored = await self._with_version(write)
        points.reached(points.Point.SLICE_UPDATED)
        return stored

    async def get_slice(self, name: str) -> Json:
        """One ResourceSlice in the shape of v1."""

        async def read(version: str) -> Json:
            return slice_to_v1(await self.api.get(self._path(version, "resourceslices", name)), version)

        return await self._with_version(read)

    async def delete_slice(self, name: str, *, uid: str, resource_version: str) -> None:
        """Delete a ResourceSlice if it is still that very one. Raises `Conflict`."""

        async def remove(version: str) -> None:
            path = self._path(version, "resourceslices", name)
            await self.api.delete(path, uid=uid, resource_version=resource_version)

        points.reached(points.Point.SLICE_DELETING)
        await self._with_version(remove)
        points.reached(points.Point.SLICE_DELETED)

    async def _with_version(self, call: Callable[[str], Awaitable[T]]) -> T:
        version = await self.version()
        try:
            return await call(version)
        except NotFound as error:
            if not error.unserved:
                raise
            self.forget()
            if await self.version() == version:
                raise
            return await call(await self.version())

    @staticmethod
    def _path(version: str, collection: str, name: str = "") -> str:
        path = f"/apis/{GROUP}/{version}/{collection}"
        return f"{path}/{name}" if name else path


def slice_from_v1(body: Json, version: str) -> Json:
    """A ResourceSlice in the shape of v1 as `version` writes it: v1beta1 wraps a device's body in `basic`."""
    out = {**body, "apiVersion": f"{GROUP}/{version}", "kind": "ResourceSlice"}
    if version == "v1beta1" and body.get("spec", {}).get("devices"):
        devices = [
            {"name": device["name"], "basic": {k: v for k, v in device.items() if k != "name"}}
            for device in body["spec"]["devices"]
        ]
        out["spec"] = {**body["spec"], "devices": devices}
    return out


def slice_to_v1(body: Json, version: str) -> Json:
    """A ResourceSlice of `version` in the shape of v1."""
    out = {**body, "apiVersion": f"{GROUP}/v1", "kind": "ResourceSlice"}
    if version == "v1beta1" and body.get("spec", {}).get("devices"):
        devices = [{"name": d["name"], **(d.get("basic") or {})} for d in body["spec"]["devices"]]
        out["spec"] = {**body["spec"], "devices": devices}
    return out


_REQUEST_OWN = ("name", "firstAvailable")


def claim_to_v1(body: Json, version: str) -> Json:
    """A ResourceClaim of `version` in the shape of v1: v1beta1 has a request's body flat, v1 in `exactly`."""
    out = {**body, "apiVersion": f"{GROUP}/v1", "kind": "ResourceClaim"}
    devices: Mapping[str, object] = body.get("spec", {}).get("devices") or {}
    requests = devices.get("requests")
    if version == "v1beta1" and isinstance(requests, list):
        wrapped = [_request_to_v1(request) for request in requests]
        out["spec"] = {**body["spec"], "devices": {**devices, "requests": wrapped}}
    return out


def _request_to_v1(request: Json) -> Json:
    if request.get("firstAvailable"):
        return request
    exactly = {key: value for key, value in request.items() if key not in _REQUEST_OWN}
    return {"name": request["name"], "exactly": exactly}
