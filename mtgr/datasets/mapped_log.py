"""Events from logs of rows and columns: checked and sorted by columns, then made slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from mtgr.datasets.checked_rows import COLUMNS, FAVORITE, LIKE, PROBLEM, RATING, SHARE, checked
from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.event_table import make_events
from mtgr.datasets.known_logs import recognise
from mtgr.datasets.sequence_rows import taken_apart
from mtgr.datasets.tables import Table, is_parquet, open_json_lines, open_lines, open_parquet, open_text
from mtgr.errors import InputError
from schemas.bounds import MAX_ID_CHARACTERS, MAX_TIMESTAMP_MS
from schemas.events import Event


def read_mapped(
    path: Path,
    mapping: ColumnMapping | None,
    on_invalid: Callable[[InputError], None] | None,
    *,
    json_lines: bool = False,
    first_rank: int = 0,
) -> Iterator[Event]:
    """Events of one file of rows and columns in time order; rows of one time stay in the file's order.

    The file is Parquet, text with a separator, or JSON lines of objects of any shape. It is held as typed
    columns, about 100 bytes a row, because a log need not be sorted by time. Without a mapping the columns
    must be such as `recognise` knows. `first_rank` is the rank of the first row in a log without times. A row
    that is no event goes to `on_invalid` as the error that names it, or is raised. Raises InputError for a
    file that cannot be read, has no rows, or lacks a column.
    """
    table, mapping = _opened(path, mapping, json_lines)
    if mapping.layout == "sequences":
        table = taken_apart(table, mapping)
    rows = checked(table, mapping, first_rank)
    with table.reading():
        found = rows.collect()
    if not found.height:
        raise InputError(f"{path}: holds no rows, only the names of columns")
    valid = found[PROBLEM].is_null()
    if not valid.all():
        for place, problem in found.filter(~valid).select("place", PROBLEM).iter_rows():
            wrong = InputError(f"{path}: {table.unit} {place}: {problem}")
            if on_invalid is None:
                raise wrong
            on_invalid(wrong)
        found = found.filter(valid)
    return make_events(_expanded(_rated(found, mapping, path), mapping))


def highest_rating(path: Path, mapping: ColumnMapping, *, json_lines: bool = False) -> float:
    """The highest valid rating of a log, 0 where it has none. Raises InputError as `read_mapped` does."""
    table, mapping = _opened(path, mapping, json_lines)
    if mapping.layout == "sequences":
        table = taken_apart(table, mapping)
    with table.reading():
        rows = checked(table, mapping, 0).filter(pl.col(PROBLEM).is_null())
        highest = rows.select(pl.col(RATING).max()).collect().item()
    return float(highest or 0)


def _opened(path: Path, mapping: ColumnMapping | None, json_lines: bool) -> tuple[Table, ColumnMapping]:
    wanted = [] if mapping is None else list(mapping.columns().values())
    if is_parquet(path):
        table = open_parquet(path)
    elif json_lines:
        table = open_json_lines(path, wanted)
    elif mapping is not None and mapping.layout == "sequences" and mapping.numbered:
        return open_lines(path), mapping
    elif mapping is not None:
        table = open_text(path, wanted=wanted, numbered=mapping.numbered, separator=mapping.separator)
    else:
        table = open_text(path)
    mapping = mapping or recognise(table.names, str(path))
    mapping.check_header(table.names, str(path))
    return table, mapping


def _rated(table: pl.DataFrame, mapping: ColumnMapping, path: Path) -> pl.DataFrame:
    """Make watch ratios of ratings."""
    if mapping.rating is None or not table.height:
        return table
    most = mapping.rating_max
    if most is None:
        highest = table[RATING].max()
        most = float(highest) if isinstance(highest, int | float) else 0.0
    if most <= 0:
        raise InputError(
            f"{path}: no {mapping.rating} is above 0, where a rating should be; say rating_max=N"
        )
    return table.with_columns(ratio=(pl.col(RATING) / most).round(6))


def _expanded(table: pl.DataFrame, mapping: ColumnMapping) -> pl.DataFrame:
    """Add the events that the flag columns tell of, 1 ms apart after their row's own, and sort by time."""
    parts = [table.select(COLUMNS)]
    flagged = [
        (name, code)
        for name, code in (("like", LIKE), ("favorite", FAVORITE), ("share", SHARE))
        if getattr(mapping, name) is not None
    ]
    for moment, (name, code) in enumerate(flagged, start=1):
        # a later moment than the last that the wire allows is none
        time = (pl.col("time") + moment).clip(upper_bound=MAX_TIMESTAMP_MS)
        event_id = (pl.col("event_id") + f"-{name}").str.tail(MAX_ID_CHARACTERS)
        extra = table.filter(pl.col(f"is_{name}")).select(COLUMNS)
        parts.append(extra.with_columns(time=time, type=pl.lit(code, pl.UInt8), event_id=event_id))
    return pl.concat(parts).sort("time", "place", maintain_order=True)
