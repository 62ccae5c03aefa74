"""A daemon's token is good for its own node's slices and NodeBridge and for what it has to say of its own devices, and
for no more.

Shown with more rights than the daemon has, so that nothing but the policy stands in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster import Api, ApiError, Cluster
from tests.e2e.objects import Dra, Request
from tests.manifests.builds import KUSTOMIZE, Object

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.oldest, pytest.mark.timeout(1800)]

OWN, OTHER = "node7", "node8"
"""Nodes without a kubelet, which would remove slices of drivers that it does not know."""

DRIVER = "acc.device-bridge.io"
BRIDGES = "device-bridge.io/v1alpha1"
ACCOUNT = "device-bridge"
POLICY = "device-bridge-own-node"


class Daemon:
    """What somebody with a daemon's token may do."""

    def __init__(self, cluster: Cluster, api: Api) -> None:
        self.cluster = cluster
        self.api = api
        self.version = f"resource.k8s.io/{cluster.release.resource_api}"
        self.slices = api.path(self.version, "ResourceSlice")

    def slice(self, name: str, node: str = OWN, pool: str = OWN, **more: Any) -> Object:
        """A slice; without a node if that is empty."""
        where = {"nodeName": node} if node else {}
        size = {"name": pool, "generation": 1, "resourceSliceCount": 1}
        spec = {"driver": DRIVER, **where, "pool": size, "devices": [], **more}
        return {
            "apiVersion": self.version,
            "kind": "ResourceSlice",
            "metadata": {"name": name},
            "spec": spec,
        }

    def create(self, body: Object) -> Object:
        """Publish it."""
        return self.api.create(self.slices, body)

    def speak(self, claim: str, *pools: str, **more: Any) -> Object:
        """Apply a condition for the device of each pool, and more, to the status of a claim."""
        condition = {
            "type": f"{DRIVER}/reserved",
            "status": "True",
            "reason": "Reserved",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        said = [{"driver": DRIVER, "pool": p, "device": "dev", "conditions": [condition]} for p in pools]
        body = {
            "apiVersion": self.version,
            "kind": "ResourceClaim",
            "metadata": {"name": claim, "namespace": "default"},
            "status": {**({"devices": said} if said else {}), **more},
        }
        path = self.api.path(self.version, "ResourceClaim", "default", claim)
        return self.api.patch(f"{path}/status", body, "apply", fieldManager="daemon", force="true")

    def bridge(self, name: str, *more: str) -> str:
        """The path of a NodeBridge, or of more below it."""
        return "/".join((self.api.path(BRIDGES, "NodeBridge"), name, *more))

    def describe(self, name: str, mode: str = "dual", **more: str) -> Object:
        """Apply the status of a NodeBridge."""
        body = {
            "apiVersion": BRIDGES,
            "kind": "NodeBridge",
            "metadata": {"name": name},
            "status": {"mode": mode, **more},
        }
        return self.api.patch(self.bridge(name, "status"), body, "apply", fieldManager="device-bridge")

    def introduce(self, name: str) -> Object:
        """Make a NodeBridge."""
        body = {"apiVersion": BRIDGES, "kind": "NodeBridge", "metadata": {"name": name}, "spec": {}}
        return self.api.create(self.api.path(BRIDGES, "NodeBridge"), body)


@pytest.fixture(scope="module")
def granted(cluster: Cluster) -> None:
    """The shipped rights and policy, two nodes, and all rights on slices, claims and NodeBridges on top."""
    for name in ("node-bridge-crd.yaml", "rbac.yaml", "admission-policy.yaml"):
        cluster.apply(KUSTOMIZE / "base" / name)
    cluster.kubectl(
        "wait", "--for=condition=Established", "crd/nodebridges.device-bridge.io", "--timeout=30s"
    )
    for name in (OWN, OTHER):
        cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    rules = [
        {"apiGroups": ["resource.k8s.io", "device-bridge.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/driver"], "verbs": ["*"]},
    ]
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "test-too-much"}}
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": ACCOUNT}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "test-too-much"}
    cluster.apply({**head, "kind": "ClusterRole", "rules": rules})
    cluster.apply({**head, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [account]})


