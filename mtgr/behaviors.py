"""What an application reports of a user and a video, and the events that it stands for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, structs
from xxhash import xxh3_128_hexdigest

from mtgr.arguments import check_argument, plain, shown
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.bounds import MAX_SECONDS, TimestampMs, VideoId, WatchSeconds
from schemas.describing import describe
from schemas.events import Favorite, Interaction, Like, Share, Watch

Kind = Literal["watch", "like", "favorite", "share"]

MAX_BEHAVIORS: Final = 10_000
"""Most behaviours of a call."""


class Behavior(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user did with one video, reported when the user is through with it.

    It stands for a watch and, where a flag says so, for a like, a favorite and a share of the video after it.
    """

    video_id: VideoId
    watch_duration: WatchSeconds
    """Seconds watched."""
    watch_percentage: Annotated[float, Meta(ge=0, le=10)]
    """Share of the video's length that was watched: 0.83 for 83 %, above 1 when watched again. The bound is there to
    refuse a percentage of 0 to 100, which would be taken for something else."""
    is_liked: bool = False
    is_favorited: bool = False
    is_shared: bool = False
    timestamp_ms: TimestampMs | None = None
    """When watching ended. Without it, a video is taken to have followed directly on the one before it."""


_TYPES: Final[dict[str, Any]] = {field.name: field.type for field in structs.fields(Behavior)}
_REQUIRED: Final = tuple(field.name for field in structs.fields(Behavior) if field.required)
_MEANINGS: Final = {
    "watch_duration": " (seconds watched)",
    "watch_percentage": " (a share of the video's length, such as 0.83 for 83 %)",
    "timestamp_ms": " (milliseconds since 1970-01-01 00:00 UTC), or None",
}


def parse_behaviors(behaviors: Iterable[Behavior | Mapping[str, Any]]) -> list[Behavior]:
    """Read the behaviours of a call, oldest first, from mappings or as they are.

    Raises InputError naming the place, the field, the value and what would be right, for the first that is none.
    """
    if isinstance(behaviors, str | bytes | Mapping | Behavior) or not isinstance(behaviors, Iterable):
        raise InputError(f"behaviors = {shown(behaviors)}: expected a list of behaviours")
    parsed: list[Behavior] = []
    for behavior in behaviors:
        if len(parsed) == MAX_BEHAVIORS:
            raise InputError(f"behaviors: more than {MAX_BEHAVIORS:,}, which is the most of a call")
        parsed.append(_parse(behavior, f"behaviors[{len(parsed)}]"))
    return parsed


def kinds_of(behavior: Behavior) -> list[Kind]:
    """The kinds of the events that a behaviour stands for, in their order."""
    flags: tuple[tuple[Kind, bool], ...] = (
        ("like", behavior.is_liked),
        ("favorite", behavior.is_favorited),
        ("share", behavior.is_shared),
    )
    return ["watch", *(kind for kind, flag in flags if flag)]


def event_id_of(kind: Kind, session_id: str, behavior: Behavior) -> str:
    """The id of one of its events: the same behaviour, sent again in its session, is the same events.

    A watch is told by all that is reported of it but the flags; so a flag may be set by a later report of the same
    watch, and adds its event then. A video is liked, put among the favourites and shared once in a session.
    """
    facts: list[object] = [kind, session_id, behavior.video_id]
    if kind == "watch":
        facts += [behavior.watch_duration, behavior.watch_percentage, behavior.timestamp_ms]
    return xxh3_128_hexdigest(msgspec.json.encode(facts))


def event_of(
    kind: Kind, event_id: str, user_id: str, session_id: str, behavior: Behavior, timestamp_ms: int
) -> Interaction:
    """One of the events that a behaviour stands for, as the wire has it.

    The length of the video is what time and share together say it is, unknown where the share is 0.
    """
    common: dict[str, Any] = {
        "event_id": event_id,
        "user_id": user_id,
        "session_id": session_id,
        "video_id": behavior.video_id,
        "timestamp_ms": timestamp_ms,
    }
    match kind:
        case "watch":
            share = behavior.watch_percentage
            seconds = behavior.watch_duration / share if share else 0.0
            return Watch(
                watch_seconds=behavior.watch_duration,
                watch_ratio=share,
                video_seconds=seconds if 0 < seconds <= MAX_SECONDS else None,
                **common,
            )
        case "like":
            return Like(**common)
        case "favorite":
            return Favorite(**common)
        case "share":
            return Share(**common)


def _parse(behavior: Behavior | Mapping[str, Any], place: str) -> Behavior:
    if isinstance(behavior, Behavior):
        fields: Mapping[str, Any] = structs.asdict(behavior)  # whose constructor checks nothing
    elif isinstance(behavior, Mapping):
        fields = behavior
    else:
        raise InputError(
            f"{place} = {shown(behavior)}: expected a mapping of {', '.join(_REQUIRED)} and what else is known"
        )
    for name in fields:
        if name not in _TYPES:
            raise InputError(f"{place}: unknown field {shown(name)}{did_you_mean(str(name), _TYPES)}")
    for name in _REQUIRED:
        if name not in fields:
            raise InputError(
                f"{place}.{name} is missing: expected {describe(_TYPES[name])}{_MEANINGS.get(name, '')}"
            )
    try:
        parsed = msgspec.convert({name: plain(value) for name, value in fields.items()}, Behavior)
        parsed.video_id.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        for name, value in fields.items():
            check_argument(f"{place}.{name}", value, _TYPES[name], _MEANINGS.get(name, ""))
        raise  # pragma: no cover  every field by itself is what the whole asks for
    return parsed
