"""Strict decoding of what people write into frozen dataclasses: every error at once, with field paths.

Used for the configuration file, the opaque parameters of claims and what the ledger stores. Fields are written in
camelCase; nothing unknown is dropped in silence, and nothing is converted: `"4"` is no number, `true` is not 1.
A library for this would cost every node more memory than the rest of the daemon's own code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

T = TypeVar("T")

Place = tuple[int | str, ...]
"""Where a value stands: `("groups", 1, "options")`."""

_IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field.

    Attributes:
        path: as one would write it: `groups[1].options.include[0]`; empty for the whole.
        message: what is wrong and what would be right.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Invalid(ValueError):
    """A value that is not what it should be.

    Attributes:
        errors: everything that is wrong, one for each path.
    """

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A check of one field, in its type: `Annotated[str, Check(absolute)]`.

    Attributes:
        function: takes the value and returns it or a normal form of it; its ValueError says what is wrong.
        schema: what JSON Schema can say of it.
        first: runs before the type is looked at, on what is written.
    """

    function: Callable[[Any], object]
    schema: Mapping[str, object] = field(default_factory=dict)
    first: bool = False


def between(least: int, most: int | None = None) -> Check:
    """A number in a range, both ends included."""

    def check(value: float) -> float:
        if not value >= least:
            raise ValueError(f"must be greater than or equal to {least}, not {value!r}")
        if most is not None and not value <= most:
            raise ValueError(f"must be less than or equal to {most}, not {value!r}")
        return value

    return Check(check, {"minimum": least} if most is None else {"minimum": least, "maximum": most})


def matching(pattern: str, *, longest: int) -> Check:
    """A text of limited length that matches a pattern as a whole."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must match the pattern {pattern}, not {value!r}")
        if len(value) > longest:
            raise ValueError(f"must have at most {longest} characters, not {len(value)}: {value!r}")
        return value

    return Check(check, {"pattern": f"^{pattern}$", "maxLength": longest})


def _not_empty(value: Sequence[object]) -> Sequence[object]:
    if not value:
        raise ValueError("must not be empty")
    return value


NOT_EMPTY = Check(_not_empty, {"minItems": 1})
"""A list with at least one item."""


def decode(model: type[T], raw: object, at: Place = ()) -> T:
    """Make a dataclass of what is written.

    A type's own rule over several fields is its `__post_init__`, which raises ValueError.

    Args:
        model: a dataclass of texts, numbers, paths, enums, literals, tuples, mappings, unions and dataclasses.
        raw: as JSON or YAML has it.
        at: where it stands, for the paths of errors.

    Raises:
        Invalid: with every error there is.
    """
    value: T = _record(model, raw, at)
    return value


def plain(value: object, *, defaults: bool = True) -> object:
    """What `decode` takes, of a value that it made: fields that are None are left out.

    Args:
        value: a dataclass, or anything that its fields may be.
        defaults: whether fields that have their default are written.
    """
    match value:
        case Enum():
            return value.value
        case Path():
            return str(value)
        case tuple():
            return [plain(item, defaults=defaults) for item in value]
        case Mapping():
            return {key: plain(item, defaults=defaults) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            written = ((one, getattr(value, one.name)) for one in dataclasses.fields(value))
            return {
                camel(one.name): plain(item, defaults=defaults)
                for one, item in written
                if item is not None and (defaults or item != default_of(one))
            }
        case _:
            return value


def field_path(place: Place) -> str:
    """`("groups", 1, "options")` -> `groups[1].options`; a name that is no identifier stands in brackets."""
    path = ""
    for piece in place:
        if isinstance(piece, int):
            path += f"[{piece}]"
        elif _IDENTIFIER.fullmatch(piece):
            path += f".{piece}" if path else piece
        else:
            path += f"[{piece!r}]"
    return path


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not among the known ones: a likely one, or all."""
    import difflib  # for a mistake only: the daemon keeps what it imports

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"


def camel(name: str) -> str:
    """`container_path` -> `containerPath`."""
    head, *rest = name.split("_")
    return head + "".join(piece.capitalize() for piece in rest)


