"""Dead letters can be read by a person or a command, and repaired by either."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtgr.errors import InputError
from schemas.dead_letters import DeadLetter
from stream.tools.repairs import LetterRecord, RepairCommand, RepairFile, no_repair


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = b"u1"
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    timestamp: int = 5


def letter(offset: int = 7, value: bytes | None = b'{"a":1}', **fields: Any) -> LetterRecord:
    reason = DeadLetter.make(
        topic="events",
        partition=2,
        offset=offset,
        stage="decode",
        exception_class="MalformedEvent",
        message="no",
    )
    return LetterRecord.of(reason, Record(value, **fields))


@pytest.mark.parametrize(
    ("value", "headers", "shown"),
    [
        (b'{"a":1}', [], {"value": {"a": 1}}),
        (b"\x81\xa1a\x01", [("content-type", b"application/msgpack")], {"value": {"a": 1}}),
        (b"{oops", [], {"text": "{oops"}),
        (b"\xff\x00", [], {"base64": "/wA="}),
        (None, [], {}),
    ],
)
def test_a_letter_shows_its_value_in_the_first_form_that_fits(
    value: bytes | None, headers: list[tuple[str, bytes]], shown: dict[str, Any]
) -> None:
    """As JSON if it is that or MessagePack, else as text, else as base64."""
    line = msgspec.json.decode(msgspec.json.encode(letter(value=value, headers=headers)))
    assert {name: line[name] for name in ("value", "text", "base64") if name in line} == shown
    assert (line["topic"], line["partition"], line["offset"], line["key"]) == ("events", 2, 7, "u1")


async def test_what_a_dry_run_writes_can_be_edited_and_read(tmp_path: Path) -> None:
    """A repair is found by the place that the record had in its topic; lines without a value repair nothing."""
    path = tmp_path / "letters.jsonl"
    lines = msgspec.json.encode(letter(7)) + b"\n\n" + msgspec.json.encode(letter(8, b"{oops")) + b"\n"
    path.write_bytes(lines.replace(b'{"a":1}', b'{"a": 2}'))
    repair = RepairFile(path)
    assert await repair([letter(6), letter(7), letter(8)]) == [None, b'{"a": 2}', None]
    assert repair.unused == 0
    assert RepairFile(path).unused == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: "),
        ('{"topic": "t", "partition": 0}', "missing required field `offset`"),
        ('{"topic":"t","partition":0,"offset":1}\n' * 2, "line 2: a second repair of t 0 1"),
    ],
)
def test_a_wrong_line_of_repairs_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Nothing is replayed from a file that is not understood."""
    path = tmp_path / "letters.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        RepairFile(path)


async def test_a_command_repairs_line_by_line() -> None:
    """Each letter goes in as a line and its repaired value comes out as one; null and nothing leave it."""
    code = (
        "import json,sys\n"
        "for line in sys.stdin:\n"
        "    letter = json.loads(line)\n"
        "    print([json.dumps(letter['value']), 'null', ''][letter['offset']])\n"
    )
    repair = RepairCommand(f'{sys.executable} -c "{code}"')
    assert await repair([letter(0), letter(1), letter(2)]) == [b'{"a": 1}', None, None]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cat > /dev/null; exit 3", "ended with exit code 3"),
        ("head -1", "wrote 1 lines for 2 letters"),
        ("cat > /dev/null", "wrote 0 lines for 2 letters"),
    ],
)
async def test_a_command_that_fails_or_loses_count_is_refused(command: str, message: str) -> None:
    """Values are never matched to the wrong letters."""
    with pytest.raises(InputError, match=message):
        await RepairCommand(command)([letter(1), letter(2)])


async def test_without_a_repair_letters_stay_as_they_are() -> None:
    """What died of the daemon may live as it is."""
    assert await no_repair([letter(1), letter(2)]) == [None, None]
