"""Builds the programs of the node from the pinned Go modules under `tools/`.

Nothing is vendored and no binary is committed. An interrupted build goes on where it was, because the Go
tool chain keeps its own cache; a finished one costs a look at a stamp.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cache import cached
from tests.cluster.versions import TOOLS, Release

KUBERNETES_PROGRAMS = ("kubelet", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")


@dataclass(frozen=True, slots=True)
class _Target:
    """One call of `go build`: packages that are built with the same flags."""

    packages: tuple[str, ...]
    flags: tuple[str, ...] = ()
    link: str = ""
    output: str = ""


_RUNTIME = (
    _Target(
        packages=tuple(
            f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        # Those snapshotters want cgo or kernel headers, and nothing here uses them.
        flags=("-tags", "no_btrfs,no_devmapper,no_zfs"),
    ),
    # The main package of etcd is the root of its module, so its program would be called v3.
    _Target(packages=("go.etcd.io/etcd/server/v3",), output="etcd"),
    _Target(packages=("sigs.k8s.io/kustomize/kustomize/v5",)),
)


def kubernetes(release: Release) -> Path:
    """Build one Kubernetes release (minutes when cold) and return the folder of its programs."""
    version = "k8s.io/component-base/version.git"
    major, minor = release.major_minor
    target = _Target(
        packages=tuple(f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES_PROGRAMS),
        # Without a version the components take themselves for v0.0.0 and choose their feature gates by that.
        link=f"-X {version}Version=v{release.version} -X {version}Major={major} -X {version}Minor={minor}",
    )
    return _built(f"k8s-{release.version}", release.tools, (target,))


def runtime() -> Path:
    """Build containerd, its shim, ctr, etcd and kustomize, and return the folder of the programs."""
    return _built("runtime", TOOLS / "runtime", _RUNTIME)


def _built(name: str, module: Path, targets: Sequence[_Target]) -> Path:
    def make(directory: Path) -> None:
        for target in targets:
            _go_build(module, target, directory)

    return cached(name, _inputs(module, targets), make)


def _inputs(module: Path, targets: Sequence[_Target]) -> Iterable[bytes]:
    yield platform.machine().encode()
    yield (module / "go.mod").read_bytes()
    yield (module / "go.sum").read_bytes()
    for target in targets:
        yield repr(target).encode()


def _go_build(module: Path, target: _Target, directory: Path) -> None:
    output = directory / target.output if target.output else f"{directory}{os.sep}"
    command = ["nice", "go", "build", "-trimpath", "-mod=readonly", "-buildvcs=false"]
    command += [*target.flags, "-ldflags", f"-s -w {target.link}".strip(), "-o", str(output)]
    command += target.packages
    subprocess.run(command, cwd=module, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
