"""Rows of a log as typed columns, checked column by column."""

from __future__ import annotations

from typing import Final

import polars as pl
from xxhash import xxh3_128_hexdigest

from mtgr.datasets.columns import EVENT_TYPES, ColumnMapping
from mtgr.datasets.row_times import RowTime, column_time, order_time, rank_time
from mtgr.datasets.sequence_rows import STEP
from mtgr.datasets.tables import FAULT, PLACE, Table
from mtgr.errors import InputError
from schemas.bounds import MAX_ID_CHARACTERS, MAX_SECONDS, MAX_TIMESTAMP_MS, MAX_WATCH_RATIO

COLUMNS: Final = (
    "place", "time", "type", "user", "video", "event_id", "session", "channel", "seconds", "ratio", "length"
)  # fmt: skip
PROBLEM: Final = "problem"
RATING: Final = "rating"
WATCH, LIKE, FAVORITE, SHARE = range(4)  # places in EVENT_TYPES
_TRUE: Final = ("1", "1.0", "true", "True", "TRUE")
_FALSE: Final = ("0", "0.0", "false", "False", "FALSE", "")
_SHOWN_CHARACTERS: Final = 40
_MAX_CHANNEL_CHARACTERS: Final = 64
_IDENTIFIER: Final = f"text of 1 to {MAX_ID_CHARACTERS} characters"


def checked(table: Table, mapping: ColumnMapping, first_rank: int) -> pl.LazyFrame:
    """COLUMNS, one row for each of the table, and PROBLEM: what is wrong with the row, else null.

    Beside them stand `is_like`, `is_favorite` and `is_share` where the mapping has a column for them, and
    RATING, of which the ratio is still to be made. `first_rank` counts on in a log of several files without
    times. Raises InputError if a column holds lists or structures.
    """
    return _Rows(table, mapping, first_rank).select()