@pytest.fixture(scope="module")
def daemon(cluster: Cluster, granted: None) -> Daemon:
    """The daemon of one node, once rights and policy are in force."""
    node = {"apiVersion": "v1", "kind": "Node", **cluster.get("Node", OWN)}
    token = cluster.service_account_token(ACCOUNT, ACCOUNT, bound=node)
    made = Daemon(cluster, cluster.api_as(token))

    def in_force() -> bool:
        try:
            made.api.request("POST", made.slices, made.slice("probe", OTHER), query={"dryRun": "All"})
        except ApiError as error:
            return POLICY in str(error)
        return False

    cluster.wait_for(in_force, 30, "the policy to be in force")
    return made


@pytest.fixture
def others(cluster: Cluster, daemon: Daemon) -> Iterator[Object]:
    """A slice of another node."""
    made = cluster.api.create(daemon.slices, daemon.slice("others", OTHER, OTHER))
    yield made
    cluster.api.delete(f"{daemon.slices}/others")


@pytest.fixture
def claim(cluster: Cluster, daemon: Daemon) -> Iterator[str]:
    """A claim that has a device of each node."""
    dra = Dra(cluster.release.resource_api)
    cluster.apply(dra.claim("both", Request("one", "any", count=2)))
    path = daemon.api.path(daemon.version, "ResourceClaim", "default", "both")
    results = [{"request": "one", "driver": DRIVER, "pool": p, "device": "dev"} for p in (OWN, OTHER)]
    allocation = {"devices": {"results": results}}
    cluster.api.patch(f"{path}/status", {"status": {"allocation": allocation}})
    yield "both"
    cluster.delete("ResourceClaim", "both")


def refusal(call: Callable[[], object]) -> str:
    """What the policy says to it."""
    with pytest.raises(ApiError) as caught:
        call()
    assert POLICY in str(caught.value), caught.value
    return str(caught.value)


def test_the_expressions_have_no_doubtful_types(cluster: Cluster, daemon: Daemon) -> None:
    def checked() -> Object | None:
        found = cluster.get(
            "ValidatingAdmissionPolicy", POLICY, api_version="admissionregistration.k8s.io/v1"
        )
        seen = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        return found if seen else None

    found = cluster.wait_for(checked, 30, "the policy to be looked at")
    assert found is not None
    assert not found["status"].get("typeChecking", {}).get("expressionWarnings")


def test_its_own_slice_is_its_own(daemon: Daemon) -> None:
    made = daemon.create(daemon.slice("own"))
    made["spec"]["pool"]["generation"] = 2
    changed = daemon.api.replace(f"{daemon.slices}/own", made)
    assert changed["spec"]["pool"]["generation"] == 2
    daemon.api.delete(f"{daemon.slices}/own")


def test_a_slice_of_another_node_is_not(daemon: Daemon, others: Object) -> None:
    said = refusal(lambda: daemon.create(daemon.slice("foreign", OTHER, OTHER)))
    assert f"the daemon of node {OWN} writes ResourceSlices of its own node only" in said
    others["spec"]["pool"]["generation"] = 2
    refusal(lambda: daemon.api.replace(f"{daemon.slices}/others", others))
    refusal(lambda: daemon.api.delete(f"{daemon.slices}/others"))


def test_a_slice_for_all_nodes_or_for_a_selector_is_not(daemon: Daemon) -> None:
    refusal(lambda: daemon.create(daemon.slice("all", "", allNodes=True)))
    name = {"key": "metadata.name", "operator": "In", "values": [OWN]}
    selector = {"nodeSelectorTerms": [{"matchFields": [name]}]}
    refusal(lambda: daemon.create(daemon.slice("selected", "", nodeSelector=selector)))


def test_the_pool_of_another_node_cannot_be_made_void(daemon: Daemon) -> None:
    assert "of its own pool only" in refusal(lambda: daemon.create(daemon.slice("void", OWN, OTHER)))


