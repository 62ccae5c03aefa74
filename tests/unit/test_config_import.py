"""A configuration of power-device-plugin becomes one of the bridge: every field, alone and in its manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from bridge.cli import app
from bridge.config import Config, ConfigErrors, Group, Mode, parse
from bridge.config_import import Imported, Options, power_device_plugin, written
from bridge.config_import.durations import seconds
from bridge.config_import.patterns import pattern
from bridge.devices.inventory import scan
from bridge.devices.nodes import matches
from tests.unit.trees import Tree

NX = "/dev/crypto/nx-gzip"

DOCUMENTED = {
    "nx-gzip": True,
    "permissions": "rw",
    "include-devices": ["/dev/dm-*", NX],
    "exclude-devices": ["/dev/dm-3"],
    "discovery-strategy": "time",
    "scan-interval": "60m",
}
"""The example of the plugin's own documentation."""

EARLIER = {"nx-gzip": True, "permissions": "rw"}
"""That of its first releases."""


def imported(fields: object, **options: Any) -> Imported:
    return power_device_plugin(json.dumps(fields), "config.json", Options(**options))


def config(fields: object, **options: Any) -> Config:
    """What the daemon would run with."""
    return parse(written(imported(fields, **options), "config.json"))


def groups(fields: object, **options: Any) -> dict[str, Group]:
    """By resource name."""
    return {group.resource_name: group for group in config(fields, **options).groups}


def disks(fields: object, **options: Any) -> Any:
    """The options of the group that has the plugin's resource name."""
    return groups(fields, **options)["power-dev-plugin/dev"].options


def notes(fields: object, **options: Any) -> dict[str, str]:
    return {note.field: note.text for note in imported(fields, **options).notes}


