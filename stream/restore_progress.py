"""How far the restores of a daemon's partitions have come: a bar on a terminal, and a line in the log now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from msgspec import Struct
from rich.console import Console
from rich.progress import TaskID

from stream.changelog import RestoreStep
from stream.consoles import share_bar

log = structlog.get_logger(__name__)

_LOG_SECONDS: Final = 5.0
_SHORT_SECONDS: Final = 1.0  # of which nobody needs a bar


class _Run(Struct):
    """The restore of one partition."""

    started: float
    logged: float
    records: int = 0
    nbytes: int = 0
    task: TaskID | None = None


class RestoreProgress:
    """Shows every restore that is under way.

    Restores that last are told of in the log every five seconds, with rate, share and time left, and each has a bar of
    its own where standard error is a terminal.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = share_bar(console)
        self._clock = clock
        self._runs: dict[int, _Run] = {}

    def begin(self, partition: int) -> None:
        """The restore of a partition begins now."""
        now = self._clock()
        self._runs[partition] = _Run(now, now)

    def show(self, partition: int, step: RestoreStep) -> None:
        """A restore that has begun came further."""
        run, now = self._runs[partition], self._clock()
        run.records += step.records
        run.nbytes += step.nbytes
        seconds = max(now - run.started, 1e-9)
        if seconds < _SHORT_SECONDS:
            return
        share = (step.position - step.begin) / (step.end - step.begin)
        self._draw(partition, run, share, f"{run.records / seconds:,.0f} records/s")
        if now - run.logged >= _LOG_SECONDS:
            run.logged = now
            log.info(
                "restore_progress",
                partition=partition,
                records=run.records,
                mebibytes=run.nbytes >> 20,
                records_per_second=round(run.records / seconds),
                done=round(share, 3),
                seconds_left=round(seconds * (1 - share) / share),
            )

    def end(self, partition: int) -> tuple[int, int]:
        """The restore is over, whether it succeeded or not; returns the records and bytes that it read."""
        run = self._runs.pop(partition)
        if run.task is not None:
            self._bar.remove_task(run.task)
            if not self._bar.tasks:
                self._bar.stop()
        return run.records, run.nbytes

    def _draw(self, partition: int, run: _Run, share: float, facts: str) -> None:
        if self._bar.disable:
            return
        if run.task is None:
            self._bar.start()
            run.task = self._bar.add_task(f"restoring partition {partition}", total=1.0, facts=facts)
        self._bar.update(run.task, completed=share, facts=facts)
