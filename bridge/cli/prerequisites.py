"""What a node has to have beside the daemon: a runtime that reads our CDI files, device nodes that pods may open, and
devices. Pure verdicts, and under them what reads the node."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.cli.finding import Finding

if TYPE_CHECKING:
    from bridge.config import Config
    from bridge.platform.roots import Roots

USUAL_FOLDERS = ("/etc/cdi", "/var/run/cdi")
"""Where runtimes look for CDI files if nobody says otherwise."""

CRIO = Path("/etc/crio")
SELINUX = Path("/sys/fs/selinux")

_FOR_ALL = "container_use_devices"
_ALLOWED = {
    "container_file_t": "",
    "dri_device_t": "container_use_dri_devices",
    "hsa_device_t": "container_use_dri_devices",
    "xserver_misc_device_t": "container_use_xserver_devices",
}
"""Types of device nodes that container_t may open, and the boolean that each depends on (container-selinux)."""


def reads_cdi(runtime: str, told: Mapping[str, str], ours: Sequence[Path], crio: Path = CRIO) -> Finding:
    """Whether the runtime has CDI switched on and reads our folders.

    Args:
        runtime: its name and version.
        told: the `info` of its verbose CRI Status; containerd puts its configuration there, as JSON.
        ours: the folders that the daemon writes to.
        crio: CRI-O's folder of configuration; CRI-O reads CDI always, and tells nothing of it.
    """
    check = "runtime: CDI"
    configured = _configured(told)
    if configured is not None and configured.get("enableCDI") is False:
        mend = 'containerd: enable_cdi = true in [plugins."io.containerd.grpc.v1.cri"], then restart it'
        return Finding(check, False, f"{runtime} has CDI switched off: no device reaches a container", mend)
    folders = _folders(configured, runtime, crio)
    if folders is None:
        mend = f"see in its configuration that it reads {_list(ours)}"
        return Finding(check, True, f"{runtime} does not tell whether it reads CDI files, or where", mend)
    read = {_plain(folder) for folder in folders}
    missing = [folder for folder in ours if _plain(folder) not in read]
    if missing:
        found = f"{runtime} reads {_list(folders)}, and not {_list(missing)}, where the daemon writes"
        mend = "add it to its cdi_spec_dirs and restart it, or set daemon.cdi to a folder that it reads"
        return Finding(check, False, found, mend)
    return Finding(check, True, f"{runtime} reads {_list(folders)}")


def _configured(told: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        found = json.loads(told.get("config", ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) and "cdiSpecDirs" in found else None


def _folders(configured: dict[str, Any] | None, runtime: str, crio: Path) -> list[str] | None:
    if configured is not None:
        return [str(one) for one in configured.get("cdiSpecDirs") or USUAL_FOLDERS]
    if not runtime.lower().startswith(("cri-o", "crio")):
        return None
    found = list(USUAL_FOLDERS)
    for path in (crio / "crio.conf", *sorted((crio / "crio.conf.d").glob("*.conf"))):
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return None  # it is CRI-O's to complain; what it reads cannot be told
        found = said.get("crio", {}).get("runtime", {}).get("cdi_spec_dirs") or found
    return found


def _plain(folder: Path | str) -> str:
    """One spelling for the two of `/run`."""
    text = os.path.normpath(str(folder))
    return text.removeprefix("/var") if text.startswith("/var/run/") else text


def _list(folders: Sequence[Path | str]) -> str:
    return ", ".join(str(folder) for folder in folders)


def labels(types: Mapping[str, str], *, enforcing: bool | None, on: Mapping[str, bool]) -> Finding:
    """Whether SELinux lets containers open the device nodes.

    A runtime makes a device's node anew in a container, with the container's label; only a container in a user
    namespace of its own gets the node itself, with the label that it has here.

    Args:
        types: SELinux type of each device node.
        enforcing: None where it cannot be told.
        on: the booleans of the policy that are known.
    """
    check = "SELinux"
    if not types:
        return Finding(check, True, "is off, or no device node has a label")
    if enforcing is False:
        return Finding(check, True, "does not enforce")
    refused = {path: kind for path, kind in types.items() if not _open(kind, on)}
    if not refused:
        return Finding(check, True, f"lets containers open all {len(types)} device nodes")
    path, kind = next(iter(refused.items()))
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    found = (
        f"{'enforces' if enforcing else 'may enforce'}; {path}{more} has type {kind}: pods in a user namespace of "
        "their own (hostUsers: false) get that node itself and may not open it; others may"
    )
    return Finding(check, True, found, f"for such pods: setsebool -P {_FOR_ALL} on")


def _open(kind: str, on: Mapping[str, bool]) -> bool:
    if on.get(_FOR_ALL):
        return True
    return kind in _ALLOWED and (not _ALLOWED[kind] or on.get(_ALLOWED[kind], False))


def devices(config: Config, roots: Roots, selinux: Path = SELINUX) -> Iterator[Finding]:
    """Look for the devices of each group, and at their labels."""
    from bridge.devices.scanner import scan

    inventory = scan(config.groups, roots)
    problems = {problem.group: problem for problem in reversed(inventory.problems)}
    for group in config.groups:
        count = len(inventory.group(group.name))
        if (problem := problems.get(group.name)) is not None:
            found = f"{count} device(s); {problem}"
            yield Finding(f"group {group.name}", False, found, "see `bridge discover`")
        else:
            mend = (
                "" if count else "is this a node with such devices? `bridge config show` shows where it looks"
            )
            yield Finding(f"group {group.name}", True, f"{count} device(s)" if count else "no device", mend)
    paths = [node.host_path for device in inventory.devices for node in device.edits.nodes]
    types = {path: kind for path in paths if (kind := _type(roots.local(path)))}
    yield labels(types, enforcing=_enforcing(selinux), on=_booleans(selinux))


def _type(path: Path) -> str:
    """The SELinux type of a file; empty where it has no label."""
    try:
        label = os.getxattr(path, "security.selinux").rstrip(b"\0").decode()
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT, errno.EPERM, errno.EACCES):
            return ""
        raise
    parts = label.split(":")
    return parts[2] if len(parts) > 2 else label


def _enforcing(selinux: Path) -> bool | None:
    try:
        return (selinux / "enforce").read_text().strip() == "1"
    except OSError:
        return None  # a container does not always see it


def _booleans(selinux: Path) -> dict[str, bool]:
    found = {}
    for name in {_FOR_ALL, *filter(None, _ALLOWED.values())}:
        try:
            found[name] = (selinux / "booleans" / name).read_text().split()[0] == "1"
        except (OSError, IndexError):
            continue  # a policy without it, or a container that does not see it: not known to be on
    return found
