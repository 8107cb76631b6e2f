"""When the rows of a log happened: times in any common form, or ranks told as times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

import polars as pl

from mtgr.datasets.columns import ColumnMapping, TimeUnit
from mtgr.datasets.tables import Table
from schemas.bounds import MAX_TIMESTAMP_MS

SYNTHETIC_START_MS: Final = 946_684_800_000
"""2000-01-01 00:00 UTC: where the events of a log without times begin."""
SYNTHETIC_STEP_MS: Final = 1_000
"""From a rank to the next: rows fit for a hundred years, and what the flags of a row tell falls between two."""
MAX_RANK: Final = (MAX_TIMESTAMP_MS - SYNTHETIC_START_MS) // SYNTHETIC_STEP_MS

_SAMPLED_ROWS: Final = 1_000
# as seconds the year 5138 and as milliseconds 1973; the same with milliseconds and microseconds, and so on
_BELOW: Final[tuple[tuple[float, TimeUnit], ...]] = ((1e11, "s"), (1e14, "ms"), (1e17, "us"))
_PER_MILLISECOND: Final[dict[str, float]] = {"s": 1e-3, "ms": 1, "us": 1e3, "ns": 1e6}
_NOUNS: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class RowTime(NamedTuple):
    """Milliseconds since 1970, null where a row holds no time, and what a right value looks like."""

    milliseconds: pl.Expr
    right: str


def column_time(table: Table, column: str, unit: TimeUnit, dtype: pl.DataType) -> RowTime:
    """The times of a column, which is a text, a number or a time proper."""
    value = pl.col(column)
    if isinstance(dtype, pl.Datetime | pl.Date):
        # a time without a zone is UTC
        return RowTime(
            value.cast(pl.Datetime("ms", getattr(dtype, "time_zone", None))).dt.epoch("ms"), "a time"
        )
    if unit == "auto":
        unit = _unit(table, column)
    if unit == "iso":
        text = value.cast(pl.String, strict=False)
        right = "an ISO 8601 time from 1970 to 2100"
        return RowTime(text.map_batches(_iso_ms, return_dtype=pl.Int64), right)
    number = value.cast(pl.Float64, strict=False) / _PER_MILLISECOND[unit]
    number = number.round() if unit == "s" else number.floor()
    return RowTime(number.cast(pl.Int64, strict=False), f"{_NOUNS[unit]} since 1970, up to the year 2100")


def rank_time(rank: pl.Expr) -> pl.Expr:
    """The time that stands for a rank, in milliseconds since 1970."""
    return rank.cast(pl.Int64, strict=False) * SYNTHETIC_STEP_MS + SYNTHETIC_START_MS


def rank_after(timestamp_ms: int) -> int:
    """The first rank whose time is later than this one, which is a rank's time or soon after it."""
    return (timestamp_ms - SYNTHETIC_START_MS) // SYNTHETIC_STEP_MS + 1


def order_time(mapping: ColumnMapping) -> RowTime:
    """The times that stand for the ranks in the mapping's column `order`."""
    rank = pl.col(mapping.order or "").cast(pl.Float64, strict=False)
    whole = rank.is_between(0, MAX_RANK) & (rank == rank.floor())
    return RowTime(rank_time(pl.when(whole).then(rank)), f"a whole number from 0 to {MAX_RANK}")


def _unit(table: Table, column: str) -> TimeUnit:
    with table.reading():
        sample = table.rows.select(pl.col(column)).head(_SAMPLED_ROWS).collect().to_series().drop_nulls()
    numbers = sample.cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers) <= len(sample) // 2 and len(sample):
        return "iso"
    middle = numbers.abs().median()
    size = float(middle) if isinstance(middle, int | float) else 0.0
    return next((unit for below, unit in _BELOW if size < below), "ns")


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
