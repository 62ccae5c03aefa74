"""`bridge doctor`: is what the daemon needs there on this node, and how to mend what is not. Changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bridge.cli.client import NoDaemon, ask
from bridge.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    DevRootOption,
    KubeconfigOption,
    Output,
    OutputOption,
    SysRootOption,
    dump,
    load_config,
    roots,
)
from bridge.cli.finding import Finding

if TYPE_CHECKING:
    from bridge.config import Config
    from bridge.platform.roots import Roots
    from dra_v1.kube import KubeApi

RIGHTS = (
    ("", "nodes", "get", "slices name the Node's UID as their owner"),
    ("", "nodes", "list", "labels of the Node say which mode is wanted"),
    ("", "nodes", "watch", "hears when another mode is wanted, and when allocatable is 0"),
    (
        "resource.k8s.io",
        "deviceclasses",
        "get",
        "sees that a class carries the resource name before the device plugin closes",
    ),
    ("", "pods", "list", "reserves devices before the kubelet asks; proves that pods have ended"),
    ("", "pods", "watch", "reserves devices before the kubelet asks"),
    ("", "events", "create", "tells refusals and quarantines"),
    ("", "events", "patch", "tells repeats of them"),
    ("device-bridge.io", "nodebridges", "get", "goes on with what the NodeBridge of this node said last"),
    ("device-bridge.io", "nodebridges", "create", "shows in a NodeBridge how this node stands"),
    ("device-bridge.io", "nodebridges/status", "patch", "shows in a NodeBridge how this node stands"),
    ("resource.k8s.io", "resourceclaims", "get", "Prepare reads the claim"),
    ("resource.k8s.io", "resourceclaims", "watch", "follows claims that are not yet allocated or prepared"),
    ("resource.k8s.io", "resourceclaims/status", "patch", "two-phase binding"),
    *(
        ("resource.k8s.io", "resourceslices", verb, "offers devices through DRA")
        for verb in ("get", "list", "watch", "create", "update", "delete")
    ),
)
"""What the daemon asks of the API server, as kustomize/base/rbac.yaml grants it: group, resource, verb, what for."""

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def doctor(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
) -> None:
    """Look at every prerequisite on this node, each with a verdict and how to mend it. Changes nothing.

    The daemon, its ledger and sources of evidence, the devices and their labels, the folders, the runtime's CDI, the
    API server, the DeviceClasses, and the rights. Where no configuration is named and there is none at its place,
    what needs none is looked at.

    Exit 0: all is well, perhaps with notes; 1: something is not; 2: the configuration is wrong, or not where it was
    said to be.

    Example: bridge doctor --config config.yaml
    """
    import asyncio  # a third of the start time of every command, if it were above

    trees, findings = roots(dev_root, sys_root), []
    if config == DEFAULT_CONFIG and not config.exists():
        loaded = _defaults()
        findings.append(_unconfigured(config))
    else:
        loaded = load_config(config)
    findings += asyncio.run(examine(loaded, kubeconfig, trees))
    if output is Output.TABLE:
        width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
        for one in findings:
            typer.echo("\n".join(one.lines(width)))
    else:
        dump(output, [{**asdict(one), "verdict": one.verdict} for one in findings])
    if not all(one.ok for one in findings):
        raise typer.Exit(1)


def _defaults() -> Config:
    """No group, and of everything else the default."""
    from bridge.config import Config, Mode
    from bridge.config.model import Daemon

    return Config(Mode.DUAL, (), Daemon())


def _unconfigured(path: Path) -> Finding:
    found = f"{path} does not exist; what follows is looked for where it is by default, and no group's devices are"
    return Finding("configuration", False, found, "give one with --config, or run this in the daemon's pod")


async def examine(config: Config, kubeconfig: Path | None, trees: Roots) -> list[Finding]:
    """Look at everything."""
    import asyncio

    from bridge.cli.prerequisites import devices

    found = [*_kubelet(config), _ledger(config)]
    try:
        health: dict[str, Any] = ask(config.daemon.state_dir, "health")
    except NoDaemon as error:
        found.append(
            Finding("daemon", False, str(error), "start it: `bridge run`; its log says why it ended")
        )
        found += await _sources(config)
    else:
        wrong = "; ".join(health["wrong"])
        mend = "see its log and the findings below" if wrong else ""
        found.append(Finding("daemon", not wrong, wrong or "serves, and is ready", mend))
        found += [_source(one) for one in health["sources"]]
    found += await asyncio.to_thread(lambda: [*_folders(config), *devices(config, trees)])
    found.append(await _cdi(config))
    return [*found, *await _rights(config, kubeconfig)]


def _kubelet(config: Config) -> Iterator[Finding]:
    root = config.daemon.kubelet_root
    if not root.is_dir():
        mend = "run this on a node, in the daemon's pod; or let daemon.kubeletRoot name the kubelet's folder"
        yield Finding("kubelet", False, f"no kubelet on this machine: there is no folder {root}", mend)


def _ledger(config: Config) -> Finding:
    from bridge.cli.ledger import mend
    from bridge.ledger.store import LedgerError, LedgerFromTheFuture, examine

    try:
        found = examine(config.daemon.state_dir)
    except LedgerFromTheFuture as error:
        return Finding("ledger", False, str(error))
    except LedgerError as error:
        return Finding("ledger", False, str(error), mend(config.daemon.state_dir))
    return Finding(
        "ledger", True, f"{found.holds} holds, {found.quarantines} quarantines, schema {found.schema}"
    )


_MEND = {
    "kubelet": "is the kubelet running, and daemon.kubeletRoot its folder?",
    "podresources": "mount the kubelet's pod-resources folder; look into the kubelet's log",
    "checkpoint": "mount the kubelet's device-plugins folder; a damaged checkpoint is the kubelet's to mend",
    "runtime": "set daemon.criSocket to the container runtime's socket and mount it",
    "pods": "give the daemon the rights of kustomize/base/rbac.yaml, and a way to the API server",
    "in-use probe": "see the error",
}


def _source(health: dict[str, Any]) -> Finding:
    """One source as the daemon has it: what its absence costs, in its own words."""
    name, available = str(health["name"]), health["available"]
    if available is None:
        return Finding(f"evidence: {name}", True, "was not needed yet")
    if available:
        return Finding(f"evidence: {name}", True, "answers")
    if name == "kubelet" and "began less than" in health["error"]:
        return Finding(f"evidence: {name}", True, f"{health['error']}: until then {health['without']}")
    found = f"{health['error']}: {health['without']}"
    return Finding(f"evidence: {name}", False, found, _MEND.get(name, ""))


async def _sources(config: Config) -> list[Finding]:
    """The sources asked here and now, for there is no daemon to ask."""
    from bridge.platform import checkpoint, cri
    from bridge.platform.cri import CriClient
    from bridge.platform.endpoint import Unavailable
    from bridge.platform.podresources import PodResourcesClient

    daemon = config.daemon
    podresources = PodResourcesClient(daemon.pod_resources)
    runtime = CriClient(cri.sockets(daemon.cri_socket))
    try:
        listed, version = await podresources.list(), await runtime.version()
    finally:
        await podresources.close()
        await runtime.close()
    noted = checkpoint.read(daemon.kubelet_root / "device-plugins" / checkpoint.NAME)
    said = {
        "podresources": listed.reason if isinstance(listed, Unavailable) else "",
        "checkpoint": noted.reason if isinstance(noted, checkpoint.Damaged) else "",
        "runtime": version.reason if isinstance(version, Unavailable) else "",
    }
    found = {
        name: Finding(f"evidence: {name}", not wrong, wrong or "answers", _MEND[name] if wrong else "")
        for name, wrong in said.items()
    }
    if isinstance(noted, checkpoint.Missing):
        mend = "nothing to do where the kubelet has never given a device of a device plugin to a pod"
        found["checkpoint"] = Finding("evidence: checkpoint", True, f"there is no {noted.path}", mend)
    return list(found.values())


async def _cdi(config: Config) -> Finding:
    """What the runtime itself says of CDI."""
    from bridge.cli.prerequisites import reads_cdi
    from bridge.platform import cri
    from bridge.platform.cri import CriClient
    from bridge.platform.endpoint import Unavailable

    runtime = CriClient(cri.sockets(config.daemon.cri_socket))
    try:
        version, told = await runtime.version(), await runtime.info()
    finally:
        await runtime.close()
    ours = (config.daemon.cdi.static_dir, config.daemon.cdi.dynamic_dir)
    for answer in (version, told):
        if isinstance(answer, Unavailable):
            mend = f"see that the container runtime has CDI switched on and reads {ours[0]} and {ours[1]}"
            return Finding("runtime: CDI", True, f"could not be asked: {answer.reason}", mend)
    assert isinstance(version, str) and not isinstance(told, Unavailable)
    return reads_cdi(version, told, ours)


def _folders(config: Config) -> Iterator[Finding]:
    daemon = config.daemon
    cdi = "make it, and mount it where the container runtime reads it (containerd: cdi_spec_dirs)"
    kubelet = "mount the kubelet's folder; is daemon.kubeletRoot right?"
    kubelet_there = daemon.kubelet_root.is_dir()
    for what, folder, mend in (
        ("CDI folder", daemon.cdi.static_dir, cdi),
        ("CDI folder for claims", daemon.cdi.dynamic_dir, cdi),
        ("state folder", daemon.state_dir, "make it writable; it has to outlast the daemon's pod"),
    ):
        if not kubelet_there and folder.is_relative_to(daemon.kubelet_root):
            continue
        wrong = _unwritable(folder)
        can = f"{folder} can be {'written' if folder.exists() else 'made'}"
        yield Finding(what, not wrong, wrong or can, mend if wrong else "")
    if not kubelet_there:
        return
    for what, folder in (
        ("kubelet: plugin registry", daemon.kubelet_root / "plugins_registry"),
        ("kubelet: device plugins", daemon.kubelet_root / "device-plugins"),
    ):
        wrong = _unwritable(folder) if folder.exists() else f"there is no {folder}, which the kubelet makes"
        yield Finding(what, not wrong, wrong or f"{folder} can be written", kubelet if wrong else "")
    if any(group.registration.value == "legacy" for group in config.groups):
        path = daemon.kubelet_root / "device-plugins" / "kubelet.sock"
        there = path.is_socket()
        found, mend = (
            (f"{path} is there", "") if there else (f"{path} is not there", "is the kubelet running?")
        )
        yield Finding("kubelet: registration socket", there, found, mend)


def _unwritable(folder: Path) -> str:
    """Why a folder cannot be written; one that is yet to be made is judged by what it will be made in."""
    existing = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not existing.is_dir():
        return f"{existing} is no folder"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written by this user"


async def _rights(config: Config, kubeconfig: Path | None) -> list[Finding]:
    from dra_v1.kube import KubeApi
    from dra_v1.kube_config import KubeConfigError

    try:
        api = KubeApi.from_kubeconfig(kubeconfig) if kubeconfig else KubeApi.in_cluster()
    except KubeConfigError as error:
        needed = [group.name for group in config.groups if group.mode.value != "device-plugin"]
        mend = "run it in the daemon's pod, or give --kubeconfig" if needed else ""
        return [Finding("API server", not needed, f"not asked: {error}", mend)]
    async with api:
        return [*await rights(api), *await _names(api, config)]


async def _names(api: KubeApi, config: Config) -> list[Finding]:
    """Whether the cluster has DRA, and a DeviceClass for each group that is offered there."""
    from bridge.config import Mode
    from dra_v1.kube_errors import ApiError, Forbidden, NotFound
    from dra_v1.resource_api import GROUP, NoResourceApi, ResourceApi

    groups = [group for group in config.groups if group.mode is not Mode.DEVICE_PLUGIN]
    try:
        version = await ResourceApi(api).version()
    except NoResourceApi as error:
        mend = "until then only mode device-plugin is of use" if groups else ""
        return [Finding("DRA", not groups, str(error), mend)]
    except ApiError as error:
        return [Finding("DRA", False, str(error), "is the kubeconfig right, and the server reachable?")]
    findings = [Finding("DRA", True, f"the API server serves {GROUP} {version}")]
    for group in groups:
        check = f"DeviceClass {group.driver_name}"
        try:
            await api.get(f"/apis/{GROUP}/{version}/deviceclasses/{group.driver_name}")
        except NotFound:
            mend = "apply what `bridge config manifests` prints; a class of another name does as well"
            findings.append(Finding(check, True, "there is none of that name", mend))
        except Forbidden:
            mend = "apply kustomize/base/rbac.yaml: a switch under the same resource name has to read it"
            findings.append(Finding(check, True, "it may not be read", mend))
        except ApiError as error:
            findings.append(Finding(check, False, str(error), "is the server reachable?"))
        else:
            findings.append(Finding(check, True, "is there"))
    return findings


async def rights(api: KubeApi) -> list[Finding]:
    """Ask the API server for each right that the daemon needs."""
    import asyncio

    from dra_v1.kube_errors import ApiError

    answers = await asyncio.gather(*(_may(api, *right[:3]) for right in RIGHTS), return_exceptions=True)
    errors = [one for one in answers if isinstance(one, BaseException)]
    for error in errors:
        if not isinstance(error, ApiError):
            raise error
    if errors:
        return [
            Finding("API server", False, str(errors[0]), "is the kubeconfig right, and the server reachable?")
        ]
    missing = [right for right, yes in zip(RIGHTS, answers, strict=True) if not yes]
    mend = "apply kustomize/base/rbac.yaml, and run the daemon with its ServiceAccount"
    findings = [
        Finding(f"right: {verb} {resource}", False, f"missing; it {what}", mend)
        for _, resource, verb, what in missing
    ]
    if not missing:
        findings = [Finding("API rights", True, f"all {len(RIGHTS)} of them")]
    return [Finding("API server", True, api.server), *findings]


async def _may(api: KubeApi, group: str, resource: str, verb: str) -> bool:
    plain, _, sub = resource.partition("/")
    wanted = {"group": group, "resource": plain, "subresource": sub, "verb": verb}
    spec = {"resourceAttributes": {key: value for key, value in wanted.items() if value}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    answer = await api.create(REVIEWS, body)
    return bool((answer.get("status") or {}).get("allowed"))