class _Rows:
    def __init__(self, table: Table, mapping: ColumnMapping, first_rank: int) -> None:
        self._table = table
        self._mapping = mapping
        with table.reading():
            self._schema = table.rows.collect_schema()
        for column in mapping.columns().values():
            if self._schema[column].is_nested():
                raise InputError(
                    f"{table.path}: column {column!r} holds {self._schema[column]}, where a row should hold one "
                    f"value; lists of a user's videos are layout=sequences"
                )
        self._problems = [pl.col(FAULT)]
        if STEP in self._schema:
            self._rank = pl.col(STEP) + first_rank
        else:
            self._rank = pl.int_range(pl.len(), dtype=pl.Int64) + first_rank

    def select(self) -> pl.LazyFrame:
        mapping = self._mapping
        self._check_texts()
        time = self._time()
        kind = self._type()
        seconds, ratio, length = self._lengths(kind.fill_null(LIKE) != WATCH)
        flags = self._flags()
        rating = [] if mapping.rating is None else [self._number(mapping.rating).alias(RATING)]
        return self._table.rows.select(
            pl.col(PLACE).alias("place"),
            time.alias("time"),
            kind.alias("type"),
            self._text(mapping.user).alias("user"),
            self._text(mapping.video).alias("video"),
            self._event_id().alias("event_id"),
            self._text(mapping.session).replace("", None).alias("session"),
            self._text(mapping.channel).replace("", None).alias("channel"),
            seconds.alias("seconds"),
            ratio.alias("ratio"),
            length.alias("length"),
            *flags,
            *rating,
            pl.coalesce(self._problems).alias(PROBLEM),
        )

    def _demand(self, column: str, holds: pl.Expr, right: str) -> None:
        shown = self._text(column).fill_null("").str.slice(0, _SHOWN_CHARACTERS)
        label = f"column {column}" if self._mapping.numbered else column
        message = pl.format("{} is '{}', where it should be {}", pl.lit(label), shown, pl.lit(right))
        self._problems.append(pl.when(~holds.fill_null(value=False)).then(message))

    def _text(self, column: str | None) -> pl.Expr:
        """Texts as they are; numbers as a text file would have them, without the .0 of a whole one."""
        if column is None:
            return pl.lit(None, pl.String)
        value = pl.col(column)
        dtype = self._schema[column]
        if dtype == pl.String:
            return value
        text = value.cast(pl.String, strict=False)
        if dtype.is_float():
            whole = value.is_finite() & (value == value.floor()) & (value.abs() < 2**53)
            return pl.when(whole).then(value.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)
        return text

    def _number(self, column: str) -> pl.Expr:
        if self._schema[column].is_temporal():
            return pl.lit(None, pl.Float64)
        value = pl.col(column).cast(pl.Float64, strict=False)
        return pl.when(value.is_finite()).then(value)

    def _check_texts(self) -> None:
        mapping = self._mapping
        for column in (mapping.user, mapping.video, mapping.event_id):
            if column is not None:
                characters = self._text(column).str.len_chars()
                self._demand(column, characters.is_between(1, MAX_ID_CHARACTERS), _IDENTIFIER)
        for column, most in (
            (mapping.session, MAX_ID_CHARACTERS),
            (mapping.channel, _MAX_CHANNEL_CHARACTERS),
        ):
            if column is not None:
                characters = self._text(column).fill_null("").str.len_chars()
                self._demand(column, characters <= most, f"at most {most} characters")

    def _time(self) -> pl.Expr:
        mapping = self._mapping
        if mapping.timeless:
            return rank_time(self._rank)
        if mapping.time is not None:
            dtype = self._schema[mapping.time]
            time = column_time(self._table, mapping.time, mapping.time_unit, dtype)
        else:
            time = order_time(mapping)
        self._demand_time(mapping.time or mapping.order or "", time)
        return time.milliseconds

    def _demand_time(self, column: str, time: RowTime) -> None:
        self._demand(column, time.milliseconds.is_between(0, MAX_TIMESTAMP_MS), time.right)

    def _type(self) -> pl.Expr:
        mapping = self._mapping
        if mapping.type is None:
            return pl.lit(EVENT_TYPES.index(mapping.rows_are), pl.UInt8)
        codes = {name: code for code, name in enumerate(EVENT_TYPES)}
        codes |= {value: codes[name] for value, name in mapping.types.items()}
        kind = self._text(mapping.type).replace_strict(codes, default=None, return_dtype=pl.UInt8)
        self._demand(
            mapping.type, kind.is_not_null(), f"one of {', '.join(codes)}; type:VALUE=TYPE names another"
        )
        return kind

    def _lengths(self, not_watch: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
        """Watched seconds, watch ratio and the video's seconds, which is null where it is unknown."""
        mapping = self._mapping
        length = pl.lit(None, pl.Float64)
        ratio = pl.lit(0.0 if self._tells_a_length() else 1.0)
        seconds = pl.lit(0.0)
        length_column = mapping.video_seconds or mapping.video_ms
        if length_column is not None:
            length = self._number(length_column) / (1000 if mapping.video_ms else 1)
            absent = self._text(length_column).fill_null("") == ""
            right = _seconds(mapping.video_ms)
            self._demand(length_column, not_watch | absent | length.is_between(0, MAX_SECONDS), right)
            length = pl.when(length > 0).then(length)
        if mapping.watch_ratio is not None:
            ratio = self._number(mapping.watch_ratio)
            right = f"from 0 to {MAX_WATCH_RATIO:g}"
            self._demand(mapping.watch_ratio, not_watch | ratio.is_between(0, MAX_WATCH_RATIO), right)
        if mapping.rating is not None:
            most = mapping.rating_max
            right = "a rating of 0 or more" if most is None else f"a rating from 0 to {most:g}"
            rating = self._number(mapping.rating)
            self._demand(mapping.rating, not_watch | rating.is_between(0, most or float("inf")), right)
        watch_column = mapping.watch_seconds or mapping.watch_ms
        if watch_column is not None:
            seconds = self._number(watch_column) / (1000 if mapping.watch_ms else 1)
            right = _seconds(mapping.watch_ms)
            self._demand(watch_column, not_watch | seconds.is_between(0, MAX_SECONDS), right)
            if mapping.watch_ratio is None:
                known = (seconds / length).clip(upper_bound=MAX_WATCH_RATIO).round(6)
                ratio = pl.when(length > 0).then(known).fill_null(0.0)
        elif mapping.watch_ratio is not None and length_column is not None:
            seconds = (ratio * length).round(3).fill_null(0.0)
            right = f"a length that makes a watch of at most {MAX_SECONDS:g} seconds"
            self._demand(length_column, not_watch | (seconds <= MAX_SECONDS), right)
        return seconds, ratio, length

    def _tells_a_length(self) -> bool:
        mapping = self._mapping
        return any((mapping.watch_seconds, mapping.watch_ms, mapping.watch_ratio, mapping.rating))

    def _flags(self) -> list[pl.Expr]:
        flags = []
        for name in ("like", "favorite", "share"):
            column = getattr(self._mapping, name)
            if column is not None:
                value = self._text(column).fill_null("")
                self._demand(column, value.is_in([*_TRUE, *_FALSE]), "0 or 1")
                flags.append(value.is_in(_TRUE).alias(f"is_{name}"))
        return flags

    def _event_id(self) -> pl.Expr:
        if self._mapping.event_id is not None:
            return self._text(self._mapping.event_id)
        table = self._table
        if table.raw is not None:
            parts = [pl.col(table.raw)]
        else:
            parts = [self._any_text(name).fill_null("") for name in table.names]
        if self._mapping.timeless or STEP in self._schema:
            parts.append(self._rank.cast(pl.String))
        return pl.concat_str(parts, separator="\x1f").map_batches(_digests, return_dtype=pl.String)

    def _any_text(self, column: str) -> pl.Expr:
        dtype = self._schema[column]
        if dtype == pl.Binary:
            return pl.col(column).bin.encode("hex")
        return pl.struct(column).struct.json_encode() if dtype.is_nested() else self._text(column)


def _seconds(milliseconds: str | None) -> str:
    return (
        f"from 0 to {MAX_SECONDS * 1000:.0f} ms" if milliseconds else f"from 0 to {MAX_SECONDS:.0f} seconds"
    )


def _digests(rows: pl.Series) -> pl.Series:
    return pl.Series([xxh3_128_hexdigest(row.encode()) for row in rows.to_list()], dtype=pl.String)
