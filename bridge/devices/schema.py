"""Strict decoding of what people write: one base model, and errors with field paths in plain words.

Used for the configuration file and for the opaque parameters of claims. Nothing unknown is dropped in
silence.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

_IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")


class Strict(BaseModel):
    """A model that refuses unknown fields; fields are written in camelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_default=False)


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


def field_path(loc: Sequence[int | str]) -> str:
    """`("groups", 1, "options")` -> `groups[1].options`; a name that is no identifier stands in brackets."""
    path = ""
    for piece in loc:
        if isinstance(piece, int):
            path += f"[{piece}]"
        elif _IDENTIFIER.fullmatch(piece):
            path += f".{piece}" if path else piece
        else:
            path += f"[{piece!r}]"
    return path


def field_errors(
    model: type[BaseModel], error: ValidationError, prefix: Sequence[int | str] = ()
) -> tuple[FieldError, ...]:
    """Every error of a validation, with paths below `prefix`; one for each path, its alternatives joined."""
    found: dict[str, list[str]] = {}
    all_details = error.errors(include_url=False)
    for details in all_details:
        loc = tuple(details["loc"])
        if details["type"] == "default_factory_not_called":
            continue  # it follows from another field, whose own error is told
        if details["type"] == "too_short" and any(
            len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in all_details
        ):
            continue  # its items are wrong, which is told of each
        messages = found.setdefault(field_path((*prefix, *_written(model, loc))), [])
        message = _message(model, loc, details)
        if message not in messages:
            messages.append(message)
    return tuple(FieldError(path, ", or ".join(messages)) for path, messages in found.items())


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not among the known ones: a likely one, or all."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"


def _message(model: type[BaseModel], loc: tuple[int | str, ...], details: ErrorDetails) -> str:
    match details["type"]:
        case "extra_forbidden":
            known = [field for owner in _models_at(model, loc[:-1]) for field in _fields(owner)]
            return f"unknown field; {unknown_name(str(loc[-1]), known)}"
        case "missing":
            return "is required"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping, not {_type_name(details['input'])}"
        case "list_type" | "tuple_type":
            return f"must be a list, not {_type_name(details['input'])}"
        case "too_short":
            return "must not be empty"
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
        case "enum" | "literal_error":
            return f"must be {details.get('ctx', {}).get('expected', '')}, not {details['input']!r}"
        case _:
            text = details["msg"].removeprefix("Input ").replace("should be", "must be")
            return f"{text}, not {details['input']!r}" if _scalar(details["input"]) else text


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _type_name(value: object) -> str:
    match value:
        case None:
            return "empty"
        case str():
            return f"the text {value!r}"
        case bool() | int() | float():
            return f"{value!r}"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


def _fields(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _written(model: type[BaseModel], loc: tuple[int | str, ...]) -> Iterator[int | str]:
    """The location without what pydantic adds to it: the names of union branches."""
    for i, piece in enumerate(loc):
        owners = _models_at(model, loc[:i])
        last = i == len(loc) - 1
        if isinstance(piece, int) or last or not owners or any(piece in _fields(owner) for owner in owners):
            if isinstance(piece, str) and not owners and i > 0:
                continue
            yield piece


def _models_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that may stand at a location."""
    here: list[object] = [model]
    for piece in loc:
        if isinstance(piece, int):
            continue
        here = [
            field.annotation
            for owner in _models_in(here)
            for name, field in owner.model_fields.items()
            if piece == (field.alias or name)
        ]
    return list(_models_in(here))


def _models_in(annotations: Sequence[object]) -> Iterator[type[BaseModel]]:
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        else:
            yield from _models_in(typing.get_args(annotation))
