"""The Kubernetes releases that the test cluster can run, and what differs between them.

Only data: adding a release is one entry here and one module under `tools/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
DEFAULT = "1.37.1"


@dataclass(frozen=True, slots=True)
class Release:
    """One Kubernetes release.

    Attributes:
        version: the release, without the leading `v`.
        resource_api: the newest version of `resource.k8s.io` that its API server serves here.
        feature_gates: gates that every component needs so that DRA works at all.
        runtime_config: API versions to switch on, as `--runtime-config` takes them.
    """

    version: str
    resource_api: str = "v1"
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    runtime_config: tuple[str, ...] = ()

    @property
    def major_minor(self) -> tuple[int, int]:
        """Major and minor number, for comparisons: `(1, 37)`."""
        major, minor, _ = self.version.split(".")
        return int(major), int(minor)

    @property
    def tools(self) -> Path:
        """The Go module that pins this release's programs."""
        return TOOLS / f"k8s-{self.version}"


RELEASES: Mapping[str, Release] = {
    release.version: release
    for release in (
        Release("1.37.1"),
        Release("1.34.4"),
        Release(
            "1.32.2",
            resource_api="v1beta1",
            feature_gates={"DynamicResourceAllocation": True},
            runtime_config=("resource.k8s.io/v1beta1=true",),
        ),
    )
}


def release(version: str) -> Release:
    """Look a release up.

    Raises:
        ValueError: the release is not one of `RELEASES`; the message lists them.
    """
    try:
        return RELEASES[version]
    except KeyError:
        known = ", ".join(RELEASES)
        raise ValueError(f"Kubernetes {version} cannot be built here; there are {known}") from None
