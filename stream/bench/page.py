"""Sections of a page that a benchmark writes: what stands between two marks is replaced, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mtgr.bench.machine import machine
from mtgr.errors import InputError

RELIABILITY: Final = Path("docs/reliability.md")


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text where the page has the marks of this name; raises InputError where it has none."""
    replace_between(page, name, f"<!-- {name}: written by make bench -->\n", f"<!-- /{name} -->\n", text)


def replace_between(page: Path, name: str, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page; raises InputError, with what the text is, where they are not there."""
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise InputError(
            f"{page} has no place for {name}: it wants the lines {begin.strip()} and {end.strip()}"
        )
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as pages have it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def circumstances() -> str:
    """The machine, how busy it was, and the day, in a line."""
    load = os.getloadavg()[1]
    return f"{machine()}; load {load:.1f} at the end; {time.strftime('%Y-%m-%d', time.gmtime())}"
