"""Dead letters on their way to be repaired, and what repairs them: nothing, a file, or a command."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from mtgr.errors import InputError
from schemas.codecs import CONTENT_TYPE_HEADER
from schemas.dead_letters import DeadLetter

_SHOWN_CHARACTERS = 200


class LetterRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter as a line of JSON: where the record was, why it died, and its value in the first form
    that fits.

    `value` is the value as JSON, `text` as UTF-8, `base64` as bytes.
    """

    topic: str
    partition: int
    offset: int
    stage: str
    error: str
    message: str
    key: str | None = None
    timestamp_ms: int
    value: Any = None
    text: str | None = None
    base64: str | None = None

    @classmethod
    def of(cls, letter: DeadLetter, record: Any) -> LetterRecord:
        """From a record of the dead-letter topic and the reason in its headers."""
        value, text, encoded = _readable(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
        return cls(
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            stage=letter.stage,
            error=letter.exception_class,
            message=letter.message,
            key=None if record.key is None else record.key.decode(errors="backslashreplace"),
            timestamp_ms=record.timestamp,
            value=value,
            text=text,
            base64=encoded,
        )


def _readable(value: bytes | None, content_type: bytes | None) -> tuple[Any, str | None, str | None]:
    if value is None:
        return None, None, None
    is_messagepack = b"msgpack" in (content_type or b"").lower()
    try:
        decoded = msgspec.msgpack.decode(value) if is_messagepack else msgspec.json.decode(value)
        msgspec.json.encode(decoded)  # MessagePack holds what JSON cannot
        return decoded, None, None
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        return None, value.decode(), None
    except UnicodeDecodeError:
        return None, None, base64.b64encode(value).decode()


class Repair(Protocol):
    """Gives some dead letters another value."""

    async def __call__(self, letters: Sequence[LetterRecord]) -> list[bytes | None]:
        """For each letter the JSON of its repaired value, None to leave it as it is. Raises InputError."""


async def no_repair(letters: Sequence[LetterRecord]) -> list[bytes | None]:
    """Leave every letter as it is: what was wrong may have been the daemon, not the record."""
    return [None] * len(letters)


class _FileLine(Struct, frozen=True):
    topic: str
    partition: int
    offset: int
    value: Raw = Raw(b"null")


class RepairFile:
    """Repaired values from JSON lines like those that `mtgr-stream replay --dry-run` writes.

    A line is matched by topic, partition and offset, and its `value` is taken.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError naming the line that is wrong."""
        self._values: dict[tuple[str, int, int], bytes] = {}
        self._used: set[tuple[str, int, int]] = set()
        decode = msgspec.json.Decoder(_FileLine).decode
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                line = decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{path}: line {number}: {error}; a line should be "
                    '{"topic": ..., "partition": ..., "offset": ..., "value": {...}}'
                ) from None
            place = (line.topic, line.partition, line.offset)
            if place in self._values:
                raise InputError(
                    f"{path}: line {number}: a second repair of {line.topic} {place[1]} {place[2]}"
                )
            self._values[place] = bytes(line.value)

    @property
    def unused(self) -> int:
        """Lines for which no letter was found so far."""
        return len(self._values) - len(self._used)

    async def __call__(self, letters: Sequence[LetterRecord]) -> list[bytes | None]:
        repaired = []
        for letter in letters:
            place = (letter.topic, letter.partition, letter.offset)
            value = self._values.get(place)
            if value is not None:
                self._used.add(place)
            repaired.append(_unless_null(value))
        return repaired


class RepairCommand:
    """A shell command that reads letters as JSON lines and writes a line with the repaired value for each.

    The line `null`, or an empty one, leaves a letter as it is. The command is run once for each batch of
    letters and sees the end of its input, so that it need not mind how its output is buffered.
    """

    def __init__(self, command: str) -> None:
        self._command = command

    async def __call__(self, letters: Sequence[LetterRecord]) -> list[bytes | None]:
        process = await asyncio.create_subprocess_shell(
            self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await process.communicate(msgspec.json.Encoder().encode_lines(letters))
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise InputError(f"--through {self._command}: ended with exit code {process.returncode}")
        lines = output.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        if len(lines) != len(letters):
            raise InputError(
                f"--through {self._command}: wrote {len(lines)} lines for {len(letters)} letters; it should write "
                "one line for each: the repaired value as JSON, or null"
            )
        return [_unless_null(line) for line in lines]


def _unless_null(value: bytes | None) -> bytes | None:
    return None if value is None or value.strip() in (b"", b"null") else value
