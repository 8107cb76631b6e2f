"""Which column of a CSV log means what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from msgspec import Struct, field
from msgspec.structs import fields, replace

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

EventType = Literal["watch", "like", "favorite", "share"]
TimeUnit = Literal["auto", "ms", "s", "iso"]
EVENT_TYPES: Final = get_args(EventType)
TIME_UNITS: Final = get_args(TimeUnit)


class ColumnMapping(Struct, frozen=True, kw_only=True):
    """The columns of a log with one row for each interaction; a field left None is not in the log.

    A row is one event: of the type that its `type` column names (through `types`, where the log has words of
    its own), or of the type `rows_are` where there is no such column. Where a column of `like`, `favorite` or
    `share` holds 1 or true, the row is that event too, a millisecond or more after its first one.

    A watch takes its length from `watch_seconds` or `watch_ms`, or from its ratio and the video's length; its
    ratio from `watch_ratio`, or from the two lengths, and is 0 where the video's length is unknown or 0.
    """

    user: str
    video: str
    time: str
    time_unit: TimeUnit = "auto"
    """`auto` goes by the first value: a number below 1e11 is seconds since 1970, a greater one milliseconds,
    and anything else an ISO 8601 time (UTC where it names no zone).
    """
    event_id: str | None = None
    """Without it an event is named by the digest of its row, so that a row that is there twice is one event.
    """
    session: str | None = None
    type: str | None = None
    types: dict[str, EventType] = field(default_factory=dict)
    rows_are: EventType = "watch"
    watch_seconds: str | None = None
    watch_ms: str | None = None
    watch_ratio: str | None = None
    video_seconds: str | None = None
    video_ms: str | None = None
    channel: str | None = None
    like: str | None = None
    favorite: str | None = None
    share: str | None = None

    def columns(self) -> dict[str, str]:
        """Field of this mapping -> column of the log, for the fields that name one."""
        return {name: column for name in _COLUMN_FIELDS if (column := getattr(self, name)) is not None}

    def check(self) -> None:
        """Raises InputError if the mapping contradicts itself or cannot give a watch its length."""
        for one, other in (("watch_seconds", "watch_ms"), ("video_seconds", "video_ms")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InputError(f"mapping: {one} and {other} are both given; name the one that the log has")
        if self.types and self.type is None:
            raise InputError("mapping: type:VALUE needs the column that holds the values: type=COLUMN")
        if self.rows_are != "watch" and self.type is not None:
            raise InputError(
                "mapping: rows_are and type are both given; name the one that tells a row's type"
            )
        if self.watch_seconds is not None or self.watch_ms is not None:
            return
        if self.watch_ratio is not None and (self.video_seconds is not None or self.video_ms is not None):
            return
        if self.type is None and self.rows_are == "watch":
            raise InputError(
                "mapping: a watch needs watch_seconds=COLUMN or watch_ms=COLUMN, or watch_ratio=COLUMN and "
                "video_seconds=COLUMN; where the rows are not watches, say rows_are=like, favorite or share"
            )

    def check_header(self, header: Sequence[str], source: str) -> None:
        """Raises InputError, with `source` as the file's name, if the mapping names a column that is not
        there.
        """
        for name, column in self.columns().items():
            if column not in header:
                raise InputError(
                    f"{source}: there is no column {column!r}, which the mapping names as {name}"
                    f"{did_you_mean(column, header)}"
                )


_NOT_COLUMNS: Final = {"time_unit", "types", "rows_are"}
_COLUMN_FIELDS: Final = tuple(f.name for f in fields(ColumnMapping) if f.name not in _NOT_COLUMNS)

# The header of KuaiRand's logs (Gao et al., CIKM 2022). A follow is of the author, not of the video: no
# favourite.
KUAIRAND: Final = ColumnMapping(
    user="user_id",
    video="video_id",
    time="time_ms",
    time_unit="ms",
    watch_ms="play_time_ms",
    video_ms="duration_ms",
    like="is_like",
    share="is_forward",
)

# wire field -> field of the mapping, for logs whose columns are named as on the wire
_WIRE_NAMES: Final = {
    "event_id": "event_id",
    "session_id": "session",
    "type": "type",
    "watch_seconds": "watch_seconds",
    "watch_ratio": "watch_ratio",
    "video_seconds": "video_seconds",
    "channel": "channel",
}


def recognise(header: Sequence[str], source: str) -> ColumnMapping:
    """The mapping of a log by its header alone: KuaiRand's, or columns named as the fields on the wire.

    Raises InputError, with `source` as the file's name, if it is neither.
    """
    names = set(header)
    if names >= set(KUAIRAND.columns().values()):
        return KUAIRAND
    if names >= {"user_id", "video_id", "timestamp_ms"}:
        known = {target: name for name, target in _WIRE_NAMES.items() if name in names}
        wire = ColumnMapping(user="user_id", video="video_id", time="timestamp_ms", time_unit="ms")
        wire = replace(wire, **known)
        try:
            wire.check()
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        return wire
    raise InputError(
        f"{source}: the columns {', '.join(header)} are not those of a known log; name yours by a mapping, "
        f"such as user=COLUMN,video=COLUMN,time=COLUMN,watch_seconds=COLUMN"
    )


def parse_mapping(pairs: Iterable[str]) -> ColumnMapping:
    """Read a mapping from `field=column` pairs, of which one string may hold several, separated by commas.

    `user=userId,video=movieId,time=timestamp,type=action,type:play=watch,watch_seconds=sec`: the pair
    type:VALUE=TYPE says which event a value of the type column is. Raises InputError naming the pair that is
    wrong.
    """
    given: dict[str, str] = {}
    types: dict[str, EventType] = {}
    for pair in (part.strip() for text in pairs for part in text.split(",")):
        if not pair:
            continue
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise InputError(f"mapping: {pair!r} should read FIELD=COLUMN, such as user=user_id")
        if name.startswith("type:"):
            types[name.removeprefix("type:")] = _one_of(pair, value, EVENT_TYPES)
        elif name == "rows_are":
            given[name] = _one_of(pair, value, EVENT_TYPES)
        elif name == "time_unit":
            given[name] = _one_of(pair, value, TIME_UNITS)
        elif name not in _COLUMN_FIELDS:
            known = [*_COLUMN_FIELDS, *sorted(_NOT_COLUMNS - {"types"}), "type:VALUE"]
            raise InputError(f"mapping: {name!r} is not a field{did_you_mean(name, known)}")
        elif name in given:
            raise InputError(f"mapping: {name} is given twice, as {given[name]!r} and as {value!r}")
        else:
            given[name] = value
    missing = [name for name in ("user", "video", "time") if name not in given]
    if missing:
        raise InputError(f"mapping: {' and '.join(missing)} must be given: {missing[0]}=COLUMN")
    mapping = ColumnMapping(types=types, **given)  # type: ignore[arg-type]
    mapping.check()
    return mapping


def _one_of(pair: str, value: str, allowed: Sequence[str]) -> EventType:
    if value not in allowed:
        raise InputError(f"mapping: {pair!r} should be one of {', '.join(allowed)}")
    return value  # type: ignore[return-value]
