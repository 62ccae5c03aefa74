from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest

from bridge.devices.json_schema import json_schema
from bridge.devices.schema import NOT_EMPTY, Check, Invalid, between, decode, field_path, matching, plain


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def even(value: int) -> int:
    if value % 2:
        raise ValueError(f"must be even, not {value}")
    return value


@dataclass(frozen=True, slots=True)
class Inner:
    """What is inside."""

    label_text: Annotated[str, matching("[a-z]+", longest=5)]
    size: Annotated[int, between(1, 10), Check(even)] = 2


@dataclass(frozen=True, slots=True)
class Outer:
    """What is outside."""

    items: Annotated[tuple[Inner, ...], NOT_EMPTY]
    colour: Colour = Colour.RED
    amount: Annotated[int, between(0)] | Literal["auto"] = "auto"
    choice: int | tuple[str, ...] = 0
    flag: bool = False
    ratio: float = 1.0
    folder: Path = Path("/x")
    inner: Inner | None = None
    pair: tuple[str, int] = ("a", 1)
    by_name: Mapping[str, Inner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flag and self.inner is None:
            raise ValueError("flag needs inner")


ITEM = {"labelText": "a"}


def errors(raw: object) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        decode(Outer, raw)
    found = {error.path: error.message for error in caught.value.errors}
    assert len(found) == len(caught.value.errors)
    return found


def error(**more: object) -> tuple[str, str]:
    ((path, message),) = errors({"items": [ITEM], **more}).items()
    return path, message


def test_what_is_written_becomes_values_and_back() -> None:
    raw = {
        "items": [{"labelText": "a", "size": 4}],
        "colour": "blue",
        "amount": 3,
        "choice": ["x"],
        "flag": True,
        "ratio": 2.0,
        "folder": "/y",
        "inner": {"labelText": "b", "size": 2},
        "pair": ["c", 5],
        "byName": {"n": {"labelText": "c", "size": 8}},
    }
    value = decode(Outer, raw)
    assert value == Outer(
        (Inner("a", 4),),
        Colour.BLUE,
        3,
        ("x",),
        True,
        2.0,
        Path("/y"),
        Inner("b"),
        ("c", 5),
        {"n": Inner("c", 8)},
    )
    assert plain(value) == raw


def test_defaults_are_left_out_where_asked() -> None:
    assert plain(Outer((Inner("a"),), choice=7), defaults=False) == {
        "items": [{"labelText": "a"}],
        "choice": 7,
    }


@pytest.mark.parametrize(
    ("field_name", "value", "message"),
    [
        ("flag", 1, "must be a valid boolean, not 1"),
        ("flag", "yes", "must be a valid boolean, not the text 'yes'"),
        ("ratio", True, "must be a valid number, not True"),
        ("ratio", "1.5", "must be a valid number, not the text '1.5'"),
        ("folder", 3, "must be a valid path, not 3"),
        ("colour", "Red", "must be 'red' or 'blue', not 'Red'"),
        ("colour", [], "must be 'red' or 'blue', not []"),
        ("amount", "4", "must be a valid integer, not the text '4', or must be 'auto', not '4'"),
        ("amount", True, "must be a valid integer, not True, or must be 'auto', not True"),
        ("amount", 1.0, "must be a valid integer, not 1.0, or must be 'auto', not 1.0"),
        ("inner", "x", "must be a mapping, not the text 'x'"),
        ("flag", None, "must be a valid boolean, not empty"),
        ("pair", ["a"], "must have 2 items, not 1"),
        ("items", {}, "must be a list, not a mapping"),
        ("items", "ab", "must be a list, not the text 'ab'"),
        ("items", [], "must not be empty"),
        ("byName", [], "must be a mapping, not a list"),
    ],
)
def test_nothing_is_converted(field_name: str, value: object, message: str) -> None:
    assert error(**{field_name: value}) == (field_name, message)


def test_a_whole_number_is_a_number() -> None:
    assert decode(Outer, {"items": [ITEM], "ratio": 3}).ratio == 3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "must be greater than or equal to 1, not 0"),
        (12, "must be less than or equal to 10, not 12"),
        (3, "must be even, not 3"),
    ],
)
def test_each_check_of_a_field_says_its_own(size: int, message: str) -> None:
    assert error(inner={"labelText": "a", "size": size}) == ("inner.size", message)


