"""Asks a setting's type what it takes."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

from schemas.describing import parts
from stream.settings.secret import Secret


def is_optional(type_: Any) -> bool:
    """Whether a setting of this type can be unset."""
    return any(isinstance(part, inspect.NoneType) for part in parts(type_))


def is_secret(type_: Any) -> bool:
    """Whether a setting of this type must not be shown."""
    return any(isinstance(part, inspect.CustomType) and part.cls is Secret for part in parts(type_))
