"""Documents as people write them go forth and back: nothing but the resources changes, and that comes back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.convert.model import File, Options, Target
from bridge.convert.run import to_claims, to_resources
from bridge.convert.versions import ApiVersion
from bridge.devices.kinds import KINDS

SAMPLES = Path(__file__).parents[2] / "samples"
ACC, NX = "device-bridge.io/acc", "vendor.com/nx_gzip"
TARGETS = {ACC: Target("acc"), NX: Target("nx", "credits")}


@dataclass(frozen=True)
class Container:
    """One container of a generated document.

    Attributes:
        asks: amounts by resource.
        also: whether `requests` says them too.
        others: whether it has other limits and requests besides.
        flow: whether `resources` is in braces.
        comments: what stands above, beside and below.
    """

    asks: dict[str, int]
    also: bool
    others: bool
    flow: bool
    comments: tuple[bool, bool, bool]
    sidecar: bool = False


@dataclass(frozen=True)
class Style:
    """How a document is written."""

    step: int
    dash: int
    windows: bool
    ends: bool
    blank: bool


AMOUNTS = st.dictionaries(st.sampled_from([ACC, NX]), st.integers(1, 5), max_size=2)
FLAGS = st.booleans()
COMMENTS = st.tuples(FLAGS, FLAGS, FLAGS)
CONTAINERS = st.builds(Container, AMOUNTS, FLAGS, FLAGS, FLAGS, COMMENTS)
INIT = st.builds(Container, AMOUNTS, FLAGS, FLAGS, FLAGS, COMMENTS, FLAGS)
STYLES = st.builds(Style, st.sampled_from([2, 4]), st.sampled_from([0, 2, 4]), FLAGS, FLAGS, FLAGS)
OPTIONS = st.builds(Options, st.just(TARGETS), st.sampled_from(ApiVersion), FLAGS)


def render(init: list[Container], main: list[Container], style: Style) -> str:
    """A Deployment between two other documents."""
    lines = [
        "# a file",
        "kind: ConfigMap",
        "apiVersion: v1",
        "data: {x:   '# no comment'}",
        "# about web",
        "---",
    ]
    lines += ["apiVersion: apps/v1", "kind: Deployment", "metadata: {name: web}   # the web"]
    nest = [" " * style.step * i for i in range(4)]
    lines += ["spec:", f"{nest[1]}template:", f"{nest[2]}spec:"]
    for field, containers in (("initContainers", init), ("containers", main)):
        if containers:
            lines += [f"{nest[3]}# {field}", f"{nest[3]}{field}:"]
            for i, container in enumerate(containers):
                dash = nest[3] + " " * style.dash
                body = list(written(f"{field[0]}{i}", container, style))
                lines += [f"{dash}- {body[0]}", *(f"{dash}  {line}" if line else "" for line in body[1:])]
    lines += ["---", "# the last", "kind: ConfigMap", 'apiVersion: "v1"']
    text = "\n".join(lines) + ("\n" if style.ends else "")
    return text.replace("\n", "\r\n") if style.windows else text


def written(name: str, container: Container, style: Style) -> Iterator[str]:
    above, beside, below = container.comments
    yield f"name: {name}"
    if container.sidecar:
        yield "restartPolicy: Always"
    limits = ({"cpu": 1} if container.others else {}) | container.asks
    requests = ({"memory": "1Gi"} if container.others else {}) | (container.asks if container.also else {})
    both = {key: value for key, value in (("limits", limits), ("requests", requests)) if value}
    if container.flow:
        inner = ", ".join(
            f"{key}: {{{', '.join(f'{k}: {v}' for k, v in value.items())}}}" for key, value in both.items()
        )
        yield f"resources: {{{inner}}}" + ("  # beside" if beside else "")
    elif both:
        yield "resources:"
        for key, value in both.items():
            yield f"{' ' * style.step}{key}:"
            for i, (resource, amount) in enumerate(value.items()):
                first = key == "limits" and i == 0
                if above and first:
                    yield f"{' ' * 2 * style.step}# above"
                yield f"{' ' * 2 * style.step}{resource}: {amount}" + (
                    "  # beside" if beside and first else ""
                )
    if below:
        yield "# below"
    if style.blank:
        yield ""
    yield "image: 'x'  # of " + name


def asks(init: list[Container], main: list[Container]) -> bool:
    return any(container.asks for container in [*init, *main])


# Parsing dominates, so a failing document is told as it was found instead of made smaller.
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(INIT, max_size=3), st.lists(CONTAINERS, min_size=1, max_size=3), STYLES, OPTIONS)
def test_forth_and_back(init: list[Container], main: list[Container], style: Style, options: Options) -> None:
    text = render(init, main, style)
    (there,) = to_claims([File("x", text)], options)
    assert not there.problems
    assert (there.text != text) == asks(init, main)
    assert comments(there.text) == comments(text)
    assert_the_rest_is_the_same(text, there.text)
    assert_the_same_devices(there.text, init, main)
    (again,) = to_claims([File("x", there.text)], options)
    assert again.text == there.text
    (home,) = to_resources([File("x", there.text)], options)
    assert not home.problems
    assert comments(home.text) == comments(text)
    assert list(yaml.safe_load_all(home.text)) == list(yaml.safe_load_all(text))
    if all(lossless(container) for container in [*init, *main]):
        assert home.text == text


def lossless(container: Container) -> bool:
    """Whether even the bytes come back: with a comment inside of what goes away, its place may differ."""
    above, beside, _ = container.comments
    if container.flow or not container.asks:
        return True
    commented_away = not container.others and (above or beside)
    return not commented_away or (len(container.asks) == 1)


def comments(text: str) -> Counter[str]:
    return Counter(re.findall(r"# (?!no)\w[\w ]*", text))


def assert_the_rest_is_the_same(before: str, after: str) -> None:
    """Every line that names none of the resources is in the result, in its order."""
    lines = [line.strip() for line in after.splitlines()]
    position = 0
    for line in before.splitlines():
        plain = re.sub(r"\s*#.*", "", line).strip()
        if plain and not re.search(r"acc|nx_gzip|limits|requests|resources", plain):
            position = (
                next(i for i, found in enumerate(lines) if i >= position and found.startswith(plain)) + 1
            )


def assert_the_same_devices(text: str, init: list[Container], main: list[Container]) -> None:
    """Each container has as many as it asked for, and all together as many as the scheduler counts."""
    documents = [one for one in yaml.safe_load_all(text) if one]
    spec = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    templates = {one["metadata"]["name"]: one for one in documents if one["kind"] == "ResourceClaimTemplate"}
    claims = {
        claim["name"]: {r["name"]: amount(r) for r in of(templates[claim["resourceClaimTemplateName"]])}
        for claim in spec.get("resourceClaims", ())
    }
    for resource, target in TARGETS.items():
        mine = {name: sizes for name, sizes in claims.items() if name.startswith(target.device_class)}
        for field, containers in (("initContainers", init), ("containers", main)):
            for container, found in zip(containers, spec.get(field, ()), strict=True):
                references = (found.get("resources") or {}).get("claims", ())
                had = sum(
                    sum(sizes.values()) if "request" not in one else sizes[one["request"]]
                    for one in references
                    for name, sizes in mine.items()
                    if one["name"] == name
                )
                assert had == container.asks.get(resource, 0)
        assert sum(sum(sizes.values()) for sizes in mine.values()) == counted(resource, init, main)


def of(template: Any) -> Any:
    return template["spec"]["spec"]["devices"]["requests"]


def amount(request: Any) -> int:
    fields = request.get("exactly", request)
    return int(fields["capacity"]["requests"]["credits"]) if "capacity" in fields else fields.get("count", 1)


def counted(resource: str, init: list[Container], main: list[Container]) -> int:
    """What the scheduler counts for a pod: Kubernetes' sum over its containers (KEP 753)."""
    sidecars, most = 0, 0
    for container in init:
        own = container.asks.get(resource, 0)
        if container.sidecar:
            sidecars += own
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + own)
    return max(most, sidecars + sum(container.asks.get(resource, 0) for container in main))


@pytest.mark.parametrize("name", sorted(path.name for path in (SAMPLES / "workloads" / "dra").iterdir()))
def test_the_samples_are_what_the_command_makes_of_each_other(name: str) -> None:
    config = load(SAMPLES / "config" / "mixed.yaml")
    options = Options(
        {g.resource_name: Target(g.driver_name, KINDS[g.kind].claim_unit, g.name) for g in config.groups}
    )
    before, after = ((SAMPLES / "workloads" / plane / name).read_text() for plane in ("device-plugin", "dra"))
    (there,) = to_claims([File(name, before)], options)
    assert (there.text, there.problems) == (after, ())
    (home,) = to_resources([File(name, after)], options)
    assert (home.text, home.problems) == (before, ())
