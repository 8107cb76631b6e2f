"""What of an event log a model was trained on: kept with it, so that it is not tested on the same unawares."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from mtgr.errors import InputError
from mtgr.evaluation.targets import Target
from mtgr.plain_data import parse_struct


class LearntPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The split of a training, and where its log ended."""

    split: Literal["leave-one-out", "time", "none"]
    cut_ms: int | None = None
    """Of a split by time, in milliseconds since 1970."""
    target: Target
    include_seen: bool
    """Whether a video that a user has seen could be a target."""
    part: Literal["training", "known"]
    """Whether what is before the test cases was learnt without the validation part, or all of it."""
    last_ms: int
    """The time of the log's last event."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `parse_learnt_part` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


def parse_learnt_part(data: Any, source: str) -> LearntPart | None:
    """Read it from plain data, None for none; InputError names the source, the field and what would be right."""
    if data is None:
        return None
    if not isinstance(data, dict):
        raise InputError(f"{source} is {data!r}, where an object is wanted")
    return parse_struct(data, LearntPart, source)
