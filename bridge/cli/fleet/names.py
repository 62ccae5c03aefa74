"""The names of groups in the cluster: who asks by them, what carries them, and what clashes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.cli.fleet.finding import Finding, Weight, minor
from bridge.cli.fleet.survey import Survey, Unknown
from bridge.cli.fleet.workloads import Use, uses

Object = Mapping[str, Any]

SAME_NAME = 36
"""The first minor release whose kubelet leaves a resource that DRA serves to DRA (kubelet-contract D)."""

SHOWN = 6
_CARRY = "let the DeviceClass carry the name (keepResourceName: true and kustomize/components/extended-resource-names)"
_CONVERT = "convert them: `bridge convert`"


@dataclass(frozen=True, slots=True)
class GroupNames:
    """What a group is called; the same on all nodes that have it, or else it is several."""

    group: str
    resource: str
    driver: str
    device_class: str

    @property
    def check(self) -> str:
        """How findings about it are headed."""
        return f"group {self.group}"


def groups(survey: Survey, only: str = "") -> list[GroupNames]:
    """The groups that the daemons of the chosen nodes tell of."""
    states = survey.states if isinstance(survey.states, Mapping) else {}
    chosen = [states[name] for node in survey.nodes if (name := str(node["metadata"]["name"])) in states]
    found = {
        GroupNames(one.name, one.resource, one.driver, one.device_class)
        for state in chosen
        for one in state.groups
        if only in ("", one.name)
    }
    return sorted(found, key=lambda one: (one.group, one.resource))


def of_group(survey: Survey, one: GroupNames, to: str) -> Iterator[Finding]:
    """What there is to say about a group's names."""
    if to != "device-plugin":
        yield from _class(survey, one, to)
    if to == "dra":
        yield from _stranded(survey, one)
    yield from _rivals(survey, one)
    if to != "device-plugin":
        yield from _quotas(survey, one)


def _class_of(survey: Survey, one: GroupNames) -> Object | None:
    classes: Sequence[Object] = () if isinstance(survey.classes, Unknown) else survey.classes
    return next((c for c in classes if c["metadata"]["name"] == one.device_class), None)


def carries(survey: Survey, one: GroupNames) -> bool:
    """Whether DRA serves pods that ask by the group's resource name."""
    found = _class_of(survey, one)
    return bool(found and (found.get("spec") or {}).get("extendedResourceName") == one.resource)


def _class(survey: Survey, one: GroupNames, to: str) -> Iterator[Finding]:
    if isinstance(survey.classes, Unknown):
        found = f"DeviceClasses could not be listed: {survey.classes.why}"
        yield Finding(one.check, Weight.WARNING, found, "allow listing deviceclasses")
        return
    if not survey.served:
        return
    found_class = _class_of(survey, one)
    if found_class is None:
        mend = "apply what `bridge config manifests` prints"
        yield Finding(
            one.check, Weight.BLOCKS, f"there is no DeviceClass {one.device_class}: nobody can claim", mend
        )
        return
    selectors = (found_class.get("spec") or {}).get("selectors") or []
    if not any(one.driver in str((each.get("cel") or {}).get("expression", "")) for each in selectors):
        found = f"DeviceClass {one.device_class} does not select the driver {one.driver}"
        yield Finding(one.check, Weight.WARNING, found, f"select device.driver == '{one.driver}'")
    named = [
        str(each["metadata"]["name"])
        for each in survey.classes
        if (each.get("spec") or {}).get("extendedResourceName") == one.resource
    ]
    if len(named) > 1 or (named and named != [one.device_class]):
        yield Finding(
            one.check,
            Weight.BLOCKS,
            f"{one.resource} is the extendedResourceName of {', '.join(named)}: the scheduler takes the newest",
            f"leave it in {one.device_class} alone",
        )


