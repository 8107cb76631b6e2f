"""Plain data, from JSON or a command line, to the validated structs that configs and options are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

_Read = TypeVar("_Read", bound=Struct)


def parse_struct(data: Mapping[str, Any], kind: type[_Read], source: str) -> _Read:
    """Read a struct from plain data; InputError names the source, the field and what would be right."""
    known = kind.__struct_fields__
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {error}") from None
