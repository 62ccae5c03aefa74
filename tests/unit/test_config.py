import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bridge.config import (
    Binding,
    Config,
    ConfigErrors,
    Count,
    Mode,
    Names,
    Percent,
    Registration,
    Sharing,
    as_json,
    load,
    parse,
    schema,
)

SAMPLES = sorted((Path(__file__).parents[2] / "samples" / "config").glob("*.yaml"))

HEAD = "apiVersion: device-bridge.io/v1alpha1\nkind: BridgeConfig\n"
ACC = "- name: acc\n  kind: device-node\n  options: {include: ['/dev/acc*']}\n"


def config(groups: str = ACC, rest: str = "") -> Config:
    return parse(f"{HEAD}groups:\n{groups}{rest}")


def group(more: str) -> Config:
    return config(ACC + "".join(f"  {line}\n" for line in more.splitlines()))


def complaints(text: str) -> dict[str, str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(text)
    return {error.path: error.message for error in caught.value.errors}


def complaint(groups: str, path: str, rest: str = "") -> str:
    found = complaints(f"{HEAD}groups:\n{groups}{rest}")
    assert list(found) == [path]
    return found[path]


def test_the_defaults_are_those_of_the_design() -> None:
    effective = config()
    (acc,) = effective.groups
    assert effective.mode is Mode.DUAL
    assert (acc.resource_name, acc.driver_name) == ("device-bridge.io/acc", "acc.device-bridge.io")
    assert (acc.mode, acc.sharing, acc.partition) == (Mode.DUAL, Sharing.SHARED, None)
    assert (acc.binding, acc.registration) == (Binding.AUTO, Registration.WATCHER)
    assert acc.keep_resource_name is False
    assert effective.daemon.state_dir == Path("/var/lib/kubelet/plugins/device-bridge")
    assert effective.daemon.cdi.static_dir == Path("/etc/cdi")
    assert effective.daemon.metrics_address == "127.0.0.1:9464"


def test_a_group_takes_the_mode_of_the_file_unless_it_names_its_own() -> None:
    effective = config(ACC + "- {name: nx, kind: nx-gzip, mode: dra}\n", "mode: device-plugin\n")
    assert [g.mode for g in effective.groups] == [Mode.DEVICE_PLUGIN, Mode.DRA]


def test_the_state_directory_follows_the_kubelet_root() -> None:
    daemon = config(rest="daemon: {kubeletRoot: /srv/kubelet}\n").daemon
    assert daemon.state_dir == Path("/srv/kubelet/plugins/device-bridge")


def test_a_group_may_keep_its_resource_name_on_the_way_to_dra() -> None:
    kept = group("keepResourceName: true")
    assert kept.groups[0].keep_resource_name is True
    assert parse(yaml.safe_dump(kept.dump())) == kept


@pytest.mark.parametrize(("written", "binding"), [("off", Binding.OFF), ("on", Binding.ON)])
@pytest.mark.parametrize("quote", ["", "'"])
def test_bare_on_and_off_are_words_and_no_booleans(written: str, binding: Binding, quote: str) -> None:
    assert group(f"binding: {quote}{written}{quote}").groups[0].binding is binding


@pytest.mark.parametrize(
    ("written", "partition"),
    [("50%", Percent(50)), ("3", Count(3)), ("[acc0, 'acc1*']", Names(("acc0", "acc1*")))],
)
def test_a_partition_is_a_percentage_a_number_or_names(written: str, partition: object) -> None:
    assert (
        group(f"sharing: partition\npartition: {{devicePlugin: {written}}}").groups[0].partition == partition
    )


def test_a_partition_takes_devices_from_the_end() -> None:
    names = [f"acc{i}" for i in range(12)]
    assert Percent(25).device_plugin(names) == {"acc9", "acc10", "acc11"}
    assert Count(1).device_plugin(names) == {"acc11"}
    assert Count(99).device_plugin(names) == set(names)
    assert Count(0).device_plugin(names) == frozenset()
    assert Names(("acc1*",)).device_plugin(names) == {"acc1", "acc10", "acc11"}


@pytest.mark.parametrize("written", ["50", "101%", "-1%", "half%"])
def test_a_percentage_in_words_or_out_of_range_is_refused(written: str) -> None:
    message = complaint(
        f"{ACC}  sharing: partition\n  partition: {{devicePlugin: '{written}'}}\n",
        "groups[0].partition.devicePlugin",
    )
    assert "50%" in message


def test_partition_and_sharing_belong_together() -> None:
    assert "partition.devicePlugin" in complaint(f"{ACC}  sharing: partition\n", "groups[0]")
    assert "sharing: partition" in complaint(f"{ACC}  partition: {{devicePlugin: 1}}\n", "groups[0]")


def test_every_error_is_told_at_once_with_its_path_and_line() -> None:
    text = f"""{HEAD}mode: daul
groups:
- name: acc
  kind: device-node
  options:
    inclde: ["/dev/acc*"]
    include: ["acc*", 5]
    replicas: "4"
- name: Acc
  kind: nx-gizp
- 5
daemon: {{rescanSecond: 3}}
"""
    with pytest.raises(ConfigErrors) as caught:
        parse(text, source="bridge.yaml")
    assert [(error.line, error.path) for error in caught.value.errors] == [
        (3, "mode"),
        (8, "groups[0].options.inclde"),
        (9, "groups[0].options.include[0]"),
        (9, "groups[0].options.include[1]"),
        (10, "groups[0].options.replicas"),
        (11, "groups[1].name"),
        (12, "groups[1].kind"),
        (13, "groups[2]"),
        (14, "daemon.rescanSecond"),
    ]
    assert "bridge.yaml: line 3: mode: must be 'device-plugin', 'dual' or 'dra', not 'daul'" in str(
        caught.value
    )


def test_an_unknown_field_is_answered_with_the_likely_one() -> None:
    assert complaint(f"{ACC}  resorceName: a/b\n", "groups[0].resorceName") == (
        "unknown field; did you mean resourceName?"
    )
    assert "containerPath" in complaint(
        "- name: a\n  kind: device-node\n  options: {devices: [{name: d, nodes: [{path: /dev/a, zzz: 1}]}]}\n",
        "groups[0].options.devices[0].nodes[0].zzz",
    )


def test_an_unknown_kind_is_answered_with_the_kinds() -> None:
    message = complaint("- {name: a, kind: gpus}\n", "groups[0].kind")
    assert "device-node" in message
    assert "nx-gzip" in message


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    assert "lines 5 and 6" in complaint(
        "- name: acc\n  kind: device-node\n  kind: device-node\n  options: {include: ['/dev/a']}\n",
        "groups[0].kind",
    )


@pytest.mark.parametrize(
    ("second", "field", "taken"),
    [
        ("name: acc", "name", "group 'acc'"),
        ("name: b\n  resourceName: device-bridge.io/acc", "resourceName", "device-bridge.io/acc"),
        ("name: b\n  driverName: acc.device-bridge.io", "driverName", "acc.device-bridge.io"),
    ],
)
def test_two_groups_cannot_have_one_name(second: str, field: str, taken: str) -> None:
    message = complaint(f"{ACC}- {second}\n  kind: nx-gzip\n", f"groups[1].{field}")
    assert "groups[0]" in message
    assert taken in message


@pytest.mark.parametrize(
    "name",
    [
        "acc",
        "example.com/",
        "kubernetes.io/acc",
        "x.kubernetes.io/acc",
        "requests.a/b",
        "A.com/acc",
        "a.b/-x",
    ],
)
def test_a_resource_name_that_the_kubelet_would_refuse_is_refused(name: str) -> None:
    complaint(f"{ACC}  resourceName: '{name}'\n", "groups[0].resourceName")


@pytest.mark.parametrize("name", ["Acc.io", "acc_x.io", "a..b", "x" * 64, "-a.io"])
def test_a_driver_name_that_the_cluster_would_refuse_is_refused(name: str) -> None:
    complaint(f"{ACC}  driverName: '{name}'\n", "groups[0].driverName")


@pytest.mark.parametrize("name", ["0acc", "Acc", "a.b", "a-", "x" * 47])
def test_a_group_name_that_is_no_label_is_refused(name: str) -> None:
    complaint(f"- name: '{name}'\n  kind: nx-gzip\n", "groups[0].name")


def test_names_of_existing_drivers_are_free_to_take() -> None:
    acc = group("resourceName: power-dev-plugin/dev\ndriverName: gpu.intel.com").groups[0]
    assert (acc.resource_name, acc.driver_name) == ("power-dev-plugin/dev", "gpu.intel.com")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("- a\n", "mapping"),
        ("a: [\n", "YAML"),
        ("a: b: c\n", "YAML"),
        ("a: 1\n---\nb: 2\n", "YAML"),
        ("a: \x07\n", "YAML"),
    ],
)
def test_text_that_is_no_mapping_is_refused(text: str, said: str) -> None:
    assert said in complaints(text)[""]


