"""A column mapping as it is written on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, get_args

from mtgr.datasets.columns import (
    COLUMN_FIELDS,
    EVENT_TYPES,
    OPTION_FIELDS,
    ColumnMapping,
    EventType,
    Header,
    Layout,
    TimeUnit,
)
from mtgr.datasets.separators import SEPARATORS
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

_CHOICES: Final = {
    "rows_are": EVENT_TYPES,
    "time_unit": get_args(TimeUnit),
    "layout": get_args(Layout),
    "header": get_args(Header),
}
# words of other tools for what a field here is called
_SYNONYMS: Final = {
    "item": "video",
    "item_id": "video",
    "video_id": "video",
    "movie": "video",
    "user_id": "user",
    "timestamp": "time",
    "rank": "order",
    "session_id": "session",
    "sep": "separator",
    "max_rating": "rating_max",
}


def parse_mapping(pairs: Iterable[str]) -> ColumnMapping:
    """Read a mapping from `field=column` pairs, of which one string may hold several, separated by commas.

    `user=userId,video=movieId,time=timestamp,type=action,type:play=watch,watch_seconds=sec`: the pair
    type:VALUE=TYPE says which event a value of the type column is. `separator` is written as it is, or as
    comma, tab, space, semicolon or pipe. Raises InputError naming the pair that is wrong.
    """
    given: dict[str, Any] = {}
    types: dict[str, EventType] = {}
    for pair in (part.strip() for text in pairs for part in text.split(",")):
        if not pair:
            continue
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            hint = "separator=comma" if name == "separator" else "FIELD=COLUMN, such as user=user_id"
            raise InputError(f"mapping: {pair!r} should read {hint}")
        if name.startswith("type:"):
            types[name.removeprefix("type:")] = _one_of(pair, value, EVENT_TYPES)
        elif name in given:
            raise InputError(f"mapping: {name} is given twice, as {given[name]!r} and as {value!r}")
        elif name in _CHOICES:
            given[name] = _one_of(pair, value, _CHOICES[name])
        elif name == "rating_max":
            given[name] = _above_zero(pair, value)
        elif name == "separator":
            given[name] = SEPARATORS.get(value, "\t" if value == "\\t" else value)
        elif name in COLUMN_FIELDS:
            given[name] = value
        else:
            known = [*COLUMN_FIELDS, *OPTION_FIELDS, "type:VALUE"]
            meant = _SYNONYMS.get(name.lower())
            hint = f"; did you mean {meant}?" if meant else did_you_mean(name, known)
            raise InputError(f"mapping: {name!r} is not a field{hint}")
    if given.get("layout") == "sequences" and "user" not in given and "video" not in given:
        given |= {"user": "1", "video": "2"}
    missing = [name for name in ("user", "video") if name not in given]
    if missing:
        raise InputError(f"mapping: {' and '.join(missing)} must be given: {missing[0]}=COLUMN")
    mapping = ColumnMapping(types=types, **given)
    mapping.check()
    return mapping


def _one_of(pair: str, value: str, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise InputError(f"mapping: {pair!r} should be one of {', '.join(allowed)}")
    return value


def _above_zero(pair: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"mapping: {pair!r} should be a number above 0, such as rating_max=5")
    return number
