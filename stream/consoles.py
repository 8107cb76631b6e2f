"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def table_console(pipe_columns: int) -> Console:
    """Standard output: as wide as the terminal, or as the table where a pipe has no width."""
    return Console() if sys.stdout.isatty() else Console(width=pipe_columns)
