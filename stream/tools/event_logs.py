"""Event logs of a command line, read whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mtgr.datasets import ColumnMapping, SkippedRecords, read_events
from mtgr.training.log import EventLog
from schemas.attributes import Attributes


def read_log(
    files: Sequence[Path],
    columns: ColumnMapping | None = None,
    attributes: Mapping[str, Attributes] | None = None,
    *,
    skip_invalid: bool = False,
) -> EventLog:
    """The log of some files, with attributes of users from elsewhere; what is skipped is told on stderr.

    Raises InputError for what cannot be read.
    """
    skipped = SkippedRecords()
    log = EventLog.collect(read_events(files, columns, skipped if skip_invalid else None))
    if skipped.count:
        click.echo(str(skipped), err=True)
    for user, known in (attributes or {}).items():
        log.profiles.know(user, known)
    return log