def errors(text: object, **options: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        power_device_plugin(
            text if isinstance(text, str) else json.dumps(text), "config.json", Options(**options)
        )
    return [str(error) for error in caught.value.errors]


def offered(fields: object, tree: Tree, **options: Any) -> dict[str, list[list[str]]]:
    """The paths that a container gets with each device of each resource."""
    found = config(fields, **options)
    inventory = scan(found.groups, tree.roots)
    return {
        group.resource_name: [
            [node.container_path for node in device.edits.nodes] for device in inventory.group(group.name)
        ]
        for group in found.groups
    }


@pytest.fixture
def node(tmp_path: Path) -> Tree:
    """A node with a root disk, four multipath disks and an accelerator."""
    tree = Tree(tmp_path)
    for name in ("sda", "sda1", "dm-0", "dm-1", "dm-2", "dm-3", "crypto/nx-gzip", "tty0"):
        tree.file(f"/dev/{name}")
    tree.file("/sys/class/block/sda/sda1/partition", "1")
    tree.file("/sys/class/block/sda1/partition", "1")
    for i in range(4):
        tree.file(f"/sys/class/block/dm-{i}/dm/uuid", f"mpath-{i}")
        tree.file(f"/sys/class/block/dm-{i}/size", "2048")
    tree.at("/sys/devices/vio/ibm,compression-v1/nx_gzip_caps").mkdir(parents=True)
    return tree


# What is offered


def test_the_documented_example(node: Tree) -> None:
    assert offered(DOCUMENTED, node) == {
        "power-dev-plugin/dev": [["/dev/dm-0"], ["/dev/dm-1"], ["/dev/dm-2"]],
        "power-dev-plugin/nx-gzip": [[NX]],
    }
    found = config(DOCUMENTED)
    assert found.mode is Mode.DEVICE_PLUGIN and found.daemon.rescan_seconds == 3600
    assert [group.keep_resource_name for group in found.groups] == [True, True]


def test_the_documented_example_with_everything_for_everybody(node: Tree) -> None:
    assert offered(DOCUMENTED, node, together=True) == {
        "power-dev-plugin/dev": [[NX, "/dev/dm-0", "/dev/dm-1", "/dev/dm-2"]]
    }
    assert disks(DOCUMENTED, together=True).replicas == 250
    assert disks({**DOCUMENTED, "upper-limit": 2}, together=True).replicas == 2


@pytest.mark.parametrize("fields", [{}, {"include-devices": []}, {"include-devices": [" "]}], ids=str)
def test_without_patterns_it_is_every_disk_that_the_node_does_not_use(fields: object, node: Tree) -> None:
    wanted = [[f"/dev/dm-{i}"] for i in range(4)]
    assert offered(fields, node) == {"power-dev-plugin/dev": wanted}
    assert "root disk" in notes(fields)["include-devices"]


def test_the_accelerator_alone_has_the_name_of_the_plugin(node: Tree) -> None:
    fields = {"nx-gzip": True, "include-devices": [NX], "permissions": "R"}
    assert offered(fields, node) == {"power-dev-plugin/dev": [[NX]]}
    (group,) = groups(fields).values()
    assert (group.kind, group.name) == ("nx-gzip", "dev")


def test_the_accelerator_with_all_disks(node: Tree) -> None:
    assert set(groups(EARLIER)) == {"power-dev-plugin/dev", "power-dev-plugin/nx-gzip"}
    assert offered(EARLIER, node)["power-dev-plugin/dev"] == [[f"/dev/dm-{i}"] for i in range(4)]
    (error,) = errors(EARLIER, together=True)
    assert error.startswith("include-devices: with --together it has to say which disks")


def test_the_accelerator_is_offered_where_it_is_only(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.file("/dev/dm-0")
    assert offered(DOCUMENTED, tree)["power-dev-plugin/nx-gzip"] == []


def test_an_accelerator_that_the_patterns_undid_is_offered(node: Tree) -> None:
    fields = {"nx-gzip": True, "include-devices": ["/dev/dm-0"]}
    assert offered(fields, node)["power-dev-plugin/nx-gzip"] == [[NX]]
    assert "include-devices" in [n.text for n in imported(fields).notes if n.field == "nx-gzip"][-1]


def test_a_wide_pattern_does_not_offer_the_accelerator_twice(node: Tree) -> None:
    fields = {"nx-gzip": True, "include-devices": ["/dev/crypto/*", "/dev/dm-0"]}
    assert offered(fields, node) == {
        "power-dev-plugin/dev": [["/dev/dm-0"]],
        "power-dev-plugin/nx-gzip": [[NX]],
    }
    without = {**fields, "nx-gzip": False}
    assert offered(without, node) == {"power-dev-plugin/dev": [[NX], ["/dev/dm-0"]]}


def test_exclude_always_counts(node: Tree) -> None:
    fields = {"include-devices": ["/dev/dm-*", NX], "exclude-devices": ["/dev/dm-[^0]", NX], "nx-gzip": True}
    assert offered(fields, node) == {"power-dev-plugin/dev": [["/dev/dm-0"]]}
    assert "won over it" in notes(fields)["exclude-devices"]
    assert "takes /dev/crypto/nx-gzip away" in notes(fields)["nx-gzip"]


def test_links_keep_their_names_in_containers(node: Tree) -> None:
    node.link("/dev/mapper/mpatha", "../dm-0")
    fields = {"include-devices": ["/dev/mapper/*", "/dev/dm-1"]}
    assert offered(fields, node) == {"power-dev-plugin/dev": [["/dev/mapper/mpatha"], ["/dev/dm-1"]]}
    assert not disks(DOCUMENTED).as_matched


# Fields


@pytest.mark.parametrize("said", ["r", "W", "m", "rw", "RM", "wm", "rwm"])
def test_permissions_in_any_case(said: str) -> None:
    fields = {**DOCUMENTED, "permissions": said}
    assert [group.options.permissions for group in config(fields).groups] == [said.lower()] * 2  # type: ignore[attr-defined]
    assert "permissions" not in notes(fields)


@pytest.mark.parametrize("said", ["wr", "rwx", "none"])
def test_permissions_that_the_plugin_does_not_know_are_rw_and_said_to_be(said: str) -> None:
    assert disks({"permissions": said}).permissions == "rw"
    assert repr(said) in notes({"permissions": said})["permissions"]


def test_no_permissions_are_rw() -> None:
    assert disks({}).permissions == "rw" and "permissions" not in notes({})


@pytest.mark.parametrize(
    ("limit", "replicas"), [(0, 1), (-1, 1), (1, 1), (2, 2), (20_000, 10_000), (100_000, 1)]
)
def test_the_limit_is_of_holders_at_a_time(limit: int, replicas: int) -> None:
    fields = {**DOCUMENTED, "upper-limit": limit}
    assert disks(fields).replicas == replicas
    accelerator: Any = groups(fields)["power-dev-plugin/nx-gzip"].options
    assert accelerator.credits == (replicas if 0 < limit < 100_000 else "auto")
    assert ("10000" in notes(fields)["upper-limit"]) == (limit == 20_000)


@pytest.mark.parametrize(
    ("strategy", "interval", "rescan"),
    [
        ("time", "30s", 30),
        ("time", "1h30m", 5400),
        ("time", "100ms", 1),
        ("time", "100h", 86400),
        ("time", "", 60),
        ("default", "10m", 60),
        ("other", "10m", 60),
    ],
)
def test_how_often_it_looks(strategy: str, interval: str, rescan: float) -> None:
    fields = {"discovery-strategy": strategy, "scan-interval": interval}
    assert config(fields).daemon.rescan_seconds == rescan
    assert "at once" in notes(fields)["discovery-strategy, scan-interval"]


def test_an_interval_that_nobody_understands_is_said_to_be_one() -> None:
    assert "'soon' was not understood" in notes({"scan-interval": "soon"})["scan-interval"]
    assert "scan-interval" not in notes({"scan-interval": "60m"})
    assert "scan-interval" not in notes({"discovery-strategy": "default"})


def test_names_of_fields_in_any_case_and_null() -> None:
    fields = {"Include-Devices": ["/dev/dm-0"], "EXCLUDE-DEVICES": None, "Upper-Limit": 3}
    assert disks(fields).include == ("/dev/dm-0",) and disks(fields).replicas == 3


def test_an_unknown_field_is_said_to_be_one() -> None:
    told = notes({"exclude-device": ["/dev/dm-3"], "colour": 1})
    assert "was exclude-devices meant?" in told["exclude-device"]
    assert "no such field" in told["colour"]


def test_the_name_and_the_mode_can_be_chosen() -> None:
    found = config(DOCUMENTED, name="disk", mode=Mode.DUAL)
    assert [group.name for group in found.groups] == ["disk", "nx-gzip"]
    assert {group.mode for group in found.groups} == {Mode.DUAL}
    assert [group.name for group in config(DOCUMENTED, name="nx-gzip").groups] == ["nx-gzip", "nx"]
    with pytest.raises(ConfigErrors, match=r"groups\[0\].name"):
        config(DOCUMENTED, name="No Name")


# Errors


def test_every_wrong_field_is_named_at_once() -> None:
    told = errors({"nx-gzip": "yes", "upper-limit": True, "include-devices": ["/dev/a", 3], "permissions": 1})
    assert [one.partition(":")[0] for one in told] == [
        "nx-gzip",
        "upper-limit",
        "include-devices[1]",
        "permissions",
    ]
    told = errors(
        {
            "include-devices": ["dm-0", "/dev/[a", "/dev/{a,b}"],
            "exclude-devices": ["/tmp/x"],
            "discovery-strategy": "time",
            "scan-interval": "5 minutes",
        }
    )
    assert [one.partition(":")[0] for one in told] == [
        "include-devices[0]",
        "include-devices[1]",
        "include-devices[2]",
        "exclude-devices[0]",
        "scan-interval",
    ]


def test_nothing_left_to_offer() -> None:
    fields = {"include-devices": [NX], "exclude-devices": ["/dev/crypto/*"]}
    for together in (False, True):
        (error,) = errors(fields, together=together)
        assert error.startswith("exclude-devices: takes away all")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n  "nx-gzip": true,\n}', "line 3: not JSON"),
        ('{"nx-gzip": true, "nx-gzip": false}', "nx-gzip: is there twice"),
        ("[]", "there is no configuration in it"),
        ("", "there is no configuration in it"),
        ("a: [", "neither JSON nor YAML"),
        ("kind: ConfigMap\ndata: {other: x}\n", "there is no configuration in it"),
        ('kind: ConfigMap\ndata: {config.json: "[]"}\n', 'data["config.json"]: must be an object'),
        ("kind: ConfigMap\ndata: {config.json: {}}\n", 'data["config.json"]: must be a text'),
        ("kind: ConfigMap\ndata: {config.json: '{'}\n", 'data["config.json"]: not JSON'),
    ],
)
def test_what_is_no_configuration(text: str, said: str) -> None:
    (error,) = errors(text)
    assert said in error


