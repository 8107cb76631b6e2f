"""Event logs of a command line, read whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mtgr.datasets import ColumnMapping, SkippedRecords, read_events
from mtgr.datasets.attributes import read_attributes
from mtgr.training.log import EventLog


def read_log(
    files: Sequence[Path],
    columns: ColumnMapping | None = None,
    users: Path | None = None,
    *,
    skip_invalid: bool = False,
) -> EventLog:
    """The log of some files, with the attributes of users from one of their own; what is skipped is told on stderr.

    Raises InputError for what cannot be read.
    """
    attributes = read_attributes(users) if users else {}
    skipped = SkippedRecords()
    log = EventLog.collect(read_events(files, columns, skipped if skip_invalid else None))
    if skipped.count:
        click.echo(str(skipped), err=True)
    for user, known in attributes.items():
        log.profiles.know(user, known)
    return log
