"""Plain data, from JSON or a command line, to the validated structs that configs and options are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec import inspect as types

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from mtgr.wanted_values import described

_Read = TypeVar("_Read", bound=Struct)

# what msgspec appends to its messages: the place of a value, or of the object that has a wrong key
_PLACE: Final = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`$")
_STEP: Final = re.compile(r"[^.\[\]]+|\[\d*(?:\.\.\.)?\]")
_MOST_SHOWN: Final = 80  # characters of a value


def parse_struct(data: Mapping[str, Any], kind: type[_Read], source: str) -> _Read:
    """Read a struct from plain data; InputError names the source, the field, its value and what would be right."""
    known = kind.__struct_fields__
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {_explained(str(error), data, kind)}") from None


def _explained(message: str, data: Mapping[str, Any], kind: type[Struct]) -> str:
    """A message of msgspec with the value that it is about; a rule of the struct's own has its own words."""
    place = _PLACE.search(message)
    if place is None:
        return message
    what, name = message[: place.start()], ""
    if not what.startswith(("Expected", "Invalid")):
        return f"{place['path']}: {what[0].lower()}{what[1:]}"
    value: Any = data
    wanted: types.Type = types.type_info(kind)
    for step in _STEP.findall(place["path"]):
        inner = _inner(wanted, step)
        if inner is None:
            break
        name, value, wanted = _joined(name, step), _at(value, step), inner
    if place["key"] and isinstance(wanted, types.DictType):
        return f"{name} is {_shown(value)}, where each key should be {described(wanted.key_type)}"
    return f"{name} is {_shown(value)}, where {described(wanted)} is wanted"


def _inner(kind: types.Type, step: str) -> types.Type | None:
    """The type of a part; None where the step tells no one part, as for the values of an object."""
    match kind:
        case types.UnionType():
            return next((found for one in kind.types if (found := _inner(one, step)) is not None), None)
        case types.StructType():
            return next((field.type for field in kind.fields if field.encode_name == step), None)
        case types.VarTupleType() | types.ListType() if step[1:-1].isdecimal():
            return kind.item_type
    return None


def _at(value: Any, step: str) -> Any:
    return value[int(step[1:-1])] if step.startswith("[") else value[step]


def _joined(name: str, step: str) -> str:
    return f"{name}{step}" if step.startswith("[") or not name else f"{name}.{step}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
