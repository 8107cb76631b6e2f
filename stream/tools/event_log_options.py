"""Options of every command that reads event logs, in the same words."""

from __future__ import annotations

from typing import Final

import click

mapping_option: Final = click.option(
    "--mapping",
    multiple=True,
    metavar="FIELD=COLUMN,...",
    help="Columns of a table, such as user=userId,video=movieId,time=timestamp,rating=rating.",
)
skip_invalid_option: Final = click.option(
    "--skip-invalid", is_flag=True, help="Pass over what is no event, and count it."
)