def test_what_somebody_else_left_on_its_node_may_go(cluster: Cluster, daemon: Daemon) -> None:
    cluster.api.create(daemon.slices, daemon.slice("left", OWN, "some-pool"))
    daemon.api.delete(f"{daemon.slices}/left")


def test_a_token_that_is_bound_to_no_node_is_good_for_nothing(cluster: Cluster, daemon: Daemon) -> None:
    path = f"/api/v1/namespaces/{ACCOUNT}/serviceaccounts/{ACCOUNT}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    unbound = Daemon(cluster, cluster.api_as(cluster.api.create(path, asked)["status"]["token"]))
    assert "is not bound to a node" in refusal(lambda: unbound.create(unbound.slice("unbound")))


def test_others_are_not_met(cluster: Cluster, daemon: Daemon) -> None:
    cluster.api.create(daemon.slices, daemon.slice("by-admin", "", allNodes=True))
    cluster.api.delete(f"{daemon.slices}/by-admin")


def test_it_speaks_of_its_own_devices(cluster: Cluster, daemon: Daemon, claim: str) -> None:
    if cluster.release.major_minor < (1, 33):
        pytest.skip("claims have no status of devices before 1.33")
    stored = daemon.speak(claim, OWN)
    assert [entry["pool"] for entry in stored["status"]["devices"]] == [OWN]


def test_it_does_not_speak_of_devices_of_another_node(cluster: Cluster, daemon: Daemon, claim: str) -> None:
    if cluster.release.major_minor < (1, 33):
        pytest.skip("claims have no status of devices before 1.33")
    said = refusal(lambda: daemon.speak(claim, OWN, OTHER))
    assert f"the daemon of node {OWN} speaks of devices of its own node only" in said


def test_it_changes_neither_the_allocation_nor_for_whom_it_is(
    cluster: Cluster, daemon: Daemon, claim: str
) -> None:
    dra = Dra(cluster.release.resource_api)
    cluster.apply(dra.claim("none", Request("one", "any")))
    result = {"request": "one", "driver": DRIVER, "pool": OWN, "device": "dev"}
    user = {"resource": "pods", "name": "mine", "uid": "0"}
    for name, status in (
        ("none", {"allocation": {"devices": {"results": [result]}}}),
        (claim, {"allocation": None}),
        (claim, {"reservedFor": [user]}),
    ):
        path = daemon.api.path(daemon.version, "ResourceClaim", "default", name)
        said = refusal(partial(daemon.api.patch, f"{path}/status", {"status": status}))
        assert "does not change what is allocated" in said
    cluster.delete("ResourceClaim", "none")


def test_it_says_how_its_own_node_stands(daemon: Daemon) -> None:
    daemon.introduce(OWN)
    assert daemon.describe(OWN)["status"] == {"mode": "dual"}
    daemon.api.delete(daemon.bridge(OWN))


def test_it_does_not_say_how_another_node_stands(cluster: Cluster, daemon: Daemon) -> None:
    assert f"the daemon of node {OWN} writes the NodeBridge of its own node only" in refusal(
        lambda: daemon.introduce(OTHER)
    )
    admin = Daemon(cluster, cluster.api)
    admin.introduce(OTHER)
    refusal(lambda: daemon.describe(OTHER))
    refusal(lambda: daemon.api.patch(daemon.bridge(OTHER), {"metadata": {"labels": {"mine": "yes"}}}))
    refusal(lambda: daemon.api.delete(daemon.bridge(OTHER)))
    assert admin.describe(OTHER)["status"] == {"mode": "dual"}
    admin.api.delete(admin.bridge(OTHER))


def test_a_status_that_nobody_could_read_is_not_taken(cluster: Cluster, daemon: Daemon) -> None:
    daemon.introduce(OWN)
    with pytest.raises(ApiError, match="Unsupported value"):
        daemon.describe(OWN, mode="no-such-mode")
    with pytest.raises(ApiError, match="field not declared in schema") as caught:
        daemon.describe(OWN, more="than the cluster knows of")
    assert caught.value.code == 500, caught.value
    daemon.api.delete(daemon.bridge(OWN))