# Manifests

CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "power-device-config", "namespace": "power-device-plugin"},
    "data": {"config.json": json.dumps(DOCUMENTED)},
}

DAEMON_SET = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "spec": {
        "template": {
            "spec": {
                "affinity": {"nodeAffinity": {}},
                "containers": [
                    {
                        "name": "plugin",
                        "image": "quay.io/powercloud/power-device-plugin:v1",
                        "env": [
                            {"name": "GHW_CHROOT", "value": "/host"},
                            {"name": "GOMEMLIMIT", "valueFrom": {"resourceFieldRef": {}}},
                            {"name": "OWN", "value": "1"},
                        ],
                    }
                ],
            }
        }
    },
}


def from_text(text: str) -> Imported:
    return power_device_plugin(text, "manifests", Options())


@pytest.mark.parametrize("form", ["json", "yaml", "list", "stream"])
def test_the_manifest_that_carries_it(form: str) -> None:
    text = {
        "json": json.dumps(CONFIG_MAP),
        "yaml": yaml.safe_dump(CONFIG_MAP),
        "list": json.dumps({"kind": "List", "items": [DAEMON_SET, CONFIG_MAP]}),
        "stream": yaml.safe_dump_all([{"kind": "Project"}, CONFIG_MAP, None, DAEMON_SET]),
    }[form]
    found = from_text(text)
    assert found.config == imported(DOCUMENTED).config
    told = {note.field: note.text for note in found.notes}
    if form in ("list", "stream"):
        assert told["env OWN"] == "'1' is not taken up: the plugin does not read it."
        assert {"env GHW_CHROOT", "env GOMEMLIMIT"} <= told.keys()
        assert "kustomize/components/power-device-plugin" in told["affinity"]


