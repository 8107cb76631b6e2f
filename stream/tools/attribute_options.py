"""Options of every command that reads attributes of videos or users from a file, in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from mtgr.datasets.attributes import read_attributes
from mtgr.datasets.separators import SEPARATORS
from schemas.attributes import Attributes


def separators(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """COLUMN=SEPARATOR by column; a separator is itself, or one of the names that a mapping has for some."""
    marks: dict[str, str] = {}
    for text in texts:
        column, _, mark = text.partition("=")
        if not column or not mark:
            raise click.BadParameter(
                f"{text!r} is not COLUMN=SEPARATOR, such as genres=pipe; a separator is a text of its own or one of "
                f"{', '.join(SEPARATORS)}.",
                ctx,
                param,
            )
        if column in marks:
            raise click.BadParameter(f"{column!r} is given twice.", ctx, param)
        marks[column] = SEPARATORS.get(mark, mark)
    return marks


video_list_option: Final = click.option(
    "--video-list", "video_lists", multiple=True, callback=separators, metavar="COLUMN=SEPARATOR",
    help="A column of --videos that holds several texts, such as genres=pipe or tag=comma; more by more --video-list.",
)  # fmt: skip
user_list_option: Final = click.option(
    "--user-list", "user_lists", multiple=True, callback=separators, metavar="COLUMN=SEPARATOR",
    help="A column of --users that holds several texts; more by more --user-list.",
)  # fmt: skip


def attributes_of(file: Path | None, lists: Mapping[str, str], option: str) -> dict[str, Attributes]:
    """The attributes of a file, if one is named; a usage error for lists without the option that names it.

    Raises InputError as `read_attributes` does.
    """
    if file is not None:
        return read_attributes(file, lists=lists)
    if lists:
        raise click.UsageError(f"--{option.removesuffix('s')}-list needs --{option} FILE")
    return {}
