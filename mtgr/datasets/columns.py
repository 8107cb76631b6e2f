"""Which column of a log means what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from msgspec import Struct, field
from msgspec.structs import fields

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

EventType = Literal["watch", "like", "favorite", "share"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]
Layout = Literal["rows", "sequences"]
Header = Literal["auto", "yes", "no"]
EVENT_TYPES: Final = get_args(EventType)


class ColumnMapping(Struct, frozen=True, kw_only=True):
    """The columns of a log that is not in the wire format; a field left None is not in the log.

    A row is one event: of the type that its `type` column names (through `types`, where the log has words of
    its own), or of the type `rows_are` where there is no such column. Where a column of `like`, `favorite` or
    `share` holds 1 or true, the row is that event too, a millisecond or more after its first one.

    A watch takes its length from `watch_seconds` or `watch_ms`, or from its ratio and the video's length, and
    is 0 seconds long where the log tells neither. It takes its ratio from `watch_ratio`, from `rating` over
    the highest rating, or from the two lengths; it is 0 where the video's length is unknown or 0, and 1 where
    the log tells nothing of how much was watched: an interaction is then a whole watch.

    The order comes from `time`; or from `order`, a whole number; or from the order of the rows in the file.
    In a log without times rank r is told as SYNTHETIC_START_MS + r seconds.
    """

    user: str
    """A column's name; or its number from 1, where the file has no header line."""
    video: str
    time: str | None = None
    time_unit: TimeUnit = "auto"
    """`auto` goes by the size of the first numbers (below 1e11 they are seconds since 1970, below 1e14
    milliseconds, below 1e17 microseconds); what is no number is an ISO 8601 time, UTC where it names no zone.
    """
    order: str | None = None
    """A rank from 0 within the user's events or within the log."""
    event_id: str | None = None
    """Without it an event is named by the digest of its row, so that a row that is there twice is one event.
    In a log without times the rank is part of that name: a video that a user came back to is two events.
    """
    session: str | None = None
    type: str | None = None
    types: dict[str, EventType] = field(default_factory=dict)
    rows_are: EventType = "watch"
    watch_seconds: str | None = None
    watch_ms: str | None = None
    watch_ratio: str | None = None
    rating: str | None = None
    """How well the user liked a video, from 0 up: becomes the watch ratio rating / rating_max."""
    rating_max: float | None = None
    """The best rating; the highest of the log where it is not given."""
    video_seconds: str | None = None
    video_ms: str | None = None
    channel: str | None = None
    like: str | None = None
    favorite: str | None = None
    share: str | None = None
    layout: Layout = "rows"
    """`sequences`: a row holds a user and all of that user's videos, the oldest first. Either there is no
    header and a line is the user's id and the videos' ids; or `video`, and whatever else is named beside
    `user` and `session`, are columns of lists, as lists of Parquet or text such as "[4, 8, 15]".
    """
    header: Header = "auto"
    """`auto`: there is one unless all the columns are given as numbers."""
    separator: str | None = None
    """What parts the fields of a text file; found by its first lines where it is not given."""

    @property
    def numbered(self) -> bool:
        """Whether columns are counted from 1, in a file without a header line."""
        if self.header == "auto":
            return all(column.isdecimal() for column in self.columns().values())
        return self.header == "no"

    @property
    def timeless(self) -> bool:
        """Whether the order of rows in the file is all that tells the order of events."""
        return self.time is None and self.order is None

    def columns(self) -> dict[str, str]:
        """Field of this mapping -> column of the log, for the fields that name one."""
        return {name: column for name in COLUMN_FIELDS if (column := getattr(self, name)) is not None}

    def check(self) -> None:
        """Raises InputError if the mapping contradicts itself."""
        for one, other in _EXCLUSIVE:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InputError(f"mapping: {one} and {other} are both given; name one of them")
        if self.types and self.type is None:
            raise InputError("mapping: type:VALUE needs the column that holds the values: type=COLUMN")
        if self.rows_are != "watch" and self.type is not None:
            raise InputError(
                "mapping: rows_are and type are both given; name the one that tells a row's type"
            )
        if self.rows_are != "watch" and self.rating is not None:
            raise InputError(
                f"mapping: rating is for watches, where rows_are={self.rows_are}; drop one of them"
            )
        if self.rating_max is not None and self.rating is None:
            raise InputError("mapping: rating_max needs the column that holds the ratings: rating=COLUMN")
        if self.numbered:
            self._check_numbers()

    def check_header(self, header: Sequence[str], source: str) -> None:
        """Raises InputError, with `source` as the file's name, if the mapping names a column that is not
        there.
        """
        for name, column in self.columns().items():
            if column in header:
                continue
            told = f"{source}: there is no column {column!r}, which the mapping names as {name}"
            if column.isdecimal() and header and header[-1].isdecimal():
                raise InputError(f"{told}; the first line has {len(header)}, counted from 1")
            raise InputError(f"{told}{did_you_mean(column, header)}")

    def _check_numbers(self) -> None:
        for name, column in self.columns().items():
            if not column.isdecimal() or int(column) < 1:
                raise InputError(
                    f"mapping: {name} is {column!r}, where a column of a file without a header is named by its "
                    f"number from 1; if the file has a header line, say header=yes"
                )
        if self.layout == "sequences" and self.columns() != {"user": "1", "video": "2"}:
            raise InputError(
                "mapping: layout=sequences without a header is a user's id and the videos' ids in each line: "
                "name no columns"
            )


_EXCLUSIVE: Final = (
    ("watch_seconds", "watch_ms"),
    ("video_seconds", "video_ms"),
    ("time", "order"),
    ("rating", "watch_ratio"),
    ("rating", "watch_seconds"),
    ("rating", "watch_ms"),
)
OPTION_FIELDS: Final = ("time_unit", "rows_are", "rating_max", "layout", "header", "separator")
COLUMN_FIELDS: Final = tuple(
    f.name for f in fields(ColumnMapping) if f.name not in OPTION_FIELDS and f.name != "types"
)
