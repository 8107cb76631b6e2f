"""Where tables are printed, and what is shown of work that is counted."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def table_console(pipe_columns: int) -> Console:
    """Standard output: as wide as the terminal, or as the table where a pipe has no width."""
    return Console() if sys.stdout.isatty() else Console(width=pipe_columns)


def share_bar(console: Console | None = None) -> Progress:
    """A bar with the share done, facts of the task's own (`facts`) and the time left; nothing on a pipe.

    It begins with the first task to be shown and `start`; log lines that are written meanwhile stand above it.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def counting_bar() -> Progress:
    """A bar on standard error with what is counted and the time left, gone when it is through; nothing on a pipe."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