def test_no_number_at_all_is_in_no_range() -> None:
    with pytest.raises(ValueError, match="greater"):
        between(0, 1).function(float("nan"))


def test_a_pattern_is_for_the_whole_text() -> None:
    assert "pattern" in error(inner={"labelText": "a\n"})[1]
    assert "at most 5 characters, not 6" in error(inner={"labelText": "aaaaaa"})[1]


def test_every_error_is_told_with_its_path() -> None:
    found = errors(
        {
            "items": [{"labelText": 5, "sice": 2}, 7, {}],
            "colour": "green",
            "choice": ["a", 2],
            "byName": {"a.b": {"labelText": "A"}, 3: ITEM},
            "zzz": None,
        }
    )
    assert set(found) == {
        "items[0].labelText",
        "items[0].sice",
        "items[1]",
        "items[2].labelText",
        "colour",
        "choice[1]",
        "byName['a.b'].labelText",
        "byName['3']",
        "zzz",
    }
    assert found["items[0].sice"] == "unknown field; did you mean size?"
    assert found["items[2].labelText"] == "is required"
    assert found["zzz"].startswith("unknown field; known here: items, colour, amount")


def test_a_rule_over_several_fields_is_told_of_the_whole() -> None:
    assert error(flag=True) == ("", "flag needs inner")


def test_paths_begin_where_the_caller_says() -> None:
    with pytest.raises(Invalid) as caught:
        decode(Inner, {}, ("groups", 1, "options"))
    assert [error.path for error in caught.value.errors] == ["groups[1].options.labelText"]
    assert field_path(("a", "b c", 0)) == "a['b c'][0]"


def test_the_schema_says_what_the_decoder_takes() -> None:
    schema, definitions = json_schema(Outer)
    inner = {"$ref": "#/$defs/Inner"}
    assert definitions == {
        "Inner": {
            "type": "object",
            "description": "What is inside.",
            "properties": {
                "labelText": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "size": {"type": "integer", "minimum": 1, "maximum": 10, "default": 2},
            },
            "additionalProperties": False,
            "required": ["labelText"],
        }
    }
    assert schema["required"] == ["items"]
    assert schema["properties"] == {
        "items": {"type": "array", "items": inner, "minItems": 1},
        "colour": {"enum": ["red", "blue"], "default": "red"},
        "amount": {"anyOf": [{"type": "integer", "minimum": 0}, {"const": "auto"}], "default": "auto"},
        "choice": {
            "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}],
            "default": 0,
        },
        "flag": {"type": "boolean", "default": False},
        "ratio": {"type": "number", "default": 1.0},
        "folder": {"type": "string", "default": "/x"},
        "inner": {"anyOf": [inner, {"type": "null"}]},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "items": False,
            "minItems": 2,
            "default": ["a", 1],
        },
        "byName": {"type": "object", "additionalProperties": inner},
    }


@dataclass(frozen=True)
class Told:
    """What it is.

    Attributes:
        host_name, port: where; two words
            of one sentence: all of it.
        silent: nothing of interest.
    """

    host_name: str = ""
    port: int = 0
    silent: bool = False
    left_out: bool = False


def test_the_schema_says_of_fields_what_the_docstring_says() -> None:
    schema, _ = json_schema(Told)
    assert schema["description"] == "What it is."
    meanings = {name: one.get("description") for name, one in schema["properties"].items()}
    where = "where; two words of one sentence: all of it."
    assert meanings == {
        "hostName": where,
        "port": where,
        "silent": "nothing of interest.",
        "leftOut": None,
    }
