"""Conversion of workloads, case by case: what is written, what is left and why."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from bridge.convert.model import File, Options, Result, Target
from bridge.convert.pods import POD_SPECS
from bridge.convert.run import to_claims, to_resources
from bridge.convert.shares import Asker, Role, amounts, pieces
from bridge.convert.versions import ApiVersion

ACC, NX, GPU = "device-bridge.io/acc", "device-bridge.io/nx", "nvidia.com/gpu"
TARGETS = {ACC: Target("acc"), NX: Target("nx", "credits")}
OPTIONS = Options(TARGETS)


def forth(text: str, options: Options = OPTIONS) -> Result:
    (result,) = to_claims([File("x.yaml", text)], options)
    return result


def back(text: str, options: Options = OPTIONS) -> Result:
    (result,) = to_resources([File("x.yaml", text)], options)
    return result


def pod(*main: dict[str, Any], init: tuple[dict[str, Any], ...] = (), **spec: Any) -> str:
    body = {"initContainers": list(init), "containers": list(main), **spec}
    return manifest("v1", "Pod", {k: v for k, v in body.items() if v})


def manifest(version: str, kind: str, spec: object, **metadata: str) -> str:
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": "web", **metadata}, "spec": spec}
    return yaml.safe_dump(body, sort_keys=False)


def container(name: str = "main", *, sidecar: bool = False, **amounts: int) -> dict[str, Any]:
    asked = {f"device-bridge.io/{name}": amount for name, amount in amounts.items()}
    more = {"restartPolicy": "Always"} if sidecar else {}
    return {"name": name, **more, "resources": {"limits": asked}}


def documents(result: Result) -> list[Any]:
    return list(yaml.safe_load_all(result.text))


def requests(result: Result) -> list[Any]:
    (template,) = documents(result)[1:]
    found: list[Any] = template["spec"]["spec"]["devices"]["requests"]
    return found


def said(result: Result) -> list[str]:
    return [str(problem) for problem in result.problems]


# What is written


@pytest.mark.parametrize(("group", "kind"), POD_SPECS)
def test_each_kind_of_workload_is_converted_and_comes_back(group: str, kind: str) -> None:
    spec: dict[str, Any] = {"containers": [container(acc=2)]}
    for field in reversed(POD_SPECS[group, kind][1:]):
        spec = {field: spec}
    text = manifest(f"{group}/v1" if group else "v1", kind, spec, namespace="team")
    result = forth(text)
    assert not result.problems
    workload, template = documents(result)
    for field in POD_SPECS[group, kind]:
        workload = workload[field]
    assert workload["containers"] == [{"name": "main", "resources": {"claims": [{"name": "acc"}]}}]
    assert workload["resourceClaims"] == [{"name": "acc", "resourceClaimTemplateName": "web-acc"}]
    assert template["metadata"]["namespace"] == "team" and template["metadata"]["name"] == "web-acc"
    assert back(result.text).text == text


@pytest.mark.parametrize(
    ("options", "acc", "nx"),
    [
        (
            OPTIONS,
            {"name": "acc", "exactly": {"deviceClassName": "acc", "count": 2}},
            {"name": "nx", "exactly": {"deviceClassName": "nx", "capacity": {"requests": {"credits": "3"}}}},
        ),
        (
            Options(TARGETS, capacity=False),
            {"name": "acc", "exactly": {"deviceClassName": "acc", "count": 2}},
            {"name": "nx", "exactly": {"deviceClassName": "nx", "count": 3}},
        ),
        (
            Options(TARGETS, ApiVersion.V1BETA1),
            {"name": "acc", "deviceClassName": "acc", "count": 2},
            {"name": "nx", "deviceClassName": "nx", "count": 3},
        ),
    ],
    ids=["v1", "v1 with shares as devices", "v1beta1"],
)
def test_the_request_has_the_shape_of_its_version(options: Options, acc: object, nx: object) -> None:
    for asked, wanted in ((container(acc=2), acc), (container(nx=3), nx)):
        text = pod(asked)
        result = forth(text, options)
        assert requests(result) == [wanted]
        assert documents(result)[1]["apiVersion"] == f"resource.k8s.io/{options.api_version}"
        assert back(result.text, options).text == text


@pytest.mark.parametrize(
    ("askers", "wanted"),
    [
        ([("a", Role.MAIN, 2), ("b", Role.MAIN, 1)], {"a": 2, "b": 1}),
        ([("i", Role.INIT, 1), ("a", Role.MAIN, 1)], {"ai": 1}),
        ([("i", Role.INIT, 1), ("a", Role.MAIN, 3)], {"ai": 1, "a": 2}),
        ([("i", Role.INIT, 3), ("a", Role.MAIN, 1)], {"ai": 1, "i": 2}),
        ([("i", Role.INIT, 2), ("j", Role.INIT, 1), ("a", Role.MAIN, 1)], {"aij": 1, "i": 1}),
        ([("s", Role.SIDECAR, 1), ("a", Role.MAIN, 1)], {"s": 1, "a": 1}),
        ([("s", Role.SIDECAR, 1), ("i", Role.INIT, 1), ("a", Role.MAIN, 1)], {"s": 1, "ai": 1}),
        ([("i", Role.INIT, 2), ("s", Role.SIDECAR, 1), ("a", Role.MAIN, 1)], {"is": 1, "ai": 1}),
    ],
)
def test_containers_share_devices_as_the_kubelet_lets_them(
    askers: list[tuple[str, Role, int]], wanted: dict[str, int]
) -> None:
    row = pieces([Asker((name,), role, amount) for name, role, amount in askers])
    found = {"".join(sorted(str(p[0]) for p in who)): n for who, n in amounts(row).items()}
    assert found == wanted


def test_an_init_container_and_the_main_one_have_the_same_device() -> None:
    text = pod(container("server", acc=2), init=(container("test", acc=1),))
    result = forth(text.replace("device-bridge.io/test", ACC).replace("device-bridge.io/server", ACC))
    spec = documents(result)[0]["spec"]
    assert spec["initContainers"][0]["resources"]["claims"] == [{"name": "acc", "request": "acc-1"}]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "acc"}]
    assert [request["name"] for request in requests(result)] == ["acc-1", "acc-2"]


def test_what_is_there_already_is_kept_and_names_give_way() -> None:
    mine = {"name": "acc", "resourceClaimTemplateName": "other"}
    asked = container(acc=1)
    asked["resources"]["claims"] = [{"name": "acc"}]
    taken = manifest("resource.k8s.io/v1", "ResourceClaimTemplate", {"spec": {}}).replace("web", "web-acc-2")
    result = forth(pod(asked, resourceClaims=[mine]) + "---\n" + taken)
    spec, template, kept = documents(result)
    assert spec["spec"]["containers"][0]["resources"] == {"claims": [{"name": "acc"}, {"name": "acc-2"}]}
    assert spec["spec"]["resourceClaims"] == [
        mine,
        {"name": "acc-2", "resourceClaimTemplateName": "web-acc-2-pod"},
    ]
    assert template["metadata"]["name"] == "web-acc-2-pod" and kept["metadata"]["name"] == "web-acc-2"


def test_templates_of_one_name_in_two_files_are_told_apart_unless_they_are_the_same() -> None:
    texts = [pod(container(acc=1)), pod(container(acc=2)), pod(container(acc=1))]
    results = to_claims([File(str(i), text) for i, text in enumerate(texts)], OPTIONS)
    names = [[one["metadata"]["name"] for one in documents(result)] for result in results]
    assert names == [["web", "web-acc"], ["web", "web-acc-pod"], ["web"]]
    again = to_resources([File(result.file.name, result.text) for result in results], OPTIONS)
    assert [result.text for result in again] == texts


def test_two_resources_of_one_container() -> None:
    text = pod(container(acc=1, nx=2))
    result = forth(text)
    assert documents(result)[0]["spec"]["containers"][0]["resources"] == {
        "claims": [{"name": "acc"}, {"name": "nx"}]
    }
    assert len(documents(result)) == 3
    assert back(result.text).text == text


def test_a_foreign_class_given_by_name() -> None:
    options = Options({GPU: Target("gpu.nvidia.com")})
    text = pod({"name": "a", "resources": {"limits": {GPU: 1}}})
    result = forth(text, options)
    assert requests(result) == [{"name": "gpu-nvidia-com", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]
    assert back(result.text, options).text == text


def test_a_list_gets_its_templates_behind_the_workloads() -> None:
    one = yaml.safe_load(pod(container(acc=1)))
    two = yaml.safe_load(pod(container(nx=1)))
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [one, two]}, sort_keys=False)
    result = forth(text)
    items = yaml.safe_load(result.text)["items"]
    assert [item["kind"] for item in items] == ["Pod", "ResourceClaimTemplate"] * 2
    assert back(result.text).text == text


def test_a_json_list_stays_json() -> None:
    import json

    one = yaml.safe_load(pod(container(acc=1)))
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [one]}, indent=2)
    result = forth(text)
    assert [item["kind"] for item in json.loads(result.text)["items"]] == ["Pod", "ResourceClaimTemplate"]
    assert json.loads(back(result.text).text) == json.loads(text)


TEXTS = {
    "empty lines at the end of a literal belong to it": (
        "  - resources:\n      limits:\n        device-bridge.io/acc: 1\n    args:\n    - |+\n      hello  # no\n\n\n"
        "---\nkind: Other\n"
    ),
    "the end of a document is marked": "  - {name: x, resources: {limits: {device-bridge.io/acc: 1}}}\n...\n# tail\n",
    "the first key of a container": "  - resources: {limits: {device-bridge.io/acc: 1}}\n    name: x\n",
    "no line end": "  - name: x\n    resources:\n      limits:\n        device-bridge.io/acc: 1",
}


@pytest.mark.parametrize("below", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("above", ["", "\ufeff", "%YAML 1.1\n---\n", "---\n---\n# first\n"])
def test_unusual_texts_go_forth_and_back(above: str, below: str) -> None:
    text = f"{above}apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers:\n{below}"
    result = forth(text)
    assert not result.problems and "claims" in result.text
    assert back(result.text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "---\n---\n",
        "hello\n",
        "kind: Pod\nx: !vault |\n  abc\ny: !!timestamp 2020-01-01\nz: .nan\n? {a: b}\n: c\n",
        "kind: Pod\napiVersion: v1\nmetadata: []\nspec: {containers: {a: 1}, initContainers: 4, resourceClaims: 3}\n",
        "kind: Pod\napiVersion: v1\nspec: {containers: [{name: x}], resourceClaims: [{name: c}, 4]}\n",
        f"kind: Pod\napiVersion: v1\nspec: {{containers: [3, {{resources: {{limits: {{{ACC}: [1]}}, claims: 4}}}}]}}\n",
        f"kind: Pod\napiVersion: v1\nspec: {{containers: [{{resources: {{limits: {{{ACC}: 1}}, claims: 4}}}}]}}\n",
        "kind: List\napiVersion: v1\nitems: 4\n",
        "kind: List\napiVersion: v1\nitems: [4, {kind: 3}, null]\n",
    ],
)
def test_what_is_no_workload_as_it_should_be_is_left(text: str) -> None:
    assert forth(text).text == text and back(text).text == text


# What is left, and why


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            pod({"name": "a", "resources": {"limits": {GPU: 1}}}),
            "web: spec.containers[0].resources.limits['nvidia.com/gpu']: there is no DeviceClass for nvidia.com/gpu",
        ),
        (
            pod({"name": "a", "resources": {"requests": {ACC: 1}}}),
            "spec.containers[0].resources.requests['device-bridge.io/acc']: it is in requests and not in limits",
        ),
        (
            pod({"name": "a", "resources": {"limits": {ACC: 2}, "requests": {ACC: 1}}}),
            "requests says 1 and limits says 2",
        ),
        (pod(container(acc=0)), "it asks for none"),
        (pod({"name": "a", "resources": {"limits": {ACC: "1k"}}}), "'1k' is not a plain whole number"),
        (pod(container(acc=33)), "the pod asks for 33 devices; a claim is given at most 32"),
        (
            pod(container(acc=1)).replace("  name: web", "  generateName: web-"),
            "Pod web-: metadata.name: without a name of its own",
        ),
        (
            manifest("v1", "ResourceQuota", {"hard": {f"requests.{ACC}": 4}}),
            "spec.hard['requests.device-bridge.io/acc']: claims do not count against this; add "
            "acc.deviceclass.resource.k8s.io/devices",
        ),
        (
            manifest("kubeflow.org/v1", "TFJob", {"template": {"spec": {"containers": [container(acc=1)]}}}),
            "a TFJob is not converted",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n"
            f"  - {{name: a, resources: &r {{limits: {{{ACC}: 1}}}}}}\n  - {{name: b, resources: *r}}\n",
            "Pod web: spec: the text cannot be changed safely here (an anchor",
        ),
        (
            f"apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nx: &l {{{ACC}: 1}}\nspec:\n  containers:\n"
            "  - {name: a, resources: {limits: {<<: *l}}}\n",
            "stands where no container asks for it",
        ),
        ('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", '
         f'"resources": {{"limits": {{"{ACC}": 1}}}}}}]}}}}', "a JSON file holds one object"),
        (
            yaml.safe_dump({"apiVersion": "v1", "kind": "PodList", "items": [yaml.safe_load(pod(container(acc=1)))]}),
            "a PodList holds nothing else",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_left_and_said(text: str, reason: str) -> None:
    result = forth(text)
    assert result.text == text
    assert any(reason in problem for problem in said(result)), said(result)


def test_the_rest_goes_on() -> None:
    text = pod(container(acc=1), {"name": "b", "resources": {"limits": {GPU: 1}}})
    other = manifest("v1", "ResourceQuota", {"hard": {f"requests.{ACC}": 4}})
    result = forth(f"{text}---\n{other}---\n{pod(container(nx=1)).replace('web', 'next')}")
    assert [one["kind"] for one in documents(result)] == [
        "Pod", "ResourceClaimTemplate", "ResourceQuota", "Pod", "ResourceClaimTemplate",
    ]  # fmt: skip
    assert documents(result)[0]["spec"]["containers"][1]["resources"] == {"limits": {GPU: 1}}
    assert len(result.problems) == 2


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\n---\nb: [1\nc: 2\n", 4, "not valid YAML"),
        ("a: 1\n---\nb: 1\n\nb: 2\n", 5, "'b' is written twice, in lines 3 and 5"),
        ("a: 1\n---\n\nb: *gone\n", 4, "undefined alias"),
        ("a: 1\nb: \x07\n", 2, "not allowed"),
        ("a: 1\nb: &x [*x]\n", 2, "an anchor that contains itself"),
        ("kind: {{ .Values.kind }}\n- x\n", 2, "not valid YAML"),
        ("[" * 5000 + "]" * 5000, 0, "nested too deeply"),
    ],
)
def test_bad_yaml_is_said_with_its_line(text: str, line: int, reason: str) -> None:
    result = forth(text)
    assert (result.usable, result.text) == (False, text)
    (problem,) = result.problems
    assert problem.line == line and reason in str(problem), str(problem)


# The way back


TEMPLATE = """\
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one}
spec:
  spec:
    devices:
      requests:
      - name: r
        exactly: {deviceClassName: acc}
