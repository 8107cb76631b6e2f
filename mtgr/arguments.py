"""What a caller of the library hands in, checked against the types with bounds that the wire has too."""

from __future__ import annotations

import reprlib
from typing import Any, Final

import msgspec
import numpy as np

from mtgr.errors import InputError
from schemas.describing import describe

_MAX_SHOWN_CHARACTERS: Final = 80


def check_argument(name: str, value: object, type_: Any, meaning: str = "") -> Any:
    """The value as the type has it; InputError names the argument, the value and what would be right.

    A numpy scalar is the Python number it stands for. `meaning` ends the message: the unit, or an example.
    """
    try:
        converted = msgspec.convert(plain(value), type_)
        if isinstance(converted, str):
            converted.encode()  # no text that was cut within a character
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise InputError(f"{name} = {shown(value)}: expected {describe(type_)}{meaning}") from None
    return converted


def plain(value: object) -> object:
    """A numpy scalar, as columns of a table give them, as the Python number it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def shown(value: object) -> str:
    """The value in a message: whole where it is short."""
    text = reprlib.repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"
