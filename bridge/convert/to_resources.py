"""One workload from claims back to extended resources, where nothing is lost by it.

Nothing is lost when the pod's containers get the same devices: when the amounts that the way forth would write are the
amounts that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.convert.model import Options, Problem
from bridge.convert.pods import containers, pod_spec
from bridge.convert.shares import Asker, Piece, Role, amounts, pieces
from bridge.convert.stream import Object
from bridge.convert.templates import Asked, NotPlain, Origin, read
from bridge.convert.text import NONE, Comments, Edit, Insert, Layout, Remove, apply, comments_at, is_flow
from bridge.convert.values import Path, Value, get

Templates = Mapping[tuple[str, str], dict[str, Value]]
"""By namespace and name."""


@dataclass(slots=True)
class Reverted:
    """What became of a workload.

    Attributes:
        text: its document.
        released: the names of the templates that it no longer uses.
        problems: what was left.
    """

    text: str
    released: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A claim of a pod that is all extended resources.

    Attributes:
        index: in `resourceClaims`.
        pieces: by resource.
    """

    index: int
    name: str
    template: str
    pieces: Mapping[str, tuple[Piece, ...]]
    also: frozenset[tuple[str, str]]


class _Lossy(ValueError):
    """A claim stays one, and why."""


def revert(text: str, thing: Object, templates: Templates, options: Options) -> Reverted:
    """Turn the claims of a workload, in its document, into extended resources."""
    below = pod_spec(thing)
    result = Reverted(text)
    spec = get(thing.value, below or ())
    listed = get(spec, ("resourceClaims",))
    if below is None or not isinstance(listed, list):
        return result
    claims: list[_Claim] = []
    for i, entry in enumerate(listed):
        try:
            claims.append(_claim(i, entry, thing.namespace, spec, templates, options))
        except _Lossy as error:
            result.problems.append(Problem(str(thing), (*below, "resourceClaims", i), str(error)))
    for claim, why in _drop_lossy(claims, spec):
        result.problems.append(Problem(str(thing), (*below, "resourceClaims", claim.index), why))
    if not claims:
        return result
    try:
        result.text = _edit(text, thing.path + below, spec, claims, len(listed))
        result.released = {claim.template for claim in claims}
    except Layout as error:
        result.problems.append(Problem(str(thing), below, str(error)))
    return result


def _claim(
    index: int, entry: Value, namespace: str, spec: Value, templates: Templates, options: Options
) -> _Claim:
    """Read a claim of a pod.

    Raises:
        _Lossy: the device plugin API cannot say it.
    """
    name, wanted = get(entry, ("name",)), get(entry, ("resourceClaimTemplateName",))
    if not isinstance(wanted, str) or not isinstance(name, str):
        raise _Lossy(
            "a claim that stands on its own outlives pods and is shared by them; a device plugin's does not"
        )
    body = templates.get((namespace, wanted))
    if body is None:
        raise _Lossy(f"its template {wanted} is in none of the files given; give that file too")
    try:
        requests = read(body)
    except NotPlain as error:
        raise _Lossy(f"its template {wanted} asks for more than a number of devices: {error}") from error
    users = _users(spec, name, {request.name for request in requests})
    origin = Origin.of(body)
    found: dict[str, list[Piece]] = {}
    for request in requests:
        if not users[request.name]:
            raise _Lossy(
                f"no container uses its request {request.name}; a device plugin's device is a container's"
            )
        found.setdefault(_resource(request, origin, options), []).append(
            Piece(request.amount, frozenset(users[request.name]))
        )
    also = frozenset((origin.resource, container) for container in origin.also) if origin else frozenset()
    return _Claim(index, name, wanted, {key: tuple(value) for key, value in found.items()}, also)


def _resource(request: Asked, origin: Origin | None, options: Options) -> str:
    """The extended resource that a request was, or can be.

    Raises:
        _Lossy: none, or one of several.
    """
    fitting = [
        name for name, target in options.targets.items() if target.device_class == request.device_class
    ]
    if origin is not None and (origin.resource in fitting or not fitting):
        fitting = [origin.resource]
    if len(fitting) != 1:
        said = f"more than one, {', '.join(fitting)}" if fitting else "none"
        raise _Lossy(
            f"the extended resource of DeviceClass {request.device_class} is not known ({said}); "
            f"give --class NAME={request.device_class}"
        )
    unit = options.targets[fitting[0]].unit if fitting[0] in options.targets else request.unit
    if request.unit and request.unit != unit:
        raise _Lossy(f"{fitting[0]} is not counted in {request.unit}")
    return fitting[0]


