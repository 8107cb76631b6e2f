"""What is shown of a training while it runs."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mtgr.training.hooks import Progress


class TrainingBar:
    """A progress bar on a terminal; a line every tenth of the training elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = 0.0
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("reading events", total=None, facts="")

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show where training stands."""
        best = "" if progress.best is None else f"  best NDCG@10 {progress.best.ndcg:.4f}"
        facts = f"loss {progress.loss:.3f}{best}  {progress.tokens_per_second:,.0f} tokens/s"
        self._bar.update(
            self._task,
            description=f"epoch {progress.epoch:.1f}",
            total=1.0,
            completed=progress.done,
            facts=facts,
        )
        if self._bar.disable and (progress.done >= self._shown + 0.1 or progress.done == 1):
            self._shown = progress.done
            self._console.print(
                f"{progress.done:4.0%}  step {progress.step}  {facts}  {progress.seconds_left:.0f} s left",
                highlight=False,
            )


class Interruption:
    """Ctrl-C as a wish: while steps are made it is granted between two of them, a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        self.in_steps = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.in_steps:
            raise KeyboardInterrupt
        self.asked = True
