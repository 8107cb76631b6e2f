"""Says in words what a type with bounds takes, for messages about values that it does not take."""

from __future__ import annotations

from typing import Any, Final

from msgspec import inspect

_BOUNDS: Final = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def parts(type_: Any) -> tuple[inspect.Type, ...]:
    """The members of a union, or the type alone."""
    return _members(inspect.type_info(type_))


def describe(type_: Any) -> str:
    """What the type takes, such as `an integer, at least 1 and at most 10`; None is left out."""
    return " or ".join(_describe(part) for part in parts(type_) if not isinstance(part, inspect.NoneType))


def _any_of(part: inspect.Type) -> str:
    return " or ".join(map(_describe, _members(part)))


def _members(part: inspect.Type) -> tuple[inspect.Type, ...]:
    info = _bare(part)
    return tuple(map(_bare, info.types)) if isinstance(info, inspect.UnionType) else (info,)


def _bare(part: inspect.Type) -> inspect.Type:
    return part.type if isinstance(part, inspect.Metadata) else part  # without its description


def _describe(part: inspect.Type) -> str:
    match part:
        case inspect.LiteralType(values=values):
            return str(values[0]) if len(values) == 1 else f"one of {', '.join(map(str, values))}"
        case inspect.IntType() | inspect.FloatType():
            noun = "an integer" if isinstance(part, inspect.IntType) else "a number"
            limits = [
                f"{words} {int(limit) if limit == int(limit) else limit}"
                for name, words in _BOUNDS
                if (limit := getattr(part, name)) is not None
            ]
            return f"{noun}, {' and '.join(limits)}" if limits else noun
        case inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            text = f"a string of {low or 0} to {high} characters" if high is not None else "a string"
            return f"{text} that matches {pattern}" if pattern is not None else text
        case inspect.DictType(key_type=key, value_type=value, max_length=most):
            noun = "an object" if most is None else f"an object of at most {most} names"
            return f"{noun}, each {_any_of(key)}, with values that are {_any_of(value)}"
        case inspect.ListType(item_type=item, max_length=most):
            return f"a list of {'any number' if most is None else f'at most {most}'}, each {_any_of(item)}"
        case inspect.CustomType(cls=cls):
            return f"a {cls.__name__.lower()}"
        case _:
            return f"a value of type {type(part).__name__.removesuffix('Type').lower()}"
