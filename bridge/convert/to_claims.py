"""One workload from extended resources to claims: one claim and one template for each resource of the pod."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count

from bridge.convert.model import Options, Problem, Target
from bridge.convert.pods import containers, free, pod_spec
from bridge.convert.shares import Asker, Piece, pieces
from bridge.convert.stream import Object
from bridge.convert.templates import (
    LONGEST_NAME,
    MOST_DEVICES,
    MOST_REQUESTS,
    Origin,
    by_capacity,
    request_names,
    template,
)
from bridge.convert.text import (
    NONE,
    Append,
    Comments,
    Edit,
    Insert,
    Layout,
    Remove,
    apply,
    comments_at,
    is_flow,
)
from bridge.convert.values import Path, Value, get

Names = dict[tuple[str, str], Value]
"""Templates by namespace and name: those that are there and those that were made."""

_FIELDS = ("limits", "requests")


@dataclass(slots=True)
class Converted:
    """What became of a workload.

    Attributes:
        text: its document.
        templates: to stand beside it.
        problems: what was left.
    """

    text: str
    templates: list[dict[str, Value]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Use:
    """One resource of a pod, as a claim."""

    resource: str
    claim: str
    row: tuple[Piece, ...]
    requests: tuple[str, ...]
    body: dict[str, Value]

    def references(self, container: Path) -> list[Value]:
        """What a container's `resources.claims` says: the claim, or the requests that it has of it."""
        having = [
            name for name, piece in zip(self.requests, self.row, strict=True) if container in piece.containers
        ]
        if len(having) == len(self.row):
            return [{"name": self.claim}]
        return [{"name": self.claim, "request": name} for name in having]


def convert(text: str, thing: Object, names: Names, options: Options) -> Converted:
    """Convert a workload in its document; `names` gains the templates that were made."""
    below = pod_spec(thing)
    if below is None:
        return Converted(text)
    result = Converted(text)
    spec = get(thing.value, below)
    asked, refused = _asked(spec, options)
    result.problems += [Problem(str(thing), below + path, message) for path, message in refused]
    if not asked:
        return result
    if not thing.name:
        why = "without a name of its own its template would have none either: give it metadata.name"
        result.problems.append(Problem(str(thing), ("metadata", "name"), why))
        return result
    uses = list(_uses(thing, spec, asked, names, options))
    try:
        result.text = _edit(text, thing.path + below, spec, uses)
    except Layout as error:
        result.problems.append(Problem(str(thing), below, str(error)))
        return result
    for use in uses:
        key = (thing.namespace, str(get(use.body, ("metadata", "name"))))
        if key not in names:
            names[key] = use.body
            result.templates.append(use.body)
    return result


def is_extended(name: str) -> bool:
    """Whether a resource is an extended one: it has a domain, and not Kubernetes' own."""
    domain, slash, _ = name.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


@dataclass(slots=True)
class _Asked:
    """Who asks for one resource; `also` are those, by name, that say it in `requests` too."""

    askers: list[Asker] = field(default_factory=list)
    also: list[str] = field(default_factory=list)


def _asked(spec: Value, options: Options) -> tuple[dict[str, _Asked], list[tuple[Path, str]]]:
    """The resources of a pod that can be converted, and what is wrong with the others: field and reason."""
    asked: dict[str, _Asked] = {}
    refused: dict[str, list[tuple[Path, str]]] = {}
    for path, role, container in containers(spec):
        resources = container.get("resources")
        for resource in _extended(resources):
            at = next(f for f in _FIELDS if get(resources, (f, resource)) is not None)
            try:
                amount = _amount(resources, resource, options)
            except ValueError as error:
                refused.setdefault(resource, []).append(((*path, "resources", at, resource), str(error)))
                continue
            entry = asked.setdefault(resource, _Asked())
            entry.askers.append(Asker(path, role, amount))
            if get(resources, ("requests", resource)) is not None:
                entry.also.append(str(container.get("name")))
    for resource, entry in asked.items():
        why = "" if resource in refused else _too_much(entry, options.targets[resource], options)
        if why:
            first = entry.askers[0].container
            refused[resource] = [((*first, "resources", "limits", resource), why)]
    fine = {resource: entry for resource, entry in asked.items() if resource not in refused}
    return fine, [one for told in refused.values() for one in told]


def _extended(resources: Value) -> list[str]:
    named: dict[str, None] = {}
    for at in _FIELDS:
        amounts = get(resources, (at,))
        if isinstance(amounts, dict):
            named |= {
                name: None for name, value in amounts.items() if is_extended(name) and value is not None
            }
    return list(named)


def _amount(resources: Value, resource: str, options: Options) -> int:
    """How many a container asks for.

    Raises:
        ValueError: no claim can say it.
    """
    if resource not in options.targets:
        raise ValueError(
            f"there is no DeviceClass for {resource}: no group of the configuration has it, "
            f"and no --class {resource}=CLASS was given"
        )
    limit, request = (get(resources, (at, resource)) for at in _FIELDS)
    if limit is None:
        raise ValueError(
            "it is in requests and not in limits, which the API server refuses; put it in limits"
        )
    if not str(limit).isascii() or not str(limit).isdigit():
        raise ValueError(f"{limit!r} is not a plain whole number of devices")
    if request is not None and str(request) != str(limit):
        raise ValueError(f"requests says {request} and limits says {limit}, which the API server refuses")
    if int(str(limit)) == 0:
        raise ValueError("it asks for none, which no claim can say; take it out")
    return int(str(limit))


