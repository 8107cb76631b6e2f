"""What parts the fields of a text file, found by its first lines."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Final

SEPARATORS: Final = {"comma": ",", "tab": "\t", "space": " ", "semicolon": ";", "pipe": "|"}
"""Names for separators that a mapping, itself split at commas, or a shell cannot hold well."""

# of two that part the lines equally well, the first
_CANDIDATES: Final = ("::", "\t", ",", ";", "|", " ")


def split_line(line: str, separator: str) -> list[str]:
    """The fields of a line; those of a separator of one character may be quoted."""
    if len(separator) > 1:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return [line]


def find_separator(lines: Sequence[str], wanted: Sequence[str] = ()) -> str:
    """The separator of lines, of which the first may be a header with the wanted names.

    It is the one that leads to the most of the wanted names, then one that parts all lines into as many
    fields, then the one that parts them into the most. Lines that none parts are taken as one column of
    comma-separated text.
    """

    def merit(separator: str) -> tuple[int, bool, int]:
        counts = [len(split_line(line, separator)) for line in lines]
        found = len(set(split_line(lines[0], separator)) & set(wanted))
        return found, counts[0] > 1 and len(set(counts)) == 1, counts[0]

    if not lines:
        return ","
    best = max(_CANDIDATES, key=merit)
    if best == " " and not wanted:
        # blanks are inside of texts and times more often than they part fields
        others = [separator for separator in _CANDIDATES[:-1] if separator in lines[0]]
        best = max(others, key=merit, default=best)
    return best if best in lines[0] else ","


def overlong_line(lines: Iterable[bytes], separator: str, fields: int) -> tuple[int, int] | None:
    """The first line with more fields, as its number and how many it has; None if there is none."""
    reader = csv.reader((line.decode(errors="replace") for line in lines), delimiter=separator)
    try:
        return next(((reader.line_num, len(row)) for row in reader if len(row) > fields), None)
    except csv.Error:
        return None


def unclosed_quote(lines: Iterable[bytes]) -> int:
    """The number of the line where a quote opens that no later line closes; 1 if there is none."""
    opened, is_open = 1, False
    for number, line in enumerate(lines, start=1):
        if line.count(b'"') % 2:
            opened, is_open = (opened if is_open else number), not is_open
    return opened


def separator_name(separator: str) -> str:
    """How a mapping writes a separator."""
    return next((name for name, mark in SEPARATORS.items() if mark == separator), separator)
