"""The wire contract (kubelet-contract A.1, A.2, A.8, B.1, B.3): names and numbers in the generated stubs."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from bridge.platform.api import cri_pb2, podresources_pb2
from deviceplugin_v1beta1.api import deviceplugin_pb2
from dra_v1.api import dra_v1_pb2, dra_v1beta1_pb2, health_v1_pb2, health_v1alpha1_pb2, pluginregistration_pb2
from tests import protos

DRA_V1_CLAIM_FIELDS = {"namespace": 1, "uid": 2, "name": 3}
HEALTH_FIELDS = {
    "device": 1,
    "health": 2,
    "last_updated_time": 3,
    "health_check_timeout_seconds": 4,
    "message": 5,
}

MESSAGES = [
    (deviceplugin_pb2, "RegisterRequest", {"version": 1, "endpoint": 2, "resource_name": 3, "options": 4}),
    (
        deviceplugin_pb2,
        "DevicePluginOptions",
        {"pre_start_required": 1, "get_preferred_allocation_available": 2},
    ),
    (deviceplugin_pb2, "Device", {"ID": 1, "health": 2, "topology": 3}),
    (deviceplugin_pb2, "TopologyInfo", {"nodes": 1}),
    (deviceplugin_pb2, "NUMANode", {"ID": 1}),
    (deviceplugin_pb2, "ListAndWatchResponse", {"devices": 1}),
    (deviceplugin_pb2, "PreStartContainerRequest", {"devices_ids": 1}),
    (deviceplugin_pb2, "AllocateRequest", {"container_requests": 1}),
    (deviceplugin_pb2, "ContainerAllocateRequest", {"devices_ids": 1}),
    (deviceplugin_pb2, "AllocateResponse", {"container_responses": 1}),
    (
        deviceplugin_pb2,
        "ContainerAllocateResponse",
        {"envs": 1, "mounts": 2, "devices": 3, "annotations": 4, "cdi_devices": 5},
    ),
    (deviceplugin_pb2, "Mount", {"container_path": 1, "host_path": 2, "read_only": 3}),
    (deviceplugin_pb2, "DeviceSpec", {"container_path": 1, "host_path": 2, "permissions": 3}),
    (deviceplugin_pb2, "CDIDevice", {"name": 1}),
    (
        deviceplugin_pb2,
        "ContainerPreferredAllocationRequest",
        {"available_deviceIDs": 1, "must_include_deviceIDs": 2, "allocation_size": 3},
    ),
    (deviceplugin_pb2, "ContainerPreferredAllocationResponse", {"deviceIDs": 1}),
    (
        pluginregistration_pb2,
        "PluginInfo",
        {"type": 1, "name": 2, "endpoint": 3, "supported_versions": 4},
    ),
    (pluginregistration_pb2, "RegistrationStatus", {"plugin_registered": 1, "error": 2}),
    (dra_v1_pb2, "Claim", DRA_V1_CLAIM_FIELDS),
    (dra_v1beta1_pb2, "Claim", DRA_V1_CLAIM_FIELDS),
    (dra_v1_pb2, "NodePrepareResourceResponse", {"devices": 1, "error": 2}),
    (
        dra_v1_pb2,
        "Device",
        {"request_names": 1, "pool_name": 2, "device_name": 3, "cdi_device_ids": 4, "share_id": 5},
    ),
    (
        dra_v1beta1_pb2,
        "Device",
        {"request_names": 1, "pool_name": 2, "device_name": 3, "cdi_device_ids": 4},
    ),
    (dra_v1_pb2, "NodeUnprepareResourceResponse", {"error": 1}),
    (health_v1_pb2, "DeviceHealth", HEALTH_FIELDS),
    (health_v1alpha1_pb2, "DeviceHealth", HEALTH_FIELDS),
    (health_v1_pb2, "DeviceIdentifier", {"pool_name": 1, "device_name": 2}),
    (
        podresources_pb2,
        "PodResources",
        {"name": 1, "namespace": 2, "containers": 3, "cpu_ids": 4, "memory": 5},
    ),
    (
        podresources_pb2,
        "ContainerResources",
        {"name": 1, "devices": 2, "cpu_ids": 3, "memory": 4, "dynamic_resources": 5},
    ),
    (podresources_pb2, "ContainerDevices", {"resource_name": 1, "device_ids": 2, "topology": 3}),
    (podresources_pb2, "DynamicResource", {"claim_name": 2, "claim_namespace": 3, "claim_resources": 4}),
    (
        podresources_pb2,
        "ClaimResource",
        {"cdi_devices": 1, "driver_name": 2, "pool_name": 3, "device_name": 4, "share_id": 5},
    ),
    (podresources_pb2, "AllocatableResourcesResponse", {"devices": 1, "cpu_ids": 2, "memory": 3}),
    (
        cri_pb2,
        "PodSandbox",
        {
            "id": 1,
            "metadata": 2,
            "state": 3,
            "created_at": 4,
            "labels": 5,
            "annotations": 6,
            "runtime_handler": 7,
        },
    ),
    (cri_pb2, "PodSandboxMetadata", {"name": 1, "uid": 2, "namespace": 3, "attempt": 4}),
    (
        cri_pb2,
        "Container",
        {
            "id": 1,
            "pod_sandbox_id": 2,
            "metadata": 3,
            "image_ref": 5,
            "state": 6,
            "created_at": 7,
            "labels": 8,
            "annotations": 9,
        },
    ),
]

METHODS = {
    deviceplugin_pb2: {
        "/v1beta1.Registration/Register": "",
        "/v1beta1.DevicePlugin/GetDevicePluginOptions": "",
        "/v1beta1.DevicePlugin/ListAndWatch": "stream",
        "/v1beta1.DevicePlugin/GetPreferredAllocation": "",
        "/v1beta1.DevicePlugin/Allocate": "",
        "/v1beta1.DevicePlugin/PreStartContainer": "",
    },
    pluginregistration_pb2: {
        "/pluginregistration.Registration/GetInfo": "",
        "/pluginregistration.Registration/NotifyRegistrationStatus": "",
    },
    dra_v1_pb2: {
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources": "",
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources": "",
    },
    dra_v1beta1_pb2: {
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources": "",
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources": "",
    },
    health_v1_pb2: {"/v1.DRAResourceHealth/NodeWatchResources": "stream"},
    health_v1alpha1_pb2: {"/v1alpha1.DRAResourceHealth/NodeWatchResources": "stream"},
    podresources_pb2: {
        "/v1.PodResourcesLister/List": "",
        "/v1.PodResourcesLister/GetAllocatableResources": "",
        "/v1.PodResourcesLister/Get": "",
    },
    cri_pb2: {
        "/runtime.v1.RuntimeService/Version": "",
        "/runtime.v1.RuntimeService/ListPodSandbox": "",
        "/runtime.v1.RuntimeService/ListContainers": "",
        "/runtime.v1.RuntimeService/Status": "",
    },
}


def test_stubs_are_what_the_protos_generate() -> None:
    assert protos.outdated() == []


@pytest.mark.parametrize(
    ("module", "message", "numbers"),
    [pytest.param(*case, id=f"{case[0].DESCRIPTOR.package}.{case[1]}") for case in MESSAGES],
)
def test_fields_have_the_numbers_of_the_contract(
    module: object, message: str, numbers: dict[str, int]
) -> None:
    descriptor = _file(module).message_types_by_name[message]
    assert {field.name: field.number for field in descriptor.fields} == numbers


@pytest.mark.parametrize("module", METHODS, ids=lambda module: str(module.DESCRIPTOR.name))
def test_methods_have_the_names_of_the_contract(module: object) -> None:
    found = {
        f"/{service.full_name}/{method.name}": _streaming(method)
        for service in _file(module).services_by_name.values()
        for method in service.methods
    }
    assert found == METHODS[module]  # type: ignore[index]


def test_share_id_tells_absent_from_empty() -> None:
    assert not dra_v1_pb2.Device().HasField("share_id")
    assert dra_v1_pb2.Device(share_id="").HasField("share_id")


def test_container_states_have_the_numbers_of_the_runtime_interface() -> None:
    assert dict(cri_pb2.ContainerState.items()) == {
        "CONTAINER_CREATED": 0,
        "CONTAINER_RUNNING": 1,
        "CONTAINER_EXITED": 2,
        "CONTAINER_UNKNOWN": 3,
    }
    assert dict(cri_pb2.PodSandboxState.items()) == {"SANDBOX_READY": 0, "SANDBOX_NOTREADY": 1}


def _file(module: object) -> FileDescriptor:
    descriptor = vars(module)["DESCRIPTOR"]
    assert isinstance(descriptor, FileDescriptor)
    return descriptor


def _streaming(method: MethodDescriptor) -> str:
    assert not method.client_streaming
    return "stream" if method.server_streaming else ""
