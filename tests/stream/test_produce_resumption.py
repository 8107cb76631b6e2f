"""A producer goes on where Kafka had acknowledged its input, and only in that input."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtgr.datasets import parse_mapping
from mtgr.errors import InputError
from stream.tools.resumption import Position

MAPPING = parse_mapping(["user=u,video=v,time=t,rows_are=like"])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_bytes(b"u,v,t\n" + b"1,2,3\n" * 500_000)  # longer than what is sampled at each end
    return path


def test_a_position_is_read_back_as_it_was_saved(log: Path, tmp_path: Path) -> None:
    """The same input goes on after what was acknowledged, wherever the log has been moved."""
    kept = tmp_path / "position.json"
    Position.start_of([log], "events", MAPPING).save(kept, 41)
    moved = log.rename(tmp_path / "moved.csv")
    assert Position.start_of([moved], "events", MAPPING).resumed_from(kept).acknowledged == 41


def test_without_a_file_the_start_is_the_start(log: Path, tmp_path: Path) -> None:
    """The first run of a resumable command needs no file."""
    assert Position.start_of([log], "events", None).resumed_from(tmp_path / "none").acknowledged == 0


@pytest.mark.parametrize("place", [0, 1_000, -1_000, -1])
def test_a_log_that_has_changed_is_refused(log: Path, tmp_path: Path, place: int) -> None:
    """A byte changed near either end, or one more, is another input."""
    kept = tmp_path / "position.json"
    Position.start_of([log], "events", None).save(kept, 41)
    content = bytearray(log.read_bytes())
    content[place] ^= 1
    log.write_bytes(content)
    with pytest.raises(InputError, match="its content has changed"):
        Position.start_of([log], "events", None).resumed_from(kept)
    log.write_bytes(bytes(content) + b"\n")
    with pytest.raises(InputError, match="it had 3000006 bytes and has 3000007"):
        Position.start_of([log], "events", None).resumed_from(kept)


def test_another_run_is_refused_with_what_differs(log: Path, tmp_path: Path) -> None:
    """A position counts the events of one mapping in one topic, and of so many files."""
    kept = tmp_path / "position.json"
    Position.start_of([log], "events", MAPPING).save(kept, 41)
    with pytest.raises(InputError, match="for topic events, not other"):
        Position.start_of([log], "other", MAPPING).resumed_from(kept)
    with pytest.raises(InputError, match="another mapping"):
        Position.start_of([log], "events", None).resumed_from(kept)
    with pytest.raises(InputError, match="for 1 files, not 2"):
        Position.start_of([log, log], "events", MAPPING).resumed_from(kept)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"acknowledged": -1}'])
def test_a_damaged_position_is_refused(log: Path, tmp_path: Path, content: bytes) -> None:
    """What is no position is said to be none, with how to start over."""
    kept = tmp_path / "position.json"
    kept.write_bytes(content)
    with pytest.raises(InputError, match=r"is no file of --resume.*remove it to start over"):
        Position.start_of([log], "events", None).resumed_from(kept)


def test_a_position_that_cannot_be_saved_is_told(log: Path, tmp_path: Path) -> None:
    """A directory that is not there is one line."""
    with pytest.raises(InputError, match="cannot be written"):
        Position.start_of([log], "events", None).save(tmp_path / "none" / "position.json", 1)
