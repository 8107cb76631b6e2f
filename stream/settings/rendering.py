"""Writes settings as TOML."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from pathlib import Path

from msgspec import Struct, structs

from stream.settings.groups import Settings
from stream.settings.secret import MASK, Secret


def render(settings: Settings) -> str:
    """The settings as TOML that `load_settings` reads back, each under its sentence.

    Secrets are masked, and a setting that is unset stands there as a comment.
    """
    return "\n".join(
        f"# {(group.type.__doc__ or '').strip()}\n[{group.name}]\n{_table(getattr(settings, group.name))}"
        for group in structs.fields(settings)
    )


def _table(group: Struct) -> str:
    values = structs.asdict(group)
    for key in values:
        if values.get(f"{key}_file") is not None:
            values[key] = None  # it came from that file
    sentences = _sentences(type(group))
    return "".join(
        f"# {sentences[key]}\n" + (f"# {key} =\n" if value is None else f"{key} = {_scalar(value)}\n")
        for key, value in values.items()
    )


@functools.cache
def _sentences(group: type[Struct]) -> dict[str, str]:
    """The string under each field of a group, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(below, ast.Expr)
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = str(below.value.value)
    return found


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Secret():
            return f'"{MASK}"'
        case str() | Path():
            # a JSON string is a TOML basic string, but for the delete character
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")