@functools.cache
def hints_of(model: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, `Annotated` kept."""
    return typing.get_type_hints(model, include_extras=True)


def default_of(one: dataclasses.Field[Any]) -> object:
    """A field's default; `dataclasses.MISSING` where it is required."""
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


class _Faults:
    """Errors, collected over the parts of a value."""

    def __init__(self) -> None:
        self.found: list[FieldError] = []

    def read(self, hint: Any, raw: object, place: Place) -> Any:
        """The part, or None and its errors are noted."""
        try:
            return _read(hint, raw, place)
        except Invalid as error:
            self.found += error.errors
            return None

    def tell(self) -> None:
        if self.found:
            raise Invalid(self.found)


def _refuse(place: Place, message: str) -> NoReturn:
    raise Invalid([FieldError(field_path(place), message)])


def _read(hint: Any, raw: object, place: Place) -> Any:
    if reader := _GENERIC.get(typing.get_origin(hint)):
        return reader(hint, raw, place)
    if dataclasses.is_dataclass(hint):
        return _record(hint, raw, place)
    if issubclass(hint, Enum):
        return hint(_one_of(tuple(item.value for item in hint), raw, place))
    return _simple(hint, raw, place)


def _record(model: Any, raw: object, place: Place) -> Any:
    if not isinstance(raw, Mapping):
        _refuse(place, f"must be a mapping, not {_called(raw)}")
    hints, faults, values = hints_of(model), _Faults(), {}
    known = {camel(one.name): one for one in dataclasses.fields(model)}
    for name, one in known.items():
        if name in raw:
            values[one.name] = faults.read(hints[one.name], raw[name], (*place, name))
        elif default_of(one) is dataclasses.MISSING:
            faults.found.append(FieldError(field_path((*place, name)), "is required"))
    for name in raw:
        if name not in known:
            message = f"unknown field; {unknown_name(str(name), list(known))}"
            faults.found.append(FieldError(field_path((*place, str(name))), message))
    faults.tell()
    try:
        return model(**values)
    except ValueError as error:
        _refuse(place, str(error))


def _annotated(hint: Any, raw: object, place: Place) -> Any:
    inner, *marks = typing.get_args(hint)
    checks = [mark for mark in marks if isinstance(mark, Check)]
    value = _apply([check for check in checks if check.first], raw, place)
    value = _read(inner, value, place)
    return _apply([check for check in checks if not check.first], value, place)


def _apply(checks: Sequence[Check], value: object, place: Place) -> object:
    for check in checks:
        try:
            value = check.function(value)
        except ValueError as error:
            _refuse(place, str(error))
    return value


def _union(hint: Any, raw: object, place: Place) -> Any:
    """The first alternative that fits; else the errors of the one whose shape fits, or one error of all."""
    alternatives = typing.get_args(hint)
    if raw is None and types.NoneType in alternatives:
        return None
    messages: dict[str, None] = {}
    here = field_path(place)
    for alternative in alternatives:
        if alternative is types.NoneType:
            continue
        try:
            return _read(alternative, raw, place)
        except Invalid as error:
            if any(one.path != here for one in error.errors):
                raise
            messages |= dict.fromkeys(one.message for one in error.errors)
    _refuse(place, ", or ".join(messages))


def _literal(hint: Any, raw: object, place: Place) -> object:
    return _one_of(typing.get_args(hint), raw, place)


def _one_of(allowed: Sequence[object], raw: object, place: Place) -> object:
    for value in allowed:
        if type(raw) is type(value) and raw == value:
            return value
    *others, last = map(repr, allowed)
    expected = f"{', '.join(others)} or {last}" if others else last
    _refuse(place, f"must be {expected}, not {raw!r}")


def _tuple(hint: Any, raw: object, place: Place) -> tuple[object, ...]:
    """`tuple[X, ...]`, or `tuple[X, Y]` of that length."""
    if not isinstance(raw, list | tuple):
        _refuse(place, f"must be a list, not {_called(raw)}")
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(raw)
    if len(kinds) != len(raw):
        _refuse(place, f"must have {len(kinds)} items, not {len(raw)}")
    faults = _Faults()
    items = tuple(
        faults.read(kind, item, (*place, i)) for i, (kind, item) in enumerate(zip(kinds, raw, strict=True))
    )
    faults.tell()
    return items


def _mapping(hint: Any, raw: object, place: Place) -> dict[str, object]:
    if not isinstance(raw, Mapping):
        _refuse(place, f"must be a mapping, not {_called(raw)}")
    _, kind = typing.get_args(hint)
    faults, items = _Faults(), {}
    for key, item in raw.items():
        if isinstance(key, str):
            items[key] = faults.read(kind, item, (*place, key))
        else:
            message = f"must be a text in quotes, not {key!r}"
            faults.found.append(FieldError(field_path((*place, str(key))), message))
    faults.tell()
    return items


_GENERIC: Mapping[Any, Callable[[Any, object, Place], Any]] = {
    Annotated: _annotated,
    typing.Union: _union,
    types.UnionType: _union,
    Literal: _literal,
    tuple: _tuple,
    dict: _mapping,
    Mapping: _mapping,
}


def _simple(hint: Any, raw: object, place: Place) -> object:
    if hint is object or type(raw) is hint:
        return raw
    if hint is float and type(raw) is int:
        return float(raw)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    names = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}
    _refuse(place, f"must be a valid {names[hint]}, not {_called(raw)}")


def _called(value: object) -> str:
    match value:
        case None:
            return "empty"
        case str():
            return f"the text {value!r}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return repr(value)