def _stranded(survey: Survey, one: GroupNames) -> Iterator[Finding]:
    """Pods that ask by the resource name, once no device plugin offers it."""
    if isinstance(survey.workloads, Unknown):
        found = f"workloads that ask for {one.resource} could not be looked for: {survey.workloads.why}"
        yield Finding(one.check, Weight.WARNING, found, "allow listing pods, and what makes them")
        return
    asking = uses(survey.workloads, one.resource)
    if not asking:
        yield Finding(one.check, Weight.OK, f"nobody asks for {one.resource}")
        return
    who = f"{one.resource} is asked for by {_who(asking)}"
    if carries(survey, one):
        yield Finding(one.check, Weight.OK, f"{who}; DeviceClass {one.device_class} serves that name")
        for node in survey.nodes:
            version = str(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", ""))
            if (minor(version) or 0) < SAME_NAME:
                found = (
                    f"a kubelet {version} asks the device plugin too for a pod that DRA serves by that name"
                )
                mend = f"update the node to Kubernetes 1.{SAME_NAME} or newer; or {_CONVERT}"
                yield Finding(one.check, Weight.BLOCKS, found, mend, (str(node["metadata"]["name"]),))
        return
    kept = survey.kept.extended_resource_name
    way = _CONVERT if kept is False else f"{_CARRY}; or {_CONVERT}"
    why = (
        " (this API server drops extendedResourceName, so DRA cannot serve that name)"
        if kept is False
        else ""
    )
    yield Finding(
        one.check,
        Weight.BLOCKS,
        f"{who}; on nodes in dra their new pods stay pending{why}",
        f"{way}; or stay in dual, or say --accept-stranded-pods",
    )


def _who(asking: Sequence[Use]) -> str:
    more = len(asking) - SHOWN
    pods = sum(one.pods for one in asking)
    return (
        f"{len(asking)} workload(s) with {pods} pod(s): "
        + ", ".join(str(one) for one in asking[:SHOWN])
        + (f" and {more} more" if more > 0 else "")
    )


def _rivals(survey: Survey, one: GroupNames) -> Iterator[Finding]:
    """Somebody else under our names."""
    states = survey.states if isinstance(survey.states, Mapping) else {}
    ours = {name for name, state in states.items() if any(g.driver == one.driver for g in state.groups)}
    slices: Sequence[Object] = () if isinstance(survey.slices, Unknown) else survey.slices
    foreign = [
        str(each["metadata"]["name"])
        for each in slices
        if (each.get("spec") or {}).get("driver") == one.driver and each["spec"].get("nodeName") not in ours
    ]
    if foreign:
        yield Finding(
            one.check,
            Weight.BLOCKS,
            f"ResourceSlices of driver {one.driver} that no daemon of ours publishes: {_some(foreign)}",
            "remove the other driver and its slices, or give the group another driverName",
        )
    for node in survey.everywhere:
        name = str(node["metadata"]["name"])
        offered = ((node.get("status") or {}).get("capacity") or {}).get(one.resource, "0")
        if name not in states and str(offered) != "0":
            yield Finding(
                one.check,
                Weight.WARNING,
                f"another device plugin offers {offered} of {one.resource}, outside the bridge's account",
                "take it off the node before the bridge's daemon comes there",
                (name,),
            )


def _quotas(survey: Survey, one: GroupNames) -> Iterator[Finding]:
    if isinstance(survey.quotas, Unknown):
        found = f"ResourceQuotas could not be listed: {survey.quotas.why}"
        yield Finding("quotas", Weight.WARNING, found, "allow listing resourcequotas")
        return
    key, new = f"requests.{one.resource}", f"{one.device_class}.deviceclass.resource.k8s.io/devices"
    limited = []
    for quota in survey.quotas:
        hard = (quota.get("spec") or {}).get("hard") or {}
        if key in hard and new not in hard:
            limited.append(f"{quota['metadata'].get('namespace')}/{quota['metadata']['name']}")
    if limited:
        yield Finding(
            "quotas",
            Weight.WARNING,
            f"ResourceQuota {_some(limited)} limits {key}, which does not count claims of {one.device_class}",
            f"limit {new} beside it",
        )


def _some(these: Sequence[str]) -> str:
    more = len(these) - SHOWN
    return ", ".join(these[:SHOWN]) + (f" and {more} more" if more > 0 else "")
