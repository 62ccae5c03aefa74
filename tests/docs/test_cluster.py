"""Somebody reads the pages from the first to the last and types every command for a cluster, on a real node."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster import BUSYBOX, Cluster
from tests.cluster.consoles import FIRST, MAJOR
from tests.docs.checks import calls
from tests.docs.pages import Block, blocks, pages
from tests.docs.test_commands import environment, folder_of
from tests.image import built

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

NODE = "worker-1"
IMAGES = {
    f"docker.io/library/{built.IMAGE}": "registry.example.com/device-bridge:0.1.0",
    BUSYBOX: "docker.io/library/busybox:1.36",
}
"""What the pages call the images that are there."""

SYNC = "10s"
PAGE_S = 600.0
LAST = "uninstall.md"


class Reader:
    """The reader's folder and what there is to type at."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def types(self, page: Path) -> str:
        """Type the commands of a page in one shell, each of which has to succeed; return what was said."""
        lines = ["set -euo pipefail", f"PATH={self.folder}/.bin:$PATH"]
        for block in blocks(page):
            for command in block.commands if block.words[1:] == ("cluster",) else ():
                lines += [f"echo {shlex.quote(f'[{block}] $ {command}')}", command]
        return self.shell("\n".join(lines))

    def shell(self, script: str, kubeconfig: Path | None = None) -> str:
        """Run a script where the cluster is."""
        env = environment(self.folder)
        del env["PATH"]
        env["KUBECONFIG"] = str(kubeconfig or self.cluster.admin_kubeconfig)
        command = ["bash", "-c", f"exec 2>&1\n{script}\n"]
        done = self.cluster.exec(command, env=env, cwd=self.folder, timeout=PAGE_S, check=False)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with Cluster(node_name=NODE, kubelet_config={"syncFrequency": SYNC}) as cluster:
        if cluster.release.major_minor < (1, 36):
            pytest.skip("the guide's own example keeps the name of its resource")
        for index in range(4):
            cluster.mknod(f"/dev/crypto/acc{index}", "c", MAJOR, FIRST + index, mode=0o666)
        cluster.import_image(built.archive())
        for there, called in IMAGES.items():
            cluster.exec(["ctr", "-n", "k8s.io", "images", "tag", there, called])
        cluster.kubectl("label", "node", NODE, "pool=crypto")
        yield Reader(cluster, tmp_path_factory.mktemp("clone"))


PAGES = [page for page in pages() if any(b.words[1:] == ("cluster",) for b in blocks(page))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != LAST], ids=lambda page: page.name)
def test_a_reader_types_what_the_page_says(
    page: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(page, reader.folder)
    said = reader.types(page)
    with capsys.disabled():
        print(f"\n{said}")


SHOWN = [
    command
    for page in pages()
    for block in blocks(page)
    if block.language == "console"
    for command in block.commands
]


def test_options_of_kubectl_exist(reader: Reader) -> None:
    """Those that are run are known to be right; these are of the others, too."""
    for call in (call for command in SHOWN for call in calls(command) if call[0] == "kubectl"):
        mine = call[: call.index("--")] if "--" in call else call
        verb = [word for word in mine[1 : 4 if mine[1:3] == ["create", "secret"] else 3] if word[0] != "-"]
        verb = verb if verb[:1] in (["rollout"], ["create"], ["auth"]) else verb[:1]
        known = reader.cluster.kubectl(*verb, "--help") + reader.cluster.kubectl("options")
        for option in (word.partition("=")[0] for word in mine if word.startswith("-") and word != "-"):
            assert re.search(rf"(^|[\s,]){re.escape(option)}[=:,\s]", known), f"{call}: {option}"


def test_operators_may_do_all_that_the_command_line_does(reader: Reader) -> None:
    kubectl = reader.cluster.kubectl
    kubectl("create", "serviceaccount", "jane")
    for role in ("device-bridge-operator", "device-bridge-planner"):
        kubectl(
            "create",
            "clusterrolebinding",
            f"jane-{role}",
            f"--clusterrole={role}",
            "--serviceaccount=default:jane",
        )
    bind = ("create", "rolebinding", "jane", "-n", "device-bridge", "--role=device-bridge-exec")
    kubectl(*bind, "--serviceaccount=default:jane")
    kubeconfig = reader.folder / "jane.kubeconfig"
    config = yaml.safe_load(reader.cluster.admin_kubeconfig.read_text())
    token = reader.cluster.service_account_token("default", "jane")
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig.write_text(yaml.safe_dump(config))

    def bridge(command: str) -> str:
        return reader.shell(f"PATH={reader.folder}/.bin:$PATH\nbridge {command}", kubeconfig)

    bridge("status")
    assert "was not asked" not in bridge(f"status {NODE}")
    assert bridge(f"holds --node {NODE} -o json").strip() == "[]"
    for mode in ("dual", "device-plugin"):
        bridge(f"mode set {mode} --node {NODE}")
    bridge("mode set --undo")
    plan = json.loads(bridge("plan --to dra -o json"))
    unseen = [one for one in plan if "allow " in str(one.get("mend", ""))]
    assert plan and not unseen, unseen


def test_h39_what_the_page_on_uninstalling_says_leaves_nothing_behind(
    reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    (page,) = (page for page in PAGES if page.name == LAST)
    said = reader.types(page)
    with capsys.disabled():
        print(f"\n{said}")
    cluster = reader.cluster
    names = cluster.kubectl("api-resources", "-o", "name")
    assert "nodebridges" not in names
    for kind in ("clusterroles", "clusterrolebindings", "deviceclasses", "validatingadmissionpolicies"):
        assert "device-bridge" not in cluster.kubectl(
            "get", kind, "-o", "name", "-l", f"{LABEL}=device-bridge"
        )
    assert "device-bridge" not in cluster.kubectl("get", "namespaces", "-o", "name")
    assert not cluster.kubectl("get", "pods,resourceclaims", "-A", "-o", "name")
    node = cluster.get("Node", NODE)["metadata"]
    assert not [key for key in (*node["labels"], *node["annotations"]) if "device-bridge" in key]
    cluster.wait_for(
        lambda: not cluster.kubectl("get", "resourceslices", "-o", "name"),
        90,
        "the kubelet to remove the slices",
    )
    assert not list(cluster.node.outside("/var/lib/kubelet/plugins_registry").iterdir())


LABEL = "app.kubernetes.io/name"


def blocks_of(how: str) -> list[Block]:
    """All of one way."""
    return [block for page in pages() for block in blocks(page) if block.words[1:] == (how,)]


def test_rm_names_what_is_there(reader: Reader) -> None:
    """The files that the last step names are the ones that the daemon left."""
    (block,) = (block for block in blocks_of("shown") if block.page.name == LAST and "rm " in block.text)
    left = reader.cluster.node.outside("/etc/cdi")
    assert [path.name for path in left.glob("device-bridge.io-*.json")]
    for command in block.commands:
        reader.cluster.exec(["bash", "-c", command])
    assert not list(left.iterdir())
    assert not reader.cluster.node.outside("/var/lib/kubelet/plugins/device-bridge").exists()
