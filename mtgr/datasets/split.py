"""One log cut in two by time: what a model is trained on, and what then comes live."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.log_files import OnInvalid, read_events
from mtgr.errors import InputError


class LogSplit(Struct, frozen=True, kw_only=True):
    """Two files of wire JSON lines; every event of the first is earlier than every event of the second."""

    earlier: Path
    later: Path
    earlier_events: int
    later_events: int
    cut_ms: int
    """The time of the later part's first event."""


def split_by_time(
    paths: Iterable[str | os.PathLike[str]],
    fraction: float,
    directory: str | os.PathLike[str],
    mapping: ColumnMapping | None = None,
    on_invalid: OnInvalid | None = None,
) -> LogSplit:
    """Write the first `fraction` of the logs' events to DIRECTORY/earlier.jsonl and the rest to
    DIRECTORY/later.jsonl.

    The cut falls between two different times, at or before the fraction, so that nothing of the later part's
    moment is known to the earlier one. The logs are read twice rather than held in memory. Raises InputError
    if the fraction is not between 0 and 1, or leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction: {fraction} should be between 0 and 1, both excluded")
    paths = list(paths)
    times = array("q", (event.timestamp_ms for event in read_events(paths, mapping, on_invalid)))
    place = int(fraction * len(times))
    cut_ms = times[place] if times else 0
    while place > 0 and times[place - 1] == cut_ms:
        place -= 1
    if place == 0:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{names}: {len(times)} events cannot be cut in two at the fraction {fraction}")

    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    earlier, later = out / "earlier.jsonl", out / "later.jsonl"
    encode = msgspec.json.Encoder().encode_into
    line = bytearray(1024)
    with earlier.open("wb") as first, later.open("wb") as second:
        # the first pass has told of what is invalid
        for event in read_events(paths, mapping, None if on_invalid is None else lambda _: None):
            encode(event, line)
            line += b"\n"
            (first if event.timestamp_ms < cut_ms else second).write(line)
    return LogSplit(
        earlier=earlier,
        later=later,
        earlier_events=place,
        later_events=len(times) - place,
        cut_ms=cut_ms,
    )
