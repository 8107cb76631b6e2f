"""What values of a type would be right, in words, for messages about one that is not."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import inspect as types

_BOUNDS: Final = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def described(kind: types.Type) -> str:
    """A noun phrase for a type: the allowed texts, the bounds of a number, an example of a list or an object."""
    match kind:
        case types.Metadata():
            return described(kind.type)
        case types.UnionType():
            return " or ".join(described(one) for one in sorted(kind.types, key=_is_null))
        case types.LiteralType():
            texts = [str(value) for value in kind.values]
            return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"
        case types.NoneType():
            return "null"
        case types.BoolType():
            return "true or false"
        case types.IntType() | types.FloatType():
            return _number(kind)
        case types.StrType():
            return _text(kind)
        case types.VarTupleType() | types.ListType():
            return f"a list such as {_shown([example(kind.item_type)])}{_choices(kind.item_type)}"
        case types.DictType():
            shown = f"an object such as {_shown(example(kind))}{_choices(kind.key_type)}"
            return f"{shown}, each value {described(kind.value_type)}"
        case types.StructType():
            return f"an object with {', '.join(field.encode_name for field in kind.fields)}"
    return "another value"


def example(kind: types.Type) -> Any:
    """Plain data that is right for a type."""
    match kind:
        case types.UnionType():
            return example(min(kind.types, key=_is_null))
        case types.LiteralType():
            return kind.values[0]
        case types.BoolType():
            return True
        case types.IntType():
            return kind.ge if kind.ge is not None else 1
        case types.FloatType():
            return 0.5
        case types.VarTupleType() | types.ListType():
            return [example(kind.item_type)]
        case types.DictType():
            return {example(kind.key_type): example(kind.value_type)}
        case types.StructType():
            return {field.encode_name: example(field.type) for field in kind.fields if field.required}
    return "name"


def _number(kind: types.IntType | types.FloatType) -> str:
    bounds = [
        words.format(_plain(bound))
        for name, words in _BOUNDS.items()
        if (bound := getattr(kind, name)) is not None
    ]
    if kind.multiple_of is not None:
        bounds.append(f"a multiple of {_plain(kind.multiple_of)}")
    noun = "a whole number" if isinstance(kind, types.IntType) else "a number"
    of = "of " if bounds and bounds[0].startswith("at ") else ""
    return f"{noun} {of}{_listed(bounds)}".rstrip()


def _text(kind: types.StrType) -> str:
    words = ["a text"]
    if kind.max_length is not None:
        words.append(f"of {kind.min_length or 0} to {kind.max_length} characters")
    elif kind.min_length is not None:
        words.append(
            f"of at least {kind.min_length} characters" if kind.min_length > 1 else "that is not empty"
        )
    if kind.pattern is not None:
        words.append(f"that matches {kind.pattern}")
    return " ".join(words)


def _choices(kind: types.Type) -> str:
    """What else than the example there is."""
    if not isinstance(kind, types.LiteralType) or len(kind.values) == 1:
        return ""
    return f" (of {', '.join(str(value) for value in kind.values)})"


def _listed(parts: list[str]) -> str:
    *before, last = parts or [""]
    return f"{', '.join(before)} and {last}" if before else last


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _shown(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()


def _is_null(kind: types.Type) -> bool:
    return isinstance(kind, types.NoneType)
