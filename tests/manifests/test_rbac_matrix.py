"""The rights are the least: a daemon that lacks any one of them says so, with the rule to add; with all it is content.

For each pair of verb and resource of the shipped ClusterRoles, the daemon lives through a day with all rights but that
one. Where the daemon only asked beforehand whether it has a right, that proves no use of it: then the right is taken
away a second time, after the answer. A pair that nothing notices is superfluous.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.e2e.conftest import SYNC
from tests.manifests.builds import KUSTOMIZE
from tests.manifests.day import BINDS, Day, Noticed
from tests.manifests.rights import ACCOUNT, FILES, USER, Pair, pairs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FIRST_RELEASE = dict.fromkeys(("resourceclaims/driver", "resourceclaims/status"), BINDS)
"""Before it, the daemon has no use for the right."""

ASKED = "RBAC lacks"
"""How the daemon begins to say what it found out by asking for its rights."""

SYNTHETIC = ":"
"""In verbs that no request has: the API server asks for them when it looks at what a request changes."""

_table: list[tuple[str, float, str]] = []


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.log"


@pytest.fixture(scope="module")
def cluster(audit_log: Path) -> Iterator[Cluster]:
    """A node of its own: other tests give the daemon's account more than is shipped."""
    policy = audit_log.with_name("policy.json")
    rules = [{"level": "Metadata", "users": [USER]}, {"level": "None"}]
    stages = ["RequestReceived", "Panic"]
    kind = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
    policy.write_text(json.dumps({**kind, "omitStages": stages, "rules": rules}))
    flags = [f"--audit-policy-file={policy}", f"--audit-log-path={audit_log}", "--audit-log-mode=blocking"]
    with Cluster(kubelet_config={"syncFrequency": SYNC}, extra_args={"kube-apiserver": flags}) as running:
        for path in (
            *FILES,
            *(KUSTOMIZE / "base" / n for n in ("node-bridge-crd.yaml", "admission-policy.yaml")),
        ):
            running.apply(path)
        running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield running
    print(f"\n\n{'missing right':<52} {'s':>5}  said by")
    for pair, seconds, by in _table:
        print(f"{pair:<52} {seconds:5.1f}  {by}")


@pytest.fixture(scope="module")
def kubeconfig(cluster: Cluster) -> Path:
    """The shipped account, bound to the node as a pod's token is."""
    return cluster.kubeconfig_for_service_account(ACCOUNT, ACCOUNT)


@pytest.fixture
def day(cluster: Cluster, kubeconfig: Path, tmp_path: Path, audit_log: Path) -> Iterator[Day]:
    made = Day(cluster, kubeconfig, tmp_path, audit_log)
    try:
        made.open()
        yield made
    finally:
        made.close()


def of_release(cluster: Cluster) -> list[Pair]:
    """The pairs that this release has a use for."""
    return [p for p in pairs() if cluster.release.major_minor >= FIRST_RELEASE.get(p.resource, (1, 0))]


def test_with_all_rights_there_is_nothing_to_complain_of_and_each_is_used(day: Day) -> None:
    day.rights.give()
    began = time.monotonic()
    day.live()
    assert not day.complaints()
    named = [(str(pair), said) for pair in pairs() for said in day.sayings() if pair.is_named_in(said.text)]
    assert not named
    used = {(p.group, p.resource, p.verb) for p in day.asked() if p.group != "authorization.k8s.io"}
    granted = {(p.group, p.resource, p.verb) for p in of_release(day.cluster) if SYNTHETIC not in p.verb}
    assert used == granted
    _table.append(("(none)", time.monotonic() - began, "nobody: the whole day went well"))


@pytest.mark.parametrize("pair", pairs(), ids=str)
def test_without_a_right_it_is_said_which_one_is_missing(pair: Pair, day: Day) -> None:
    if pair not in of_release(day.cluster):
        pytest.skip(f"Kubernetes {day.cluster.version} has no use for {pair}")
    day.rights.give()
    day.rights.take(pair)
    day.lacks = pair
    if ASKED in noticed(day, pair, day.live):
        noticed(day, pair, lambda: lost_in_use(day, pair))


def lost_in_use(day: Day, pair: Pair) -> None:
    """Give the right back until the daemon relies on it, and take it away again."""
    day.lacks = None
    day.rights.give()
    day.until(day.waiting, "the right to be relied on")
    day.rights.take(pair)
    day.lacks, day.unheard = pair, ASKED
    day.a_claim_is_bound("late")
    day.until(lambda: False, "the claim's pod to be served")


def noticed(day: Day, pair: Pair, act: Callable[[], None]) -> str:
    """What is said of the missing right, in the course of something."""
    began = time.monotonic()
    with pytest.raises(Noticed) as told:
        act()
    said = told.value.said
    _table.append(
        (str(pair), time.monotonic() - began, said.where + (", when asked" if ASKED in said.text else ""))
    )
    return said.text
