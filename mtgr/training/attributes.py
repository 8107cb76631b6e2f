"""Which attributes a model takes, and in what sizes, by what a log's videos and users have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mtgr.attributes import fit_number
from mtgr.config import CategoricalAttribute, NumericAttribute
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.attributes import MAX_ATTRIBUTE_VALUES

_LARGEST: Final = 1 << 20
_FEW: Final = 2048
_ROOM: Final = 16  # few values share an embedding then: each says something of many videos
_ROOM_OF_MANY: Final = 4  # a value of few videos teaches little either way, and the table costs its size


def fit_categories(
    names: Sequence[str], attributes: Mapping[str, Mapping[str, Any]], source: str
) -> tuple[CategoricalAttribute, ...]:
    """Categorical attributes sized by what is known: so many embeddings for each value, to the next power of two,
    that few values share one by chance; InputError names the source and an attribute that is nowhere.
    """
    fitted = []
    for name in names:
        found = list(_values(name, attributes, source))
        distinct: set[Any] = set()
        longest = 1
        for value in found:
            texts = value if isinstance(value, list | tuple) else [value]
            distinct.update(texts)
            longest = max(longest, len(texts))
        room = _ROOM if len(distinct) <= _FEW else _ROOM_OF_MANY
        size = min(_LARGEST, 1 << (room * len(distinct)).bit_length())
        fitted.append(CategoricalAttribute(name, size, min(longest, MAX_ATTRIBUTE_VALUES)))
    return tuple(fitted)


def fit_numbers(
    names: Sequence[str], attributes: Mapping[str, Mapping[str, Any]], source: str
) -> tuple[NumericAttribute, ...]:
    """Numeric attributes scaled by what is known. InputError names the source, and an attribute that is nowhere
    or a text.
    """
    for name in names:
        for value in _values(name, attributes, source):
            if isinstance(value, str | list | tuple):
                raise InputError(f"{source}: attribute {name!r} has the value {value!r}, which is no number")
    return tuple(fit_number(name, list(attributes.values())) for name in names)


def _values(name: str, attributes: Mapping[str, Mapping[str, Any]], source: str) -> Iterable[Any]:
    found = [held[name] for held in attributes.values() if name in held]
    if not found:
        known = sorted({key for held in attributes.values() for key in held})
        hint = did_you_mean(name, known) if known else ""
        raise InputError(f"{source}: nothing has an attribute {name!r}{hint}")
    return found
