"""Events from JSON lines as they are on the wire, gzip or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from mtgr.errors import InputError
from schemas.codecs import decode_event
from schemas.errors import UndecodableEvent
from schemas.events import Event

_BUFFER_BYTES: Final = 1 << 20


class _Moment(Struct, gc=False):
    timestamp_ms: int


_decode_moment = msgspec.json.Decoder(_Moment).decode


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain or gzip file, told apart by content. Raises InputError if it cannot be read to its
    end.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb", buffering=_BUFFER_BYTES) as lines:
            yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_wire_log(path: Path, on_invalid: Callable[[InputError], None] | None) -> Iterator[Event]:
    """Events of a file of JSON lines, in time order; blank lines are passed over.

    A log that is in time order already, as most are, is streamed; another is held in memory and sorted,
    events of one time in the file's order. A line that is no event goes to `on_invalid` as the error that
    names it, or is raised.
    """
    events = decode_lines(read_lines(path), str(path), on_invalid)
    if _is_in_order(path):
        return events
    return iter(sorted(events, key=lambda event: event.timestamp_ms))


def decode_lines(
    lines: Iterable[bytes],
    source: str,
    on_invalid: Callable[[InputError], None] | None,
    first_line: int = 1,
) -> Iterator[Event]:
    """Decode events from JSON lines, in their order; errors name `source` and the line."""
    for number, line in enumerate(lines, start=first_line):
        try:
            yield decode_event(line)
        except UndecodableEvent as error:
            if not line.strip():
                continue
            wrong = InputError(f"{source}: line {number}: {error}")
            if on_invalid is None:
                raise wrong from None
            on_invalid(wrong)


def _is_in_order(path: Path) -> bool:
    latest = 0
    for line in read_lines(path):
        try:
            moment = _decode_moment(line).timestamp_ms
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # told by the reading proper
        if moment < latest:
            return False
        latest = moment
    return True
