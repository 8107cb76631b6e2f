"""Promises of stream.restore_progress: a long restore says in the log and on a terminal how far it is."""

from __future__ import annotations

import io

import structlog
from rich.console import Console

from stream.changelog import RestoreStep
from stream.observability import configure_logging
from stream.restore_progress import RestoreProgress
from stream.settings import LogSettings

BEGIN, END = 1_000, 101_000


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(position: int, records: int) -> RestoreStep:
    return RestoreStep(records, 1 << 20, BEGIN, position, END)


def test_a_long_restore_is_told_of_in_the_log() -> None:
    """Every five seconds there is a line with rate, share done and time left; a short restore writes none."""
    clock = Clock()
    progress = RestoreProgress(Console(file=io.StringIO()), clock)
    progress.begin(3)
    with structlog.testing.capture_logs() as logs:
        for second in range(1, 11):
            clock.now = 100.0 + second
            progress.show(3, step(BEGIN + 5_000 * second, 2_000))
    assert progress.end(3) == (20_000, 10 << 20)
    assert [line["event"] for line in logs] == ["restore_progress"] * 2
    assert {key: logs[0][key] for key in ("partition", "records", "mebibytes", "records_per_second")} == {
        "partition": 3,
        "records": 10_000,
        "mebibytes": 5,
        "records_per_second": 2_000,
    }
    assert (logs[0]["done"], logs[0]["seconds_left"]) == (0.25, 15)
    assert (logs[1]["done"], logs[1]["seconds_left"]) == (0.5, 10)


def test_a_terminal_shows_a_bar_for_each_long_restore() -> None:
    """A bar names the partition, its share and its rate, and is gone with the restore."""
    clock, shown = Clock(), io.StringIO()
    console = Console(file=shown, force_terminal=True, force_interactive=True, width=100, color_system=None)
    progress = RestoreProgress(console, clock)
    progress.begin(3)
    progress.begin(4)
    clock.now += 0.5
    progress.show(4, step(END, 100_000))
    progress.end(4)
    assert shown.getvalue() == ""  # over before anybody would have read it
    clock.now += 3.5
    progress.show(3, step(BEGIN + 75_000, 60_000))
    progress._bar.refresh()
    assert "restoring partition 3" in shown.getvalue()
    assert "75%" in shown.getvalue()
    assert "15,000 records/s" in shown.getvalue()
    progress.end(3)
    assert not progress._bar.live.is_started


def test_a_bar_and_the_log_share_a_terminal() -> None:
    """What is logged while a bar stands is written above it, and both are whole."""
    clock, shown = Clock(), io.StringIO()
    console = Console(file=shown, force_terminal=True, force_interactive=True, width=100, color_system=None)
    configure_logging(LogSettings())
    progress = RestoreProgress(console, clock)
    progress.begin(0)
    clock.now += 2
    progress.show(0, step(BEGIN + 50_000, 50_000))
    structlog.get_logger("stream").info("said_meanwhile", partition=0)
    assert "said_meanwhile" in shown.getvalue()
    progress.end(0)
