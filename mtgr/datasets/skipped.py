"""Records of a log that are no events, passed over and counted."""

from __future__ import annotations

from mtgr.errors import InputError


class SkippedRecords:
    """An `OnInvalid` that goes on, and keeps how many records were passed over and why the first was."""

    def __init__(self) -> None:
        self.count = 0
        self.first: InputError | None = None

    def __call__(self, error: InputError) -> None:
        self.first = self.first or error
        self.count += 1

    def __str__(self) -> str:
        """What to tell of them, once there are some."""
        return f"skipped {self.count} records that are no events, the first: {self.first}"
