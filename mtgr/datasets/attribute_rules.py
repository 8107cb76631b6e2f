"""What a file of attributes may hold, whatever its format, and the errors that name what it may not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES
from schemas.bounds import MAX_ID_CHARACTERS

ID_COLUMNS: Final = ("video_id", "user_id", "item_id", "id")
MAX_EXACT: Final = 2.0**53 - 1
"""Whole numbers above this are told apart as texts only."""


def choose_columns(
    names: Sequence[str], id_column: str | None, columns: Sequence[str] | None, source: Path
) -> tuple[str, list[str]]:
    """The id column and the columns of attributes among names; InputError if one of them is not there."""
    for column in (*([] if id_column is None else [id_column]), *(columns or ())):
        if column not in names:
            raise InputError(f"{source}: there is no column {column!r}{did_you_mean(column, names)}")
    if id_column is None:
        id_column = next((name for name in ID_COLUMNS if name in names), names[0])
    chosen = [name for name in (names if columns is None else columns) if name != id_column]
    if len(chosen) > MAX_ATTRIBUTES:
        raise InputError(
            f"{source}: has {len(chosen)} columns beside {id_column}, where at most {MAX_ATTRIBUTES} attributes are "
            f"kept; choose some"
        )
    return id_column, list(dict.fromkeys(chosen))


def told_twice(source: Path, place: str, id_column: str, identifier: str) -> InputError:
    """The error for an id that has two rows of different attributes."""
    return InputError(
        f"{source}: {place}: {id_column} {identifier!r} is there a second time, with other attributes; is it the "
        f"column of the ids?"
    )


def no_id(source: Path, place: str, id_column: str, shown: object) -> InputError:
    """The error for an id that is none."""
    return InputError(
        f"{source}: {place}: {id_column} is {shown!r}, where it should be text of 1 to {MAX_ID_CHARACTERS} characters"
    )


def too_long(source: Path, place: str, column: str, characters: int) -> InputError:
    """The error for a text beyond the bound."""
    return InputError(
        f"{source}: {place}: {column} has a text of {characters} characters, where an attribute has at most "
        f"{MAX_ATTRIBUTE_CHARACTERS}; choose the other columns, or shorten it"
    )


def too_many(source: Path, place: str, column: str, values: int) -> InputError:
    """The error for a list beyond the bound."""
    return InputError(
        f"{source}: {place}: {column} has {values} values, where an attribute has at most {MAX_ATTRIBUTE_VALUES}; "
        f"choose the other columns, or shorten it"
    )
