"""The performance page: aims against figures, and nothing that was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtgr.bench.aims import Verdict, verdicts
from mtgr.bench.cases import parse_case
from mtgr.bench.records import (
    HSTU,
    TRANSFORMER,
    Ceilings,
    DeviceTime,
    Environment,
    Kernel,
    Layer,
    Load,
    Memory,
    Missing,
    Record,
    RecordFile,
    Row,
    Setting,
    Split,
    Started,
    System,
)
from mtgr.bench.render import NOTES, main, outcome, render
from mtgr.bench.results import Results

GPU = Setting("cuda", "seed-high", "bfloat16")


def row(text: str, system: System, milliseconds: float, setting: Setting = GPU) -> Row:
    return Row(setting, system, parse_case(text), [milliseconds], 4_000_000_000, 8_000_000_000)


def layer(name: str, milliseconds: float) -> Layer:
    return Layer("cuda", "bfloat16", name, "what it holds", 8192, 2, milliseconds, 1000, 800_000_000_000)


RECORDS: list[Record] = [
    Environment("cuda", "a machine", "a GPU", {"torch": "2.0"}, "2026-01-01T00:00:00+00:00", "python -m mtgr.bench"),
    Ceilings("cuda", "bfloat16", 4e12, 8e14),
    Started(GPU, "ours", 378_000_000, 60.0, "the engine"),
    row("1x100", "ours", 2.7),
    row("64x200", "ours", 20.0),
    row("64x200", "llama", 38.0),
    row("64x1000", "ours", 150.0),
    row("64x1000+1", "ours", 10.0),
    DeviceTime(GPU, "ours", parse_case("64x200"), 22.0, 11.0, [Kernel("gemm", 6.0, 120.0)]),
    Split(GPU, parse_case("64x200"), 0.5, 0.25, 0.25, 10.5, 0.125),
    Load(GPU, "ours", 512, 1000, 9_000.0, 4_500.0, 4_490.0, 12.5, 31.0, 27_000),
    Memory(GPU, "ours", 12 << 30, 10 << 30, 14 << 30),
    layer(HSTU, 2.0),
    layer(TRANSFORMER, 5.0),
    Missing("cuda", "seed-high", "llama 1024x1000+1", "no room"),
]  # fmt: skip


def verdict(figure: str, unit: str | None = None) -> Verdict:
    """The verdict whose figure begins so."""
    (found,) = (
        one
        for one in verdicts(Results(RECORDS))
        if one.figure.startswith(figure) and one.unit == (unit or one.unit)
    )
    return found


@pytest.mark.parametrize(
    ("aim", "at_most", "measured", "said"),
    [
        (4.0, True, 3.0, "reached by 25%"),
        (4.0, True, 4.0, "reached by 0%"),
        (4.0, True, 5.0, "missed by 25%"),
        (20.0, False, 15.0, "missed by 25%"),
        (20.0, False, 30.0, "reached by 50%"),
        (20.0, False, None, ""),
    ],
)
def test_a_verdict_says_reached_or_missed_and_by_what_share_of_the_aim(
    aim: float, at_most: bool, measured: float | None, said: str
) -> None:
    """Less is better of a time, more of a ratio, and nothing is said of what was not measured."""
    assert outcome(Verdict("a figure", aim, "x", at_most, measured)) == said


def test_aims_are_held_against_the_records() -> None:
    """Ratios are the other system's time over ours, and the gain of the cache is fresh over cached."""
    assert verdict("1 x 100 fresh", "ms").measured == 2.7
    assert verdict("64 x 200 fresh, against").measured == pytest.approx(1.9)
    assert verdict("64 x (1000 cached + 1), against fresh").measured == pytest.approx(15.0)
    assert verdict("HSTU layer").measured == pytest.approx(2.5)
    assert verdict("4 x 200 fresh", "ms").measured is None
    assert verdict("8b").measured is None


def test_rows_with_engine_options_do_not_count_for_the_aims() -> None:
    """The aims are of the engine as it is."""
    changed = Setting("cuda", "seed-high", "bfloat16", {"scheduling": "vllm"})
    (first, *_) = verdicts(Results([row("1x100", "ours", 1.0, changed)]))
    assert first.measured is None


def test_the_page_has_what_was_measured_and_says_what_was_not() -> None:
    """Times, ratios, the floor and the distance to it, machine and command, and what is missing."""
    page = render(Results(RECORDS))
    assert "| 1 x 100 fresh | at most 3 ms | 2.70 ms | reached by 10% |" in page
    assert "| 4 x 200 fresh | at most 4 ms | not measured |  |" in page
    assert "| 64 x 200 | 20.00 | 38.00 | 1.90x | 3,200 | 1.00 (bytes) | 20.00x |" in page
    assert "`gemm` 6.00" in page
    assert "| 64 x 200 | ours | 22.00 | 11.00 | 50% |" in page
    assert "| 64 x 200 | 0.50 | 0.25 | 0.25 | 10.50 | 0.12 | 11.62 |" in page
    assert "| ours | 9,000 | 4,500 | 4,490 | 12.5 | 31.0 | 27,000 |" in page
    assert "| ours | 12.00 | 10.00 | 2.00 |" in page
    assert "- seed-high, llama 1024x1000+1: no room" in page
    assert "    python -m mtgr.bench" in page
    assert "On a CPU" not in page


def test_what_people_wrote_below_the_notes_stays(tmp_path: Path) -> None:
    """Rendering again changes the tables and nothing else."""
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    for record in RECORDS:
        RecordFile(records).add(record)
    command = [str(records), "--page", str(page)]
    assert CliRunner().invoke(main, command).exit_code == 0
    notes = f"{NOTES}\n\nWhy the aim was missed.\n"
    page.write_text(page.read_text() + "\n" + notes)
    RecordFile(records).add(row("1x100", "ours", 3.3))
    assert CliRunner().invoke(main, command).exit_code == 0
    assert page.read_text().endswith(notes)
    assert "missed by 10%" in page.read_text()
