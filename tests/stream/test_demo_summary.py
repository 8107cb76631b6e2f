"""The demo's summary as a person reads it."""

from __future__ import annotations

from msgspec.structs import replace
from rich.console import Console

from stream.commands.demo import summary_table
from stream.demo.ledger import Outcome
from stream.demo.next_videos import NextVideos
from stream.demo.play import Report

REPORT = Report(
    history_events=1_621_331,
    live_events=100_490,
    all_lists=108_090,
    new_videos=12_101,
    new_videos_listed=1_018,
    live=Outcome(lists=88_590, users=17_060, median_ms=63.0, p99_ms=1_204.0, cached_share=0.91),
    next_videos=NextVideos(moments=85_760, listed=3_087, popular=1_029),
    dead_letters=0,
    duplicates=229,
    users_in_batch=2.5,
    daemon_exit_code=0,
)


def shown(report: Report) -> list[str]:
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(summary_table(report))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_the_summary_fits_a_pipe_and_a_narrow_terminal() -> None:
    """No number and no word is cut off at 80 columns, and each fact has one line."""
    lines = shown(REPORT)
    assert not any("\u2026" in line for line in lines)
    assert len(lines) == 13
    assert "3.6% of 85,760 times the next new video watched was in the list live then" in lines
    assert "1.2% of these times it was among as many of the most watched unseen ones" in lines
    assert "1,018 of 12,101 videos that were new to the model were recommended" in lines


def test_a_log_without_new_videos_says_nothing_of_them() -> None:
    """What the data does not hold is not reported as nothing."""
    lines = shown(replace(REPORT, new_videos=0, new_videos_listed=0, next_videos=NextVideos(0, 0, 0)))
    assert len(lines) == 10