def test_a_syntax_error_tells_its_line() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(f"{HEAD}groups:\n- name: acc\n  kind: [\n")
    assert caught.value.errors[0].line == 6


def test_what_is_missing_is_named() -> None:
    found = complaints("groups: []\n")
    assert set(found) == {"apiVersion", "kind", "groups"}
    assert found["groups"] == "must not be empty"


def test_a_missing_and_an_unreadable_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="does not exist"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigErrors, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"mode: \xff")
    with pytest.raises(ConfigErrors, match="not UTF-8"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("daemon", "path"),
    [
        ("kubeletRoot: kubelet", "daemon.kubeletRoot"),
        ("cdi: {staticDir: etc}", "daemon.cdi.staticDir"),
        ("criSocket: containerd.sock", "daemon.criSocket"),
        ("metricsAddress: '9464'", "daemon.metricsAddress"),
        ("metricsAddress: '::1:9464'", "daemon.metricsAddress"),
        ("metricsAddress: 'a:99999'", "daemon.metricsAddress"),
        ("rescanSeconds: 0", "daemon.rescanSeconds"),
        ("rescanSeconds: '60'", "daemon.rescanSeconds"),
    ],
)
def test_daemon_settings_are_checked(daemon: str, path: str) -> None:
    complaint(ACC, path, f"daemon: {{{daemon}}}\n")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_the_samples_are_valid_and_their_effective_form_loads_to_the_same(sample: Path) -> None:
    effective = load(sample)
    assert parse(yaml.safe_dump(effective.dump())) == effective


