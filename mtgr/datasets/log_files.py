"""Event logs of any known format, told apart by content."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.kuairand_sequences import is_history, read_histories
from mtgr.datasets.wire_log import read_lines, read_wire_log
from mtgr.errors import InputError
from schemas.events import Event

OnInvalid = Callable[[InputError], None]


class _Log(NamedTuple):
    path: Path
    format: Literal["wire", "histories", "objects", "table"]

    @property
    def mapped(self) -> bool:
        """Whether a column mapping says what is in it."""
        return self.format in ("objects", "table")


def read_events(
    paths: Iterable[str | os.PathLike[str]],
    mapping: ColumnMapping | None = None,
    on_invalid: OnInvalid | None = None,
) -> Iterator[Event]:
    """Events of event logs, merged into one time order; see `read_file` for what a file may be.

    Events of one time come in the order of the paths. Where the mapping names neither times nor an order, the
    files that it is for follow one another as if they were one; where it names ratings, the highest one is
    that of all files. A path that is not there is told at once, before the first event.
    """
    logs = [_told_apart(path, mapping) for path in paths]
    mapped = [log for log in logs if log.mapped]
    if mapping is None or len(mapped) < 2:
        found = [_read(log, mapping, on_invalid) for log in logs]
    else:
        if mapping.rating is not None and mapping.rating_max is None:
            mapping = _with_highest_rating(mapped, mapping)
        found = [_read(log, mapping, on_invalid) for log in logs if not (mapping.timeless and log.mapped)]
        if mapping.timeless:
            found.append(_one_after_another(mapped, mapping, on_invalid))
    return found[0] if len(found) == 1 else heapq.merge(*found, key=lambda event: event.timestamp_ms)


def read_file(
    path: str | os.PathLike[str],
    mapping: ColumnMapping | None = None,
    on_invalid: OnInvalid | None = None,
) -> Iterator[Event]:
    """Events of one event log in time order: JSON lines as on the wire, a table, or KuaiRand's histories.

    A table is text with a separator (CSV, TSV, MovieLens' "::"), Parquet, or JSON lines of objects of any
    shape, and the mapping names its columns; without it they must be those of a KuaiRand log or be named as
    on the wire. All but Parquet may be gzip. What is no event is handed to `on_invalid` as the InputError that
    names file, line, field and value, and passed over; without `on_invalid` that error is raised. Raises
    InputError for a file that is none of these.
    """
    return _read(_told_apart(path, mapping), mapping, on_invalid)


def _told_apart(path: str | os.PathLike[str], mapping: ColumnMapping | None) -> _Log:
    file = existing_file(path)
    first = next((text for line in read_lines(file) if (text := line.strip())), b"")
    if not first:
        raise InputError(f"{file}: holds nothing; it should be JSON lines of events, CSV or Parquet")
    if first.startswith(b"{"):
        if is_history(first):
            return _Log(file, "histories")
        return _Log(file, "objects" if mapping is not None and not _is_wire(first) else "wire")
    if b"\0" in first and not first.startswith(b"PAR1"):
        raise InputError(f"{file}: is neither JSON lines, CSV (plain or gzip) nor Parquet")
    return _Log(file, "table")


def _is_wire(line: bytes) -> bool:
    try:
        found = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return {"type", "event_id", "user_id", "timestamp_ms"} <= found.keys()


def _read(
    log: _Log, mapping: ColumnMapping | None, on_invalid: OnInvalid | None, first_rank: int = 0
) -> Iterator[Event]:
    if log.format == "wire":
        return read_wire_log(log.path, on_invalid)
    if log.format == "histories":
        return read_histories(log.path, on_invalid)
    from mtgr.datasets.mapped_log import read_mapped  # polars takes longer to import than many a log to read

    return read_mapped(
        log.path, mapping, on_invalid, json_lines=log.format == "objects", first_rank=first_rank
    )


def _one_after_another(
    logs: Sequence[_Log], mapping: ColumnMapping, on_invalid: OnInvalid | None
) -> Iterator[Event]:
    from mtgr.datasets.row_times import rank_after

    rank = 0
    for log in logs:
        last: Event | None = None
        for event in _read(log, mapping, on_invalid, rank):
            yield event
            last = event
        if last is not None:
            rank = rank_after(last.timestamp_ms)


def _with_highest_rating(logs: Sequence[_Log], mapping: ColumnMapping) -> ColumnMapping:
    from mtgr.datasets.mapped_log import highest_rating

    highest = max(highest_rating(log.path, mapping, json_lines=log.format == "objects") for log in logs)
    return replace(mapping, rating_max=highest or None)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path; raises InputError if there is no such file."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file}: is a directory; name the files in it")
    if not file.exists():
        raise InputError(f"{file}: there is no such file")
    return file
