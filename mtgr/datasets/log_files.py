"""Event logs of any known format, told apart by content."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.wire_log import read_lines, read_wire_log
from mtgr.errors import InputError
from schemas.events import Event

OnInvalid = Callable[[InputError], None]


def read_events(
    paths: Iterable[str | os.PathLike[str]],
    mapping: ColumnMapping | None = None,
    on_invalid: OnInvalid | None = None,
) -> Iterator[Event]:
    """Events of event logs, merged into one time order; see `read_file` for what a file may be.

    Events of one time come in the order of the paths. A path that is not there is told at once, before the
    first event.
    """
    files = [_existing(path) for path in paths]
    if len(files) == 1:
        return read_file(files[0], mapping, on_invalid)
    logs = [read_file(file, mapping, on_invalid) for file in files]
    return heapq.merge(*logs, key=lambda event: event.timestamp_ms)


def read_file(
    path: str | os.PathLike[str],
    mapping: ColumnMapping | None = None,
    on_invalid: OnInvalid | None = None,
) -> Iterator[Event]:
    """Events of one event log in time order: JSON lines as on the wire, or CSV, either one gzip or not.

    The mapping names the columns of a CSV log; without it the header must be that of a KuaiRand log or name
    columns as the wire does. What is no event is handed to `on_invalid` as the InputError that names file,
    line, field and value, and passed over; without `on_invalid` that error is raised. Raises InputError for a
    file that is none of these.
    """
    file = _existing(path)
    first = next((text for line in read_lines(file) if (text := line.strip())), b"")
    if not first:
        raise InputError(f"{file}: holds nothing; it should be JSON lines of events or CSV with a header")
    if first.startswith(b"{"):
        return read_wire_log(file, on_invalid)
    if b"\0" in first or first.startswith(b"PAR1"):
        raise InputError(f"{file}: is neither JSON lines nor CSV (plain or gzip)")
    from mtgr.datasets.csv_log import read_csv  # polars takes longer to import than many a log to read

    return read_csv(file, mapping, on_invalid)


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file}: is a directory; name the files in it")
    if not file.exists():
        raise InputError(f"{file}: there is no such file")
    return file
