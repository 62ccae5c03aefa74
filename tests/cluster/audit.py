"""The API server's audit log: who wrote what and when, from the one place that cannot be mistaken about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAME = "audit.log"
_WRITES = ("create", "update", "patch", "delete", "deletecollection")
_OF_PODS = ("pods", "pods/status", "pods/binding")
_OF_NODES = ("nodes", "nodes/status")
_OF_CLAIMS = ("resourceclaims", "resourceclaims/status", "resourceslices")


def flags(directory: Path) -> dict[str, object]:
    """The API server's flags for a log in `directory`, with its policy written there."""
    path = directory / "audit-policy.json"
    path.write_text(json.dumps(_policy(), indent=1))
    return {"audit-policy-file": path, "audit-log-path": directory / NAME}


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The events so far, in the order in which the API server had answered.

    A line that a killed API server left half written is passed over.
    """
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _policy() -> dict[str, Any]:
    """Writes to what concerns devices, whole; nothing else."""
    core = {"group": "", "resources": [*_OF_PODS, *_OF_NODES]}
    devices = {"group": "resource.k8s.io", "resources": [*_OF_CLAIMS]}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitManagedFields": True,
        "omitStages": ["RequestReceived", "ResponseStarted", "Panic"],
        "rules": [_rule("RequestResponse", [core, devices], _WRITES), {"level": "None"}],
    }


def _rule(level: str, resources: Sequence[dict[str, Any]], verbs: Sequence[str]) -> dict[str, Any]:
    return {"level": level, "resources": list(resources), "verbs": list(verbs)}
