"""Refuses a setting by its name, its value and where it was set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from mtgr.errors import InputError
from stream.settings.groups import Settings


class Checker:
    """Settings with where each came from, for messages that lead the user to the line to change."""

    def __init__(self, settings: Settings, sources: Mapping[str, str]) -> None:
        self._settings = settings
        self._sources = sources

    def value(self, key: str) -> Any:
        group, field = key.split(".")
        return getattr(getattr(self._settings, group), field)

    def shown(self, key: str) -> str:
        value = self.value(key)
        text = "unset" if value is None else str(value)
        return f"{key} = {text} ({self._sources.get(key, 'default')})"

    def refuse(self, key: str, right: str) -> NoReturn:
        raise InputError(f"{self.shown(key)}: {right}")

    def at_most(self, key: str, other: str, unit: int = 1, other_unit: int = 1) -> None:
        if self.value(key) * unit > self.value(other) * other_unit:
            self.refuse(key, f"must not be above {self.shown(other)}")
