"""Writes the Go module that pins the programs of one Kubernetes release.

Kubernetes refers to its staging modules by folders of its own repository, which a module that uses it cannot
see; so each is replaced by the published module of the same release.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.build import KUBERNETES_PROGRAMS
from tests.cluster.versions import TOOLS

_PLACEHOLDER = "v0.0.0"


def pin(version: str) -> Path:
    """Write `go.mod`, `go.sum` and `tools.go` of a release and return their folder; needs the module proxy."""
    folder = TOOLS / f"k8s-{version}"
    folder.mkdir(exist_ok=True)
    upstream = _upstream(version)
    (folder / "go.mod").write_text(_module(version, upstream))
    (folder / "tools.go").write_text(_tools())
    _go("mod", "tidy", cwd=folder)
    return folder


def _upstream(version: str) -> dict[str, Any]:
    """Read the go.mod of Kubernetes itself."""
    found = json.loads(_go("mod", "download", "-json", f"k8s.io/kubernetes@v{version}", cwd=TOOLS))
    described: dict[str, Any] = json.loads(_go("mod", "edit", "-json", found["GoMod"], cwd=TOOLS))
    return described


def _module(version: str, upstream: dict[str, Any]) -> str:
    staging = sorted(one["Path"] for one in upstream["Require"] if one["Version"] == _PLACEHOLDER)
    published = "v0." + version.partition(".")[2]
    lines = [
        "module device-bridge.io/tests/cluster/tools/k8s",
        f"go {upstream['Go']}",
        f"require k8s.io/kubernetes v{version}",
        "replace (\n" + "".join(f"\t{path} => {path} {published}\n" for path in staging) + ")",
    ]
    return "\n\n".join(lines) + "\n"


def _tools() -> str:
    imports = "".join(f'\t_ "k8s.io/kubernetes/cmd/{name}"\n' for name in sorted(KUBERNETES_PROGRAMS))
    return f"""//go:build tools

// Package tools names the programs of a Kubernetes node, so that this module pins them.
package tools

import (
{imports})
"""


def _go(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    result = subprocess.run(
        ["go", *arguments], cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return result.stdout
