"""Writes the bill of materials of what lies in a folder of installed distributions: CycloneDX 1.6, JSON.

`python3 sbom.py FOLDER`. Needs the standard library only, and says the same of the same folder each time. The base
image is not in it (it has its own), nor what a wheel brought inside it.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from typing import Any

SUBJECT = "device-bridge"


def bill(found: Iterable[Distribution], when: datetime) -> dict[str, Any]:
    """The bill of these distributions; one of them is the subject."""
    components = sorted((_component(one) for one in found), key=lambda one: one["bom-ref"])
    subject = next(one for one in components if one["name"] == SUBJECT)
    others = [one for one in components if one is not subject]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # A number of its own for each content, and no chance in it.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components)).urn,
        "version": 1,
        "metadata": {
            "timestamp": f"{when:%Y-%m-%dT%H:%M:%SZ}",
            "component": {**subject, "type": "application"},
        },
        "components": others,
    }


def _component(one: Distribution) -> dict[str, Any]:
    name = one.metadata["Name"]
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{one.version}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": one.version, "purl": purl}
    if expression := one.metadata["License-Expression"]:
        component["licenses"] = [{"expression": expression}]
    elif names := _licences(one):
        component["licenses"] = [{"license": {"name": text}} for text in names]
    return component


def _licences(one: Distribution) -> list[str]:
    """What a distribution without an expression says: its classifiers, else a line of its own."""
    prefix = "License :: OSI Approved :: "
    classifiers = one.metadata.get_all("Classifier") or []
    said = [text.removeprefix(prefix) for text in classifiers if text.startswith(prefix)]
    line: str = one.metadata["License"] or ""
    return sorted(said) or [line.splitlines()[0]] if line else sorted(said)


def main(folder: str) -> None:
    """Write the bill of a folder to standard output."""
    when = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    json.dump(bill(distributions(path=[folder]), when), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
