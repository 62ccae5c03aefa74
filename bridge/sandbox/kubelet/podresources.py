"""The podresources API, with what the real one leaves out (kubelet-contract A.8)."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from bridge.platform.api import podresources_pb2 as pb
from bridge.platform.api.podresources_pb2_grpc import (
    PodResourcesListerServicer,
    add_PodResourcesListerServicer_to_server,
)
from bridge.sandbox.cluster.objects import (
    Object,
    containers,
    init_containers,
    name_of,
    namespace_of,
    sidecar,
    uid_of,
)
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.devices import DeviceManager
from bridge.sandbox.kubelet.dra import DraManager
from bridge.sandbox.kubelet.sockets import serve


class PodResources(PodResourcesListerServicer):
    """List, Get and GetAllocatableResources over what the kubelet's parts know.

    Ordinary init containers are not shown; pods are those the kubelet thinks active, so that a force-deleted pod
    is missing while its containers still run.
    """

    def __init__(
        self, context: Context, devices: DeviceManager, dra: DraManager, pods: Callable[[], list[Object]]
    ) -> None:
        self._context, self._devices, self._dra, self._pods = context, devices, dra, pods
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        path = self._context.paths.pod_resources
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server = grpc.aio.server()
        add_PodResourcesListerServicer_to_server(self, self._server)
        await serve(self._server, path, self._context.paths.base)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def List(
        self,
        request: pb.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse],
    ) -> pb.ListPodResourcesResponse:
        """List active pods; collects the allocations of ended ones first, as the real one does."""
        self._devices.collect()
        return pb.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in self._pods()])

    async def Get(
        self,
        request: pb.GetPodResourcesRequest,
        context: grpc.aio.ServicerContext[pb.GetPodResourcesRequest, pb.GetPodResourcesResponse],
    ) -> pb.GetPodResourcesResponse:
        """Return one active pod, else a plain error."""
        if not self._context.profile.has("PodResourcesDRA"):
            await context.abort(grpc.StatusCode.UNKNOWN, "PodResources API Get method disabled")
        for pod in self._pods():
            if (name_of(pod), namespace_of(pod)) == (request.pod_name, request.pod_namespace):
                return pb.GetPodResourcesResponse(pod_resources=self._pod(pod))
        text = f"pod {request.pod_name} in namespace {request.pod_namespace} not found"
        await context.abort(grpc.StatusCode.UNKNOWN, text)
        raise AssertionError(text)

    async def GetAllocatableResources(
        self,
        request: pb.AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[pb.AllocatableResourcesRequest, pb.AllocatableResourcesResponse],
    ) -> pb.AllocatableResourcesResponse:
        """Return all healthy device plugin devices, those in use included, no DRA devices."""
        devices = [self._device(name, one) for name, ids in self._devices.healthy.items() for one in ids]
        return pb.AllocatableResourcesResponse(devices=devices)

    def _pod(self, pod: Object) -> pb.PodResources:
        shown = [*(c for c in init_containers(pod) if sidecar(c)), *containers(pod)]
        return pb.PodResources(
            name=name_of(pod),
            namespace=namespace_of(pod),
            containers=[self._container(pod, c) for c in shown],
        )

    def _container(self, pod: Object, container: Object) -> pb.ContainerResources:
        answer = pb.ContainerResources(name=container["name"])
        for resource, grant in self._devices.allocations.of(uid_of(pod), container["name"]).items():
            answer.devices.extend(self._device(resource, one) for one in grant.ids)
        if self._context.profile.has("PodResourcesDRA"):
            for _, info, request in self._dra.infos(pod, container):
                claim = answer.dynamic_resources.add(claim_name=info.name, claim_namespace=info.namespace)
                for driver, device in info.devices(request):
                    claim.claim_resources.add(
                        cdi_devices=[pb.CDIDevice(name=name) for name in device.cdi_ids],
                        driver_name=driver,
                        pool_name=device.pool,
                        device_name=device.device,
                        share_id=device.share_id,
                    )
        return answer

    def _device(self, resource: str, device: str) -> pb.ContainerDevices:
        """Return one device: the real one gives each id an entry of its own."""
        answer = pb.ContainerDevices(resource_name=resource, device_ids=[device])
        listed = self._devices.listed.get(resource, {}).get(device)
        if listed is not None and listed.HasField("topology"):
            answer.topology.nodes.extend(pb.NUMANode(ID=node.ID) for node in listed.topology.nodes)
        return answer
