"""Rows that hold all videos of a user, taken apart into one row for each video."""

from __future__ import annotations

from typing import Final

import polars as pl

from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.tables import FAULT, Table
from mtgr.errors import InputError

STEP: Final = "\x1fstep"
"""Which of the user's videos a row is, from 0; over all rows of the user, in their order."""

# "4 8 15", "4,8,15", "[4, 8, 15]" and "['4', '8', '15']" are the same three
_ITEM: Final = r"""[^\s,\[\]"']+"""


def taken_apart(table: Table, mapping: ColumnMapping) -> Table:
    """One row for each video of the rows of a table, the user's and the session's id in each of them.

    Where the mapping names no columns the table is one of whole lines: the user, then the videos. A row that
    holds no video, or lists of different lengths, is a fault and stays one row. Raises InputError if the
    column of videos holds no lists.
    """
    if mapping.numbered:
        words = _texts(pl.col("1").str.strip_chars(), mapping.separator)
        rows = table.rows.with_columns(
            words.list.first().alias(mapping.user), words.list.slice(1).alias(mapping.video)
        )
        lists, nothing = [mapping.video], "holds a user and no video"
    else:
        lists, rows = _list_columns(table, mapping)
        nothing = f"{mapping.video} holds no video"
    lengths = {column: pl.col(column).list.len().fill_null(0) for column in lists}
    videos = lengths[mapping.video]
    faults = [pl.col(FAULT), pl.when(videos == 0).then(pl.lit(nothing))]
    for column, length in lengths.items():
        told = pl.format(
            f"{_escaped(column)} holds {{}} values, where {_escaped(mapping.video)} holds {{}}",
            length,
            videos,
        )
        faults.append(pl.when(length != videos).then(told))
    rows = rows.with_columns(pl.coalesce(faults).alias(FAULT))
    rows = rows.with_columns(
        pl.when(pl.col(FAULT).is_null()).then(pl.col(column)) for column in lists
    ).explode(lists)
    step = pl.int_range(pl.len(), dtype=pl.Int64).over(mapping.user).alias(STEP)
    return table._replace(rows=rows.with_columns(step), names=tuple(mapping.columns().values()))


def _list_columns(table: Table, mapping: ColumnMapping) -> tuple[list[str], pl.LazyFrame]:
    with table.reading():
        schema = table.rows.collect_schema()
    lists, parsed = [], []
    for name, column in mapping.columns().items():
        if name in ("user", "session") or column in lists:
            continue
        match schema[column]:
            case pl.List():
                pass
            case pl.Array():
                parsed.append(pl.col(column).arr.to_list())
            case pl.String():
                parsed.append(_texts(pl.col(column)).alias(column))
            case other:
                if name == "video":
                    raise InputError(
                        f"{table.path}: column {column!r} holds {other}, where layout=sequences needs lists of "
                        f"videos; a log with one video a row has layout=rows"
                    )
                continue
        lists.append(column)
    return lists, table.rows.with_columns(parsed)


def _texts(text: pl.Expr, separator: str | None = None) -> pl.Expr:
    if separator is None:
        return text.str.extract_all(_ITEM)
    return text.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))


def _escaped(column: str) -> str:
    return column.replace("{", "{{").replace("}", "}}")
