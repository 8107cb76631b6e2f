"""Writes settings as TOML."""

from __future__ import annotations

import json
from pathlib import Path

from msgspec import structs

from stream.settings.groups import Settings
from stream.settings.secret import MASK, Secret


def render(settings: Settings) -> str:
    """The settings as TOML that `load_settings` reads back, secrets masked and unset ones left out."""
    tables = []
    for group in structs.fields(settings):
        values = structs.asdict(getattr(settings, group.name))
        if values.get("sasl_password_file") is not None:
            del values["sasl_password"]  # it came from that file
        lines = [f"{key} = {_scalar(value)}" for key, value in values.items() if value is not None]
        tables.append("\n".join([f"[{group.name}]", *lines]))
    return "\n\n".join(tables) + "\n"


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
