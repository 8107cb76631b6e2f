"""Events from CSV logs: checked and sorted column-wise by a column mapping, then made slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import polars as pl
from xxhash import xxh3_128_hexdigest

from mtgr.datasets.columns import EVENT_TYPES, ColumnMapping, recognise
from mtgr.datasets.wire_log import read_lines
from mtgr.errors import InputError
from schemas.bounds import MAX_ID_CHARACTERS, MAX_SECONDS, MAX_TIMESTAMP_MS, MAX_WATCH_RATIO
from schemas.events import Event, Favorite, Like, Share, Watch

_SLICE_ROWS: Final = 65_536
_LINE: Final = "\x1fline"  # no log has a column of this name, which an empty one is not safe from
_WATCH, _LIKE, _FAVORITE, _SHARE = range(4)  # places in EVENT_TYPES
_SECONDS_BELOW: Final = 1e11  # as seconds the year 5138, as milliseconds 1973
_TRUE: Final = ("1", "1.0", "true", "True", "TRUE")
_FALSE: Final = ("0", "0.0", "false", "False", "FALSE", "")
_TYPED: Final = (
    "line", "time", "type", "user", "video", "event_id", "session", "channel", "seconds", "ratio", "length"
)  # fmt: skip


def read_csv(
    path: Path, mapping: ColumnMapping | None, on_invalid: Callable[[InputError], None] | None
) -> Iterator[Event]:
    """Events of one CSV or TSV file (gzip or not), in time order; rows of one time stay in the file's order.

    The file is held as typed columns, about 100 bytes a row, because a log need not be sorted by time.
    Without a mapping the header must be one that `recognise` knows. A row that is no event goes to
    `on_invalid` as the error that names it, or is raised. Raises InputError for a file that is not CSV and
    for a header that lacks a column.
    """
    try:
        rows = pl.scan_csv(
            path, separator=_separator(path), infer_schema=False, row_index_name=_LINE, row_index_offset=2
        )
        header = rows.collect_schema().names()[1:]
        mapping = mapping or recognise(header, str(path))
        mapping.check_header(header, str(path))
        table = _typed(rows, header, mapping, path).collect()
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a readable CSV file: {reason}") from None
    valid = table["problem"].is_null()
    if not valid.all():
        for line, problem in table.filter(~valid).select("line", "problem").iter_rows():
            wrong = InputError(f"{path}: line {line}: {problem}")
            if on_invalid is None:
                raise wrong
            on_invalid(wrong)
        table = table.filter(valid)
    return _events(_expanded(table, mapping))


def _separator(path: Path) -> str:
    """A tab where the header has one and no comma."""
    header = next(read_lines(path), b"")
    return "\t" if b"\t" in header and b"," not in header else ","


def _typed(rows: pl.LazyFrame, header: list[str], mapping: ColumnMapping, path: Path) -> pl.LazyFrame:
    """The columns of _TYPED, one row for each of the log, and `problem`: what is wrong with the row, else
    null.
    """

    def text(column: str | None) -> pl.Expr:
        return pl.lit(None, pl.String) if column is None else pl.col(column)

    def number(column: str) -> pl.Expr:
        value = pl.col(column).cast(pl.Float64, strict=False)
        return pl.when(value.is_finite()).then(value)

    problems: list[pl.Expr] = []

    def demand(column: str, holds: pl.Expr, right: str) -> None:
        shown = pl.col(column).fill_null("").str.slice(0, 40)
        message = pl.format("{} is '{}', where it should be {}", pl.lit(column), shown, pl.lit(right))
        problems.append(pl.when(~holds.fill_null(value=False)).then(message))

    identifier = f"text of 1 to {MAX_ID_CHARACTERS} characters"
    for column in (mapping.user, mapping.video, mapping.event_id):
        if column is not None:
            demand(column, pl.col(column).str.len_chars().is_between(1, MAX_ID_CHARACTERS), identifier)
    for column, most in ((mapping.session, MAX_ID_CHARACTERS), (mapping.channel, 64)):
        if column is not None:
            demand(column, pl.col(column).fill_null("").str.len_chars() <= most, f"at most {most} characters")

    time, right = _time(rows, mapping)
    demand(mapping.time, time.is_between(0, MAX_TIMESTAMP_MS), right)

    kind = pl.lit(EVENT_TYPES.index(mapping.rows_are), pl.UInt8)
    if mapping.type is not None:
        codes = {name: code for code, name in enumerate(EVENT_TYPES)}
        codes |= {value: codes[name] for value, name in mapping.types.items()}
        kind = pl.col(mapping.type).replace_strict(codes, default=None, return_dtype=pl.UInt8)
        demand(mapping.type, kind.is_not_null(), f"one of {', '.join(codes)}")
    not_watch = kind.fill_null(_LIKE) != _WATCH

    seconds = length = ratio = pl.lit(None, pl.Float64)
    length_column = mapping.video_seconds or mapping.video_ms
    if length_column is not None:
        length = number(length_column) / (1000 if mapping.video_ms else 1)
        absent = pl.col(length_column).fill_null("") == ""
        demand(
            length_column, not_watch | absent | length.is_between(0, MAX_SECONDS), _seconds(mapping.video_ms)
        )
        length = pl.when(length > 0).then(length)
    if mapping.watch_ratio is not None:
        ratio = number(mapping.watch_ratio)
        demand(
            mapping.watch_ratio,
            not_watch | ratio.is_between(0, MAX_WATCH_RATIO),
            f"from 0 to {MAX_WATCH_RATIO:g}",
        )
    watch_column = mapping.watch_seconds or mapping.watch_ms
    if watch_column is not None:
        seconds = number(watch_column) / (1000 if mapping.watch_ms else 1)
        demand(watch_column, not_watch | seconds.is_between(0, MAX_SECONDS), _seconds(mapping.watch_ms))
    elif mapping.watch_ratio is not None and length_column is not None:
        seconds = (ratio * length).round(3)
        right = f"a length that makes a watch of at most {MAX_SECONDS:g} seconds"
        demand(length_column, not_watch | (seconds <= MAX_SECONDS), right)
    elif mapping.type is not None:
        demand(mapping.type, not_watch, "no watch, as the mapping names no column for the watched time")
    if mapping.watch_ratio is None:
        ratio = pl.when(length > 0).then((seconds / length).clip(upper_bound=MAX_WATCH_RATIO).round(6))
        ratio = ratio.fill_null(0.0)

    for column in (mapping.like, mapping.favorite, mapping.share):
        if column is not None:
            demand(column, pl.col(column).fill_null("").is_in([*_TRUE, *_FALSE]), "0 or 1")

    if mapping.event_id is not None:
        event_id = pl.col(mapping.event_id)
    else:
        row = pl.concat_str([pl.col(name).fill_null("") for name in header], separator="\x1f")
        event_id = row.map_batches(_digests, return_dtype=pl.String)
    flags = [
        pl.col(column).is_in(_TRUE).fill_null(value=False).alias(f"is_{name}")
        for name in ("like", "favorite", "share")
        if (column := getattr(mapping, name)) is not None
    ]
    return rows.select(
        pl.col(_LINE).alias("line"),
        time.alias("time"),
        kind.alias("type"),
        text(mapping.user).alias("user"),
        text(mapping.video).alias("video"),
        event_id.alias("event_id"),
        text(mapping.session).replace("", None).alias("session"),
        text(mapping.channel).replace("", None).alias("channel"),
        seconds.alias("seconds"),
        ratio.alias("ratio"),
        length.alias("length"),
        *flags,
        pl.coalesce(problems).alias("problem"),
    )


def _seconds(milliseconds: str | None) -> str:
    return (
        f"from 0 to {MAX_SECONDS * 1000:.0f} ms" if milliseconds else f"from 0 to {MAX_SECONDS:.0f} seconds"
    )


def _digests(rows: pl.Series) -> pl.Series:
    return pl.Series([xxh3_128_hexdigest(row.encode()) for row in rows.to_list()], dtype=pl.String)


def _time(rows: pl.LazyFrame, mapping: ColumnMapping) -> tuple[pl.Expr, str]:
    """Milliseconds since 1970, null where the column holds no time, and what a right value looks like."""
    column = pl.col(mapping.time)
    number = column.cast(pl.Float64, strict=False)
    unit = mapping.time_unit
    if unit == "auto":
        first = rows.select(column.drop_nulls().first()).collect().item()
        try:
            unit = "s" if first is None or float(first) < _SECONDS_BELOW else "ms"
        except ValueError:
            unit = "iso"
    if unit == "ms":
        return number.cast(pl.Int64, strict=False), "milliseconds since 1970, up to the year 2100"
    if unit == "s":
        return (number * 1000).round().cast(pl.Int64, strict=False), "seconds since 1970, up to the year 2100"
    return column.map_batches(_iso_ms, return_dtype=pl.Int64), "an ISO 8601 time from 1970 to 2100"


def _iso_ms(times: pl.Series) -> pl.Series:
    def milliseconds(text: str | None) -> int | None:
        try:
            time = datetime.fromisoformat(text or "")
        except ValueError:
            return None
        if time.tzinfo is None:
            time = time.replace(tzinfo=UTC)
        return round(time.timestamp() * 1000)

    return pl.Series([milliseconds(text) for text in times.to_list()], dtype=pl.Int64)


def _expanded(table: pl.DataFrame, mapping: ColumnMapping) -> pl.DataFrame:
    """Add the events that the flag columns tell of, 1 ms apart after their row's own, and sort by time."""
    parts = [table.select(_TYPED)]
    flagged = [
        (name, code)
        for name, code in (("like", _LIKE), ("favorite", _FAVORITE), ("share", _SHARE))
        if getattr(mapping, name) is not None
    ]
    for moment, (name, code) in enumerate(flagged, start=1):
        # a later moment than the last that the wire allows is none
        time = (pl.col("time") + moment).clip(upper_bound=MAX_TIMESTAMP_MS)
        event_id = (pl.col("event_id") + f"-{name}").str.tail(MAX_ID_CHARACTERS)
        extra = table.filter(pl.col(f"is_{name}")).select(_TYPED)
        parts.append(extra.with_columns(time=time, type=pl.lit(code, pl.UInt8), event_id=event_id))
    return pl.concat(parts).sort("time", "line", maintain_order=True)


def _events(table: pl.DataFrame) -> Iterator[Event]:
    for rows in table.drop("line").iter_slices(_SLICE_ROWS):
        columns = (rows[name].to_list() for name in rows.columns)
        for time, kind, user, video, event_id, session, channel, seconds, ratio, length in zip(
            *columns, strict=True
        ):
            if kind == _WATCH:
                yield Watch(
                    event_id=event_id,
                    user_id=user,
                    video_id=video,
                    timestamp_ms=time,
                    watch_seconds=seconds,
                    watch_ratio=ratio,
                    video_seconds=length,
                    session_id=session,
                )
            elif kind == _SHARE:
                yield Share(
                    event_id=event_id,
                    user_id=user,
                    video_id=video,
                    timestamp_ms=time,
                    channel=channel,
                    session_id=session,
                )
            else:
                make = Like if kind == _LIKE else Favorite
                yield make(
                    event_id=event_id, user_id=user, video_id=video, timestamp_ms=time, session_id=session
                )
