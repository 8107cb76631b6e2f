"""Says in words what a setting's type takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import inspect

from stream.settings.secret import Secret

_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def is_optional(type_: Any) -> bool:
    """Whether a setting of this type can be unset."""
    return any(isinstance(part, inspect.NoneType) for part in _parts(type_))


def is_secret(type_: Any) -> bool:
    """Whether a setting of this type must not be shown."""
    return any(isinstance(part, inspect.CustomType) and part.cls is Secret for part in _parts(type_))


def describe(type_: Any) -> str:
    """What a setting of this type takes, such as `an integer, at least 1 and at most 10`."""
    return " or ".join(_describe(part) for part in _parts(type_) if not isinstance(part, inspect.NoneType))


def _parts(type_: Any) -> tuple[inspect.Type, ...]:
    info = inspect.type_info(type_)
    return tuple(part for part in (info.types if isinstance(info, inspect.UnionType) else (info,)))


def _describe(part: inspect.Type) -> str:
    match part:
        case inspect.LiteralType():
            return f"one of {', '.join(str(value) for value in part.values)}"
        case inspect.IntType() | inspect.FloatType():
            noun = "an integer" if isinstance(part, inspect.IntType) else "a number"
            limits = [
                f"{words} {limit:g}" if limit < 1_000_000 else f"{words} {limit}"
                for name, words in _BOUNDS
                if (limit := getattr(part, name)) is not None
            ]
            return f"{noun} {' and '.join(limits)}" if limits else noun
        case inspect.StrType(pattern=pattern) if pattern is not None:
            return f"1 to {part.max_length} of the characters a-z, A-Z, 0-9, '.', '_' and '-'"
        case inspect.StrType():
            return f"a string of {part.min_length} to {part.max_length} characters"
        case inspect.CustomType(cls=cls) if cls is Path:
            return "a path"
        case _:
            return "a string"
