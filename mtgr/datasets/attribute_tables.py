"""Attributes out of tables, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import polars as pl

from mtgr.datasets.attribute_rules import (
    MAX_EXACT,
    choose_columns,
    no_id,
    told_twice,
    too_long,
    too_many,
)
from mtgr.datasets.tables import FAULT, PLACE, Table, is_parquet, open_parquet, open_text
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, Attributes
from schemas.bounds import MAX_ID_CHARACTERS

_LEADING_ZERO = r"^\s*[+-]?0\d"


def read_table(
    path: Path, id_column: str | None, columns: Sequence[str] | None, lists: Mapping[str, str]
) -> dict[str, Attributes]:
    """Attributes by id of a table of text or Parquet; see `mtgr.datasets.attributes.read_attributes`."""
    if is_parquet(path):
        table = open_parquet(path)
    else:
        wanted = [*([] if id_column is None else [id_column]), *(columns or ()), *lists]
        numbered = bool(wanted) and all(column.isdecimal() for column in wanted)
        table = open_text(path, wanted=wanted, numbered=numbered)
    id_column, chosen = choose_columns(table.names, id_column, columns, path)
    for column in lists:
        if column not in chosen:
            raise InputError(
                f"{path}: there is no attribute {column!r} to be read as a list{did_you_mean(column, chosen)}"
            )
    with table.reading():
        rows = table.rows.select(PLACE, FAULT, id_column, *chosen).collect()
        rows = rows.with_columns(
            pl.col(column).str.split(mark).list.eval(pl.element().str.strip_chars())
            for column, mark in lists.items()
            if rows.schema[column] == pl.String
        )
    if not rows.height:
        raise InputError(f"{path}: holds no rows, only the names of columns")
    faulty = rows.filter(pl.col(FAULT).is_not_null())
    if faulty.height:
        raise InputError(f"{path}: {table.unit} {faulty[PLACE][0]}: {faulty[FAULT][0]}")
    places = [f"{table.unit} {place}" for place in rows[PLACE].to_list()]
    ids = _ids(rows[id_column], places, table)
    values = [_values(rows[column], places, table) for column in chosen]
    found: dict[str, Attributes] = {}
    each: Iterable[tuple[Any, ...]] = zip(*values, strict=True) if values else repeat((), len(ids))
    for place, identifier, row in zip(places, ids, each, strict=True):
        attributes: Attributes = {
            name: value for name, value in zip(chosen, row, strict=True) if value is not None
        }
        if found.setdefault(identifier, attributes) != attributes:
            raise told_twice(path, place, id_column, identifier)
    return found


def _ids(column: pl.Series, places: Sequence[str], table: Table) -> list[str]:
    if column.dtype.is_nested():
        raise InputError(
            f"{table.path}: column {column.name!r} holds {column.dtype}, where an id is one value"
        )
    ids: list[str] = _texts(column).to_list()
    for place, identifier in zip(places, ids, strict=True):
        if identifier is None or not 1 <= len(identifier) <= MAX_ID_CHARACTERS:
            raise no_id(table.path, place, column.name, identifier or "")
    return ids


def _values(
    column: pl.Series, places: Sequence[str], table: Table
) -> Sequence[str | float | list[str] | None]:
    """The values of a column as attributes, None where they say nothing."""
    match column.dtype:
        case pl.Array():
            return _values(column.arr.to_list(), places, table)
        case pl.List() if not column.explode().dtype.is_nested():
            return _lists(column, places, table)
        case pl.String():
            numbers = column.cast(pl.Float64, strict=False)
            if _is_numeric(column, numbers):
                return _finite(numbers)
        case dtype if dtype.is_integer():
            numbers = column.cast(pl.Float64)
            if not (numbers.abs() > MAX_EXACT).any():
                return _finite(numbers)
        case dtype if dtype.is_numeric():
            return _finite(column.cast(pl.Float64))
        case dtype if dtype.is_nested() or dtype == pl.Binary or dtype == pl.Object:
            raise InputError(
                f"{table.path}: column {column.name!r} holds {dtype}, where it should hold texts, numbers or "
                f"lists of texts"
            )
    texts = _texts(column)
    for row in (texts.str.len_chars() > MAX_ATTRIBUTE_CHARACTERS).fill_null(value=False).arg_true()[:1]:
        raise too_long(table.path, places[row], column.name, len(texts[row]))
    return [text or None for text in texts.to_list()]


def _is_numeric(column: pl.Series, numbers: pl.Series) -> bool:
    """Whether texts are numbers, all of them, that lose nothing by becoming numbers."""
    absent = (column == "").fill_null(value=True)
    if (numbers.is_null() & ~absent).any() or absent.all():
        return False
    return not (column.str.contains(_LEADING_ZERO).any() or (numbers.abs() > MAX_EXACT).any())


def _finite(numbers: pl.Series) -> list[float | None]:
    return numbers.set(~numbers.is_finite(), None).to_list()


def _texts(column: pl.Series) -> pl.Series:
    """Texts as they are; numbers without the .0 of whole ones, times as ISO 8601."""
    return (column.cast(pl.Int64) if _is_whole(column) else column).cast(pl.String)


def _is_whole(column: pl.Series) -> bool:
    if not column.dtype.is_float():
        return False
    whole = (column == column.floor()) & (column.abs() <= MAX_EXACT)
    return bool((whole | column.is_null()).all())


def _lists(column: pl.Series, places: Sequence[str], table: Table) -> list[list[str] | None]:
    if _is_whole(column.explode()):
        column = column.cast(pl.List(pl.Int64))
    kept: list[list[str] | None] = []
    for place, texts in zip(places, column.cast(pl.List(pl.String)).to_list(), strict=True):
        values = [text for text in texts or () if text]
        if len(values) > MAX_ATTRIBUTE_VALUES:
            raise too_many(table.path, place, column.name, len(values))
        for value in values:
            if len(value) > MAX_ATTRIBUTE_CHARACTERS:
                raise too_long(table.path, place, column.name, len(value))
        kept.append(values or None)
    return kept