def test_there_is_a_sample_of_every_kind() -> None:
    kinds = {group.kind for sample in SAMPLES for group in load(sample).groups}
    assert {"device-node.yaml", "nx-gzip.yaml", "mixed.yaml"} <= {sample.name for sample in SAMPLES}
    assert kinds == {"device-node", "nx-gzip"}


def test_the_schema_has_the_options_of_every_kind() -> None:
    document = schema()
    definitions = document["$defs"]
    assert isinstance(definitions, dict)
    branches = definitions["_Group"]["allOf"]
    named = {branch["if"]["properties"]["kind"]["const"]: branch["then"] for branch in branches}
    assert set(named) == {"device-node", "nx-gzip"}
    for then in named.values():
        reference = then["properties"]["options"]["$ref"]
        assert definitions[reference.removeprefix("#/$defs/")]["additionalProperties"] is False


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_json_means_the_same(sample: Path) -> None:
    text = sample.read_text()
    assert parse(as_json(text)) == parse(text)


@pytest.mark.parametrize(("old", "new"), [(" ", "\t"), ("30", "3e1")], ids=["tabs", "exponent"])
def test_json_that_yaml_does_not_take_is_handed_over_as_it_is_read(old: str, new: str) -> None:
    text = json.dumps(yaml.safe_load(f"{HEAD}groups:\n{ACC}daemon: {{rescanSeconds: 30}}"), indent=1)
    text = text.replace(old, new)
    assert parse(as_json(text)) == parse(text)


def test_json_is_read_without_the_library_of_yaml(tmp_path: Path) -> None:
    """The daemon on every node is spared it: a MiB."""
    file = tmp_path / "config"
    file.write_text(as_json(SAMPLES[0].read_text()))
    program = (
        "import sys, pathlib, bridge.daemon.run, bridge.config as c; c.load(pathlib.Path(sys.argv[1])); "
        "sys.exit('yaml' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


def test_errors_in_json_have_their_lines_too() -> None:
    text = as_json(f"{HEAD}groups:\n{ACC}").replace('"name"', '\n"name": "b",\n"name"')
    with pytest.raises(ConfigErrors, match="written twice, in lines 2 and 3") as caught:
        parse(text)
    assert len(caught.value.errors) == 1
