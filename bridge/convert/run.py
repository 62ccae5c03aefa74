"""A set of files, either way. Names of templates are looked up and chosen over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bridge.convert import templates
from bridge.convert.model import File, Options, Problem, Result
from bridge.convert.pods import pod_spec
from bridge.convert.stream import Fault, Object, Stream, objects, split
from bridge.convert.text import Append, Layout, Remove, apply, is_flow
from bridge.convert.to_claims import Converted, Names, convert
from bridge.convert.to_resources import revert
from bridge.convert.values import Path, Value, compose, get, value_of, write


@dataclass(slots=True)
class _Draft:
    """A file on its way."""

    file: File
    stream: Stream
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True

    def result(self) -> Result:
        text = self.stream.text() if self.usable else self.file.text
        return Result(self.file, text, tuple(self.problems), self.usable)

    def objects(self) -> Iterator[tuple[int, Object]]:
        """Every object, with the number of its document."""
        for index, document in enumerate(self.stream.documents):
            for thing in objects(document):
                yield index, thing


def to_claims(files: Sequence[File], options: Options) -> tuple[Result, ...]:
    """Replace extended resources by claims and their templates.

    What is converted already has nothing to convert and stays as it is.
    """
    drafts = [_draft(file) for file in files]
    names: Names = {
        (thing.namespace, thing.name): thing.value
        for draft in drafts
        for _, thing in draft.objects()
        if _is_template(thing)
    }
    for draft in drafts:
        index = 0
        while index < len(draft.stream.documents):
            index += 1 + _convert_document(draft, index, names, options)
        draft.problems += _leftovers(draft, options)
    return tuple(draft.result() for draft in drafts)


def to_resources(files: Sequence[File], options: Options) -> tuple[Result, ...]:
    """Replace claims by extended resources where nothing is lost, and take out the templates that nobody uses then."""
    drafts = [_draft(file) for file in files]
    written = {
        (thing.namespace, thing.name): thing.value
        for draft in drafts
        for _, thing in draft.objects()
        if _is_template(thing)
    }
    released: set[tuple[str, str]] = set()
    for draft in drafts:
        for index, thing in list(draft.objects()):
            done = revert(draft.stream.documents[index], thing, written, options)
            draft.stream.documents[index] = done.text
            draft.problems += done.problems
            released |= {(thing.namespace, name) for name in done.released}
    used = {key for draft in drafts for _, thing in draft.objects() for key in _templates_of(thing)}
    for draft in drafts:
        for index, thing in reversed(list(draft.objects())):
            if _is_template(thing) and (thing.namespace, thing.name) in released - used:
                _drop(draft, index, thing)
    return tuple(draft.result() for draft in drafts)


def _draft(file: File) -> _Draft:
    try:
        return _Draft(file, split(file.text))
    except Fault as fault:
        return _Draft(file, Stream([]), [Problem("", (), str(fault), fault.line)], usable=False)


def _is_template(thing: Object) -> bool:
    return (thing.group, thing.kind) == (templates.GROUP, templates.KIND)


def _templates_of(thing: Object) -> Iterator[tuple[str, str]]:
    below = pod_spec(thing)
    listed = get(thing.value, (*below, "resourceClaims")) if below else None
    for entry in listed if isinstance(listed, list) else ():
        yield thing.namespace, str(get(entry, ("resourceClaimTemplateName",)))


# To claims


def _convert_document(draft: _Draft, index: int, names: Names, options: Options) -> int:
    """Convert the objects of one document; return how many documents were put behind it."""
    added = 0
    position = 0
    while position < len(found := objects(draft.stream.documents[index])):
        thing = found[position]
        mine = dict(names)
        done = convert(draft.stream.documents[index], thing, mine, options)
        position += 1
        try:
            if thing.path:
                draft.stream.documents[index] = _into_list(done, thing)
                position += len(done.templates)
            elif done.templates and is_flow(done.text, ()):
                raise _NoRoom(
                    "a JSON file holds one object, and the template is a second: write it as YAML or a List"
                )
            else:
                draft.stream.documents[index] = done.text
                for body in reversed(done.templates):
                    draft.stream.add(index, write(body))
                added += len(done.templates)
            names.update(mine)
        except (_NoRoom, Layout) as error:
            done.problems.append(Problem(str(thing), (), str(error)))
        draft.problems += done.problems
    return added


class _NoRoom(ValueError):
    """The template has no place beside its workload."""


def _into_list(done: Converted, thing: Object) -> str:
    """The templates behind their workload in its list."""
    *items, index = thing.path
    if not isinstance(index, int):
        raise Layout
    kind = get(value_of(compose(done.text)), (*items[:-1], "kind"))
    if done.templates and kind != "List":
        raise _NoRoom(f"a {kind} holds nothing else, so the template has no place in it: make it a List")
    edits = [Append(tuple(items), body, after=index + i) for i, body in enumerate(done.templates)]
    return apply(done.text, edits)


def _leftovers(draft: _Draft, options: Options) -> Iterator[Problem]:
    """Names of our resources where they are not asked for by a container that was converted."""
    whole = ("metadata", "name")  # an object without a name is left whole
    told = {(one.who, () if one.path == whole else one.path) for one in draft.problems}
    for _, thing in draft.objects():
        if _is_template(thing):
            continue
        for path, resource in _named(thing.value, (), options):
            if not any(who == str(thing) and path[: len(at)] == at for who, at in told):
                yield Problem(str(thing), path, _why_left(thing, resource, options))


def _named(value: Value, path: Path, options: Options) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, below in value.items():
            resource = key.removeprefix("requests.").removeprefix("limits.")
            if resource in options.targets and not isinstance(below, dict | list):
                yield (*path, key), resource
            yield from _named(below, (*path, key), options)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _named(item, (*path, i), options)


def _why_left(thing: Object, resource: str, options: Options) -> str:
    device_class = options.targets[resource].device_class
    if thing.kind == "ResourceQuota":
        return (
            f"claims do not count against this; add {device_class}.deviceclass.resource.k8s.io/devices with the same "
            f"number, and keep this until no pod asks for {resource}"
        )
    if pod_spec(thing) is not None:
        return (
            f"{resource} stands where no container asks for it (a pod's own sums, an anchor or a merge key)"
        )
    return f"a {thing.kind} is not converted; what it makes goes on asking for {resource}"


# To extended resources


def _drop(draft: _Draft, index: int, thing: Object) -> None:
    if not thing.path:
        draft.stream.drop(index)
        return
    try:
        draft.stream.documents[index] = apply(draft.stream.documents[index], [Remove(thing.path)])
    except Layout as error:
        draft.problems.append(Problem(str(thing), (), f"no longer used, and not taken out: {error}"))
