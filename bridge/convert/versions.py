"""The versions of `resource.k8s.io` that can be written."""

from __future__ import annotations

from enum import StrEnum


class ApiVersion(StrEnum):
    """v1 is served from Kubernetes 1.34, v1beta2 from 1.33, v1beta1 from 1.32."""

    V1 = "v1"
    V1BETA2 = "v1beta2"
    V1BETA1 = "v1beta1"