def test_a_daemonset_without_a_configuration_is_one_with_the_defaults() -> None:
    assert from_text(yaml.safe_dump(DAEMON_SET)).config == imported({}).config


@pytest.mark.parametrize(
    "metadata",
    [{"name": "power-device-plugin"}, {"name": "own", "labels": {"app": "power-device-plugin"}}],
    ids=["name", "label"],
)
def test_the_plugin_is_known_by_its_name_or_its_label(metadata: dict[str, Any]) -> None:
    plain = {"kind": "DaemonSet", "metadata": metadata, "spec": {"template": {"spec": {"containers": [{}]}}}}
    assert from_text(yaml.safe_dump(plain)).config == imported({}).config


@pytest.mark.parametrize(
    "path",
    [
        "samples/device-node/pod.yaml",
        "samples/power-device-plugin/deployment.yaml",
        "kustomize/base/daemonset.yaml",
        "kustomize/components/power-device-plugin/daemonset.yaml",
    ],
)
def test_what_is_not_the_plugin_is_not_every_disk(path: str) -> None:
    shown = run(Path(__file__).parents[2] / path)
    assert shown.exit_code == 2 and shown.stdout == ""
    assert "no power-device-plugin in it" in shown.stderr


def test_of_two_configurations_neither_is_taken() -> None:
    other = {**CONFIG_MAP, "metadata": {"name": "other"}}
    (error,) = errors(yaml.safe_dump_all([CONFIG_MAP, other]))
    assert "power-device-config and other" in error


# Patterns and durations of Go


@pytest.mark.parametrize(
    ("go", "yes", "no"),
    [
        ("/dev/dm-?", "/dev/dm-1", "/dev/dm-10"),
        ("/dev/dm-[^3]", "/dev/dm-1", "/dev/dm-3"),
        ("/dev/dm-[0-2a]", "/dev/dm-a", "/dev/dm-3"),
        (r"/dev/a\*", "/dev/a*", "/dev/ab"),
        (r"/dev/a\b", "/dev/ab", r"/dev/a\b"),
        ("/dev/*/x", "/dev/a/x", "/dev/a/b/x"),
        ("/dev/a]", "/dev/a]", "/dev/a"),
    ],
)
def test_patterns_of_go(go: str, yes: str, no: str) -> None:
    assert matches(yes, pattern(go)) and not matches(no, pattern(go))


@pytest.mark.parametrize(
    "go", ["/dev/[", "/dev/[]", "/dev/[a-", "/dev/[a-]", "/dev/a\\", "/dev/[!a]", r"/dev/[\]]"]
)
def test_patterns_that_go_refuses_or_that_have_no_counterpart(go: str) -> None:
    with pytest.raises(ValueError, match=r"\[|backslash"):
        pattern(go)


@pytest.mark.parametrize(("text", "wanted"), [("0", 0), ("1.5m", 90), ("-2s", -2), ("1h0m.5s", 3600.5)])
def test_durations_of_go(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "5d", "1m 2s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is written like"):
        seconds(text)


# The command


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["config", "import", *map(str, arguments)], input=stdin)


def test_the_command_prints_a_configuration_with_notes(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DOCUMENTED))
    shown = run(file, "--name", "disk")
    assert shown.exit_code == 0
    assert parse(shown.stdout).groups[0].name == "disk"
    lines = shown.stdout.splitlines()
    assert lines[0] == f"# From {file} of power-device-plugin. What differs, field by field:"
    assert all(len(line) <= 118 for line in lines[1:])
    assert [line for line in lines if line.startswith("# - exclude-devices: always counts")]


def test_the_command_as_json_reads_standard_input() -> None:
    shown = run("-", "-o", "json", "--mode", "dual", stdin=json.dumps(CONFIG_MAP))
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["mode"] == "dual"
    assert "bridge: exclude-devices: always counts" in shown.stderr


def test_the_command_names_every_wrong_field(tmp_path: Path) -> None:
    shown = run("-", stdin='{"include-devices": ["dm-0", "/dev/[a"]}')
    assert shown.exit_code == 2 and shown.stdout == ""
    assert "include-devices[0]" in shown.stderr and "include-devices[1]" in shown.stderr
    assert run(tmp_path / "missing").exit_code == 2
    (tmp_path / "binary").write_bytes(b"\xff")
    assert "not UTF-8" in run(tmp_path / "binary").stderr