def _users(spec: Value, claim: str, requests: set[str]) -> dict[str, set[Path]]:
    """Which containers use each request of a claim."""
    users: dict[str, set[Path]] = {request: set() for request in requests}
    for path, _, container in containers(spec):
        for _, reference in _references(container, {claim}):
            one = reference.get("request")
            for request in requests if one is None else {str(one)} & requests:
                users[request].add(path)
    return users


def _references(container: Mapping[str, Value], claims: set[str]) -> list[tuple[int, dict[str, Value]]]:
    listed = get(container.get("resources"), ("claims",))
    return [
        (i, entry)
        for i, entry in enumerate(listed if isinstance(listed, list) else ())
        if isinstance(entry, dict) and entry.get("name") in claims
    ]


def _drop_lossy(claims: list[_Claim], spec: Value) -> list[tuple[_Claim, str]]:
    """Take out, until no more are found, the claims of a resource that its containers could not share so."""
    dropped: list[tuple[_Claim, str]] = []
    while True:
        bad = {
            resource
            for resource in {name for claim in claims for name in claim.pieces}
            if amounts(_row(claims, resource)) != amounts(pieces(_askers(claims, resource, spec)))
            or any(
                get(container.get("resources"), ("limits", resource)) for _, _, container in containers(spec)
            )
        }
        if not bad:
            return dropped
        for claim in [claim for claim in claims if bad & claim.pieces.keys()]:
            claims.remove(claim)
            names = ", ".join(sorted(bad & claim.pieces.keys()))
            why = f"its containers share {names} as a device plugin cannot: it gives each container its own"
            dropped.append((claim, why))


def _row(claims: Sequence[_Claim], resource: str) -> list[Piece]:
    return [piece for claim in claims for piece in claim.pieces.get(resource, ())]


def _askers(claims: Sequence[_Claim], resource: str, spec: Value) -> list[Asker]:
    row = _row(claims, resource)
    found = [
        Asker(path, role, sum(piece.amount for piece in row if path in piece.containers))
        for path, role, _ in containers(spec)
    ]
    return [asker for asker in found if asker.amount]


# Edits


def _edit(text: str, spec_path: Path, spec: Value, claims: Sequence[_Claim], listed: int) -> str:
    for path, role, container in containers(spec):
        text = _edit_container(text, (*spec_path, *path, "resources"), (path, role, container), spec, claims)
    at = (*spec_path, "resourceClaims")
    if listed == len(claims):
        return apply(text, [Remove(at)])
    return apply(text, [Remove((*at, claim.index)) for claim in sorted(claims, key=lambda c: -c.index)])


def _edit_container(
    text: str,
    at: Path,
    of: tuple[Path, Role, dict[str, Value]],
    spec: Value,
    claims: Sequence[_Claim],
) -> str:
    """Put a container's resources where its references were, with their comments."""
    path, _, container = of
    references = _references(container, {claim.name for claim in claims})
    if not references:
        return text
    everything = len(references) == len(_items(get(container, ("resources", "claims"))))
    by_name = {claim.name: claim for claim in claims}
    named = dict.fromkeys(key for _, entry in references for key in by_name[str(entry["name"])].pieces)
    counts = {
        resource: asker.amount
        for resource in named
        for asker in _askers(claims, resource, spec)
        if asker.container == path
    }
    gone = [(*at, "claims")] if everything else [(*at, "claims", i) for i, _ in reversed(references)]
    comments = sum((comments_at(text, entry) for entry in reversed(gone)), NONE)
    flow = is_flow(text, (*at, "claims"))
    has = {key for key in ("limits", "requests") if get(container, ("resources", key))}
    edits: list[Edit] = []
    also = {resource for claim in claims for resource, name in claim.also if name == container.get("name")}
    for key, wanted in (("limits", list(counts)), ("requests", [name for name in counts if name in also])):
        after = "claims" if key == "limits" and everything else "limits" if key == "requests" else None
        for resource in wanted:
            edits.append(_entry(at, key, has, after, (resource, counts[resource]), flow, comments))
            has.add(key)
            comments = NONE
    return apply(text, [*edits, *(Remove(entry, carried=True) for entry in gone)])


def _entry(
    at: Path,
    key: str,
    has: set[str],
    after: str | None,
    entry: tuple[str, int],
    flow: bool,
    comments: Comments,
) -> Insert:
    """One resource in `limits` or `requests`, which is made if there is none."""
    resource, amount = entry
    if key in has:
        return Insert((*at, key), resource, amount, comments=comments)
    return Insert(at, key, {resource: amount}, after=after, comments=comments, flow=flow)


def _items(value: Value) -> list[Value]:
    return value if isinstance(value, list) else []
