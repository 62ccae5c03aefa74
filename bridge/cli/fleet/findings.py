"""What stands in the way of a mode. Pure: a survey in, findings out, each with a verdict and the mend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bridge.cli.fleet import names
from bridge.cli.fleet.finding import Finding, Weight, minor
from bridge.cli.fleet.states import State
from bridge.cli.fleet.survey import Survey, Unknown
from bridge.cli.fleet.verdicts import ready

Object = Mapping[str, Any]

OLDEST, PLAIN_DRA = 32, 34
"""Minor releases: the oldest that the bridge is for, and the first with DRA on by default."""

BACK = "device-plugin"
"""The mode that needs nothing of DRA."""

_ESSENTIAL = ("resource.k8s.io", "")


def findings(survey: Survey, to: str, group: str = "") -> list[Finding]:
    """Everything, the gravest first; the same said of several nodes is one finding."""
    groups = names.groups(survey, group)
    found = [
        *_server(survey, to),
        *_fields(survey, to),
        *_groups_known(survey, group, groups),
        *_kubelets(survey, to),
        *_daemons(survey),
        *_rights(survey, to),
        *(finding for one in groups for finding in names.of_group(survey, one, to)),
        *_drivers(survey, groups),
        *_held(survey, to),
        *_claims(groups, to),
    ]
    order = list(Weight)
    return sorted(_merged(found), key=lambda one: order.index(one.weight))


def code(found: Iterable[Finding]) -> int:
    """The exit code: 1 if something blocks."""
    return int(any(one.weight is Weight.BLOCKS for one in found))


def _merged(found: Iterable[Finding]) -> list[Finding]:
    together: dict[tuple[str, Weight, str, str], list[str]] = defaultdict(list)
    for one in found:
        together[one.check, one.weight, one.found, one.mend] += one.nodes
    return [Finding(*key, tuple(dict.fromkeys(nodes))) for key, nodes in together.items()]


def _server(survey: Survey, to: str) -> Iterator[Finding]:
    if survey.served:
        served = ", ".join(survey.served)
        yield Finding("API server", Weight.OK, f"{survey.server}, serves resource.k8s.io {served}")
        return
    if to == BACK:
        yield Finding("API server", Weight.OK, f"{survey.server}, serves no DRA, and need not")
        return
    yield Finding(
        "API server",
        Weight.BLOCKS,
        f"{survey.server} serves no resource.k8s.io that the bridge speaks: there is no DRA",
        "use Kubernetes 1.34 or newer; on 1.32 and 1.33 switch on the gate DynamicResourceAllocation and "
        "--runtime-config=resource.k8s.io/v1beta1=true",
    )


def _fields(survey: Survey, to: str) -> Iterator[Finding]:
    kept = survey.kept
    if to != "dual" or not survey.served:
        return
    for what, kept_one, cost in (
        (
            "binding conditions",
            kept.binding_conditions,
            "a pod with a claim that loses a race to a pod of the device plugin is bound all the same, and refused",
        ),
        (
            "device taints",
            kept.taints,
            "such a pod is not moved by the bridge; its events say what to delete",
        ),
    ):
        if isinstance(kept_one, Unknown):
            yield Finding(
                what, Weight.WARNING, f"could not be tried: {kept_one.why}", "allow creating ResourceSlices"
            )
        elif kept_one:
            yield Finding(what, Weight.OK, "the API server keeps them")
        else:
            mend = "use Kubernetes 1.36 or newer; or split the devices for the migration: sharing: partition"
            yield Finding(what, Weight.WARNING, f"the API server drops them: {cost}", mend)


def _groups_known(survey: Survey, group: str, groups: Sequence[names.GroupNames]) -> Iterator[Finding]:
    if isinstance(survey.states, Unknown):
        mend = "apply kustomize/base, whose CustomResourceDefinition is NodeBridge, and allow listing them"
        yield Finding("groups", Weight.BLOCKS, survey.states.why, mend)
    elif not groups:
        what = f"no daemon has told of a group {group}" if group else "no daemon has told of any group"
        yield Finding("groups", Weight.BLOCKS, what, "see `bridge status`, and the daemons' logs")


def _kubelets(survey: Survey, to: str) -> Iterator[Finding]:
    for node in survey.nodes:
        version = str(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", ""))
        at = (str(node["metadata"]["name"]),)
        release = minor(version)
        if release is None or release < OLDEST:
            mend = f"update the node to Kubernetes 1.{OLDEST} or newer"
            yield Finding("kubelet", Weight.BLOCKS, f"version {version or 'unknown'}", mend, at)
        elif release < PLAIN_DRA and to != BACK:
            mend = "see that the gate DynamicResourceAllocation is on in the kubelet"
            yield Finding(
                "kubelet", Weight.WARNING, f"version {version}: DRA is off there by default", mend, at
            )
        else:
            yield Finding("kubelet", Weight.OK, f"version {version}", nodes=at)


def _daemons(survey: Survey) -> Iterator[Finding]:
    states = survey.states if isinstance(survey.states, Mapping) else {}
    pods = survey.daemons if isinstance(survey.daemons, Mapping) else {}
    if isinstance(survey.daemons, Unknown):
        yield Finding("daemon", Weight.WARNING, f"pods: {survey.daemons.why}", "allow listing pods")
    for node in survey.nodes:
        name = str(node["metadata"]["name"])
        yield _daemon(name, states.get(name), pods)


def _daemon(name: str, state: State | None, pods: Mapping[str, Object]) -> Finding:
    if pods and name not in pods:
        mend = "does the DaemonSet select this node? `kubectl get daemonset -A -l app.kubernetes.io/name=device-bridge`"
        return Finding("daemon", Weight.BLOCKS, "no daemon runs there", mend, (name,))
    verdict = ready(state)
    if not verdict.there:
        mend = f"see `bridge status {name}` and the log of its daemon"
        return Finding("daemon", Weight.BLOCKS, verdict.says, mend, (name,))
    return Finding("daemon", Weight.OK, "Ready", nodes=(name,))


def _rights(survey: Survey, to: str) -> Iterator[Finding]:
    if isinstance(survey.lacking, Unknown):
        mend = "allow creating subjectaccessreviews, or run `bridge doctor` in a daemon's pod"
        yield Finding("rights", Weight.WARNING, f"could not be asked: {survey.lacking.why}", mend)
        return
    for group, resource, verb, what in survey.lacking:
        essential = group in _ESSENTIAL and resource != "events" and not (group and to == BACK)
        weight = Weight.BLOCKS if essential else Weight.WARNING
        lacks = f"the daemon may not {verb} {resource}" + (f" of {group}" if group else "")
        yield Finding("rights", weight, f"{lacks}; it {what}", "apply kustomize/base/rbac.yaml")
    if not survey.lacking:
        yield Finding("rights", Weight.OK, "the daemon's account has all of them")


def _drivers(survey: Survey, groups: Sequence[names.GroupNames]) -> Iterator[Finding]:
    """Other drivers of DRA on the nodes: to be known of, since their devices are not in our account."""
    if isinstance(survey.slices, Unknown):
        yield Finding(
            "drivers",
            Weight.WARNING,
            f"could not be listed: {survey.slices.why}",
            "allow listing resourceslices",
        )
        return
    ours = {one.driver for one in groups}
    if isinstance(survey.states, Mapping):
        ours |= {one.driver for state in survey.states.values() for one in state.groups}
    chosen = {str(node["metadata"]["name"]) for node in survey.nodes}
    by_driver: dict[str, list[str]] = defaultdict(list)
    for one in survey.slices:
        spec = one.get("spec") or {}
        if spec.get("driver") not in ours and spec.get("nodeName") in chosen:
            by_driver[str(spec["driver"])].append(str(spec["nodeName"]))
    for driver, nodes in sorted(by_driver.items()):
        found = f"{driver} is there too; it is no trouble unless it offers the same devices"
        yield Finding("drivers", Weight.OK, found, nodes=tuple(dict.fromkeys(nodes)))


def _claims(groups: Sequence[names.GroupNames], to: str) -> Iterator[Finding]:
    """What a plan back does not see: a claim is made when its pod is, so who will claim is not known."""
    classes = ", ".join(sorted({one.device_class for one in groups}))
    if to == BACK and classes:
        found = f"new pods with claims of {classes} find no device on these nodes; who makes them was not looked for"
        yield Finding(
            "claims", Weight.WARNING, found, "convert them back: `bridge convert --to device-plugin`"
        )


def _held(survey: Survey, to: str) -> Iterator[Finding]:
    plane = {"dra": "devicePlugin", BACK: "dra"}.get(to, "")
    if not plane or isinstance(survey.states, Unknown):
        return
    chosen = [str(node["metadata"]["name"]) for node in survey.nodes]
    states = [survey.states[name] for name in chosen if name in survey.states]
    held = {state.node: count for state in states if (count := state.held.get(plane, 0))}
    if held and to == BACK:
        found = f"{sum(held.values())} device(s) are held by claims: the pods keep them until they end"
        yield Finding("pods with devices", Weight.OK, found, nodes=tuple(held))
    elif held:
        yield Finding(
            "pods with devices",
            Weight.WARNING,
            f"{sum(held.values())} device(s) are held through the device plugin: the pods keep them. Where the "
            "resource name stays the same they show as unhealthy until those pods end, and a pod that has to be "
            "admitted again after a reboot is replaced by its controller",
            "`bridge mode set dra --wait-for-holders` avoids that, and waits",
            tuple(held),
        )