"""


def claiming(*users: str, **claim: str) -> str:
    claim = claim or {"resourceClaimTemplateName": "one"}
    main = [{"name": name, "resources": {"claims": [{"name": "c"}]}} for name in users]
    return pod(*(main or [{"name": "idle"}]), resourceClaims=[{"name": "c", **claim}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (claiming("a", resourceClaimName="mine"), "a claim that stands on its own outlives pods"),
        (claiming("a"), "its template one is in none of the files given"),
        (f"{claiming('a', 'b')}---\n{TEMPLATE}", "its containers share device-bridge.io/acc"),
        (f"{claiming()}---\n{TEMPLATE}", "no container uses its request r"),
        (
            f"{claiming('a')}---\n{TEMPLATE.replace('acc', 'gpu')}",
            "the extended resource of DeviceClass gpu is not known (none); give --class NAME=gpu",
        ),
        (
            f"{claiming('a')}---\n{TEMPLATE.replace('acc}', 'acc, adminAccess: true}')}",
            "request r has adminAccess",
        ),
        (
            f"{claiming('a')}---\n{TEMPLATE.replace('acc}', 'acc, allocationMode: All}')}",
            "no fixed number of devices",
        ),
        (
            f"{claiming('a')}---\n{TEMPLATE}      config: [{{}}]\n",
            "its config cannot be said to a device plugin",
        ),
        (
            f"{claiming('a')}---\n{TEMPLATE.replace('acc}', 'nx, capacity: {requests: {credits: 1500m}}}')}",
            "not a whole number",
        ),
    ],
)
def test_what_a_device_plugin_cannot_say_stays_a_claim(text: str, reason: str) -> None:
    result = back(text)
    assert result.text == text
    assert any(reason in problem for problem in said(result)), said(result)


def test_a_template_by_hand_goes_back_when_it_asks_for_no_more() -> None:
    result = back(f"{claiming('a')}---\n# of a\n{TEMPLATE}")
    assert not result.problems
    assert result.text == pod({"name": "a", "resources": {"limits": {ACC: 1}}}) + "# of a\n"


def test_a_template_that_another_workload_needs_stays() -> None:
    other = claiming("a", "b").replace("web", "other")
    result = back(f"{claiming('a')}---\n{other}---\n{TEMPLATE}")
    assert [one["kind"] for one in documents(result)] == ["Pod", "Pod", "ResourceClaimTemplate"]
    assert "resourceClaims" not in documents(result)[0]["spec"]


def test_a_template_in_another_file_is_found_and_taken_out_there() -> None:
    files = [File("pod", claiming("a")), File("template", TEMPLATE)]
    workload, template = to_resources(files, OPTIONS)
    assert "claims" not in workload.text and template.text == ""


def test_a_foreign_claim_beside_ours_stays() -> None:
    spec = yaml.safe_load(claiming("a"))
    spec["spec"]["resourceClaims"].insert(0, {"name": "gpu", "resourceClaimTemplateName": "gpu"})
    spec["spec"]["containers"][0]["resources"]["claims"].append({"name": "gpu"})
    result = back(yaml.safe_dump(spec, sort_keys=False) + "---\n" + TEMPLATE)
    (pod,) = documents(result)
    assert pod["spec"]["containers"][0]["resources"] == {"claims": [{"name": "gpu"}], "limits": {ACC: 1}}
    assert [claim["name"] for claim in pod["spec"]["resourceClaims"]] == ["gpu"]
    assert len(result.problems) == 1