def _too_much(entry: _Asked, target: Target, options: Options) -> str:
    row = pieces(entry.askers)
    total = sum(piece.amount for piece in row)
    if len(row) > MOST_REQUESTS:
        return (
            f"its containers share devices in {len(row)} ways; a claim has at most {MOST_REQUESTS} requests"
        )
    if not by_capacity(target, options) and total > MOST_DEVICES:
        return f"the pod asks for {total} devices; a claim is given at most {MOST_DEVICES}"
    return ""


def _uses(
    thing: Object, spec: Value, asked: Mapping[str, _Asked], names: Names, options: Options
) -> Iterator[_Use]:
    listed = get(spec, ("resourceClaims",))
    taken = {str(get(claim, ("name",))) for claim in (listed if isinstance(listed, list) else ())}
    mine: Names = dict(names)
    for resource, entry in asked.items():
        target, row = options.targets[resource], pieces(entry.askers)
        stem = target.stem
        claim = free(stem, taken)
        taken.add(claim)
        make = partial(
            template,
            namespace=thing.namespace,
            origin=Origin(resource, tuple(entry.also)),
            target=target,
            row=row,
            options=options,
        )
        body = _named(thing, claim, mine, make)
        mine[thing.namespace, str(get(body, ("metadata", "name")))] = body
        yield _Use(resource, claim, row, tuple(request_names(stem, row)), body)


def _named(
    thing: Object, claim: str, names: Names, make: Callable[[str], dict[str, Value]]
) -> dict[str, Value]:
    """The template under the first name that is free, or that the very same template has already."""
    stem = f"{thing.name}-{claim}"[: LONGEST_NAME - 20]
    for name in chain([stem, f"{stem}-{thing.kind.lower()}"], (f"{stem}-{i}" for i in count(2))):
        body = make(name)
        if names.get((thing.namespace, name), body) == body:
            return body
    raise AssertionError("count never ends")


# Edits


def _edit(text: str, spec_path: Path, spec: Value, uses: Sequence[_Use]) -> str:
    for path, _, container in containers(spec):
        mine = {use.resource: use for use in uses if any(path in piece.containers for piece in use.row)}
        having = [mine[name] for name in _extended(container.get("resources")) if name in mine]
        if having:
            text = _edit_container(text, (*spec_path, *path, "resources"), container, path, having)
    entries: list[Value] = [
        {"name": use.claim, "resourceClaimTemplateName": str(get(use.body, ("metadata", "name")))}
        for use in uses
    ]
    return apply(text, _listing(spec_path, "resourceClaims", spec, entries))


def _listing(path: Path, key: str, around: Value, items: Sequence[Value]) -> list[Edit]:
    """Items behind those of a list, which is made if there is none."""
    if get(around, (key,)):
        return [Append((*path, key), item) for item in items]
    return [Insert(path, key, list(items))]


def _edit_container(
    text: str, at: Path, container: Mapping[str, Value], path: Path, having: Sequence[_Use]
) -> str:
    """Put the references of one container where its resources were, with their comments."""
    resources = container["resources"]
    names = [use.resource for use in having]
    emptied = [f for f in _FIELDS if (amounts := get(resources, (f,))) and set(_keys(amounts)) <= set(names)]
    gone: list[Path] = [(*at, f) for f in emptied]
    gone += [
        (*at, f, name)
        for f in _FIELDS
        if f not in emptied
        for name in names
        if get(resources, (f, name)) is not None
    ]
    comments = {use.resource: NONE for use in having}
    for entry in gone:
        owner = str(entry[-1]) if entry[-1] in comments else names[0]
        comments[owner] += comments_at(text, entry)
    edits: list[Edit] = []
    claims = bool(get(resources, ("claims",)))
    for use in having:
        references = use.references(path)
        if claims:
            first, *rest = references
            edits.append(Append((*at, "claims"), first, comments=comments[use.resource]))
            edits += [Append((*at, "claims"), reference) for reference in rest]
        else:
            edits.append(_first(text, at, emptied, references, comments[use.resource]))
        claims = True
    return apply(text, [*edits, *(Remove(entry, carried=True) for entry in gone)])


def _first(
    text: str, at: Path, emptied: Sequence[str], references: list[Value], comments: Comments
) -> Insert:
    """The list itself: in the place, and in the manner, of what goes away for it."""
    after = emptied[0] if emptied else None
    flow = bool(emptied) and is_flow(text, (*at, emptied[0]))
    return Insert(at, "claims", references, after=after, comments=comments, flow=flow)


def _keys(value: Value) -> list[str]:
    return list(value) if isinstance(value, dict) else []
