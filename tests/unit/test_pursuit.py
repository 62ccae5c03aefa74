"""What is said of claims that cannot be read."""

from __future__ import annotations

import logging
from typing import cast

import pytest

from bridge.planes.pursuit import Watches
from bridge.platform.budget import Budget
from dra_v1.kube import ApiError, Forbidden
from dra_v1.resource_api import ResourceApi

KEY = ("ns", "claim")


def test_a_missing_right_is_warned_of_once_until_claims_can_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watches = Watches(cast(ResourceApi, None), cast(Budget, None))
    path = "/apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/claim"
    forbidden = Forbidden(403, "Forbidden", "no", "get", path)
    with caplog.at_level(logging.INFO):
        watches.unread(KEY, ApiError(500, "InternalError", "no", "get", path))
        for _ in range(2):
            watches.unread(KEY, forbidden)
        watches.read()
        watches.unread(KEY, forbidden)
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING", "INFO", "WARNING"]
    assert 'verb "get" on resource "resourceclaims"' in str(vars(caplog.records[1])["error"])
