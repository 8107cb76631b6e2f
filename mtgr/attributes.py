"""Attributes of videos and users as numbers: hashed categories and scaled numbers, as a config asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

import msgspec
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from mtgr.config import CategoricalAttribute, NumericAttribute
from schemas.attributes import Attributes

MISSING: Final = 0
"""Category of a value that is not known; it adds nothing to an embedding."""

_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(Attributes).decode


def pack_attributes(attributes: Mapping[str, Any]) -> bytes:
    """Attributes as bytes that are equal where they are equal; empty for none."""
    return _encode(dict(attributes)) if attributes else b""


def unpack_attributes(packed: bytes) -> dict[str, Any]:
    """Read what `pack_attributes` wrote; ValueError says what is wrong."""
    if not packed:
        return {}
    try:
        return _decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"attributes: {error}") from None


class AttributeEncoder:
    """Attributes to the category ids and numbers of one config.

    Categories are hashed, so that a value which training never met still has an id, and every process agrees
    on it. All categorical attributes share one table: id 0 is `MISSING`, then each has a range of its own.
    """

    def __init__(
        self, categories: Sequence[CategoricalAttribute], numbers: Sequence[NumericAttribute]
    ) -> None:
        self._numbers: Final = tuple(numbers)
        self._plan: Final[list[tuple[str, int, int, int, int]]] = []  # name, column, values, first id, size
        column, first = 0, 1
        for category in categories:
            self._plan.append((category.name, column, category.values, first, category.size))
            column += category.values
            first += category.size
        self.columns: Final = column
        self.table_size: Final = first
        self.number_columns: Final = len(self._numbers)

    def encode(self, attributes: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(columns,) category ids and (number_columns,) numbers of one set of attributes.

        Of a list longer than the config's `values` the first ones are taken; a number that is missing or not
        finite counts as the mean.
        """
        ids = np.zeros(self.columns, np.int64)
        for name, column, values, first, size in self._plan:
            for place, text in enumerate(_texts(attributes.get(name))[:values]):
                ids[column + place] = first + xxh3_64_intdigest(text.encode()) % size
        numbers = np.zeros(self.number_columns, np.float32)
        for place, number in enumerate(self._numbers):
            numbers[place] = _scaled(attributes.get(number.name), number)
        return ids, numbers

    def encode_all(
        self, attributes: Sequence[Mapping[str, Any]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(n, columns) and (n, number_columns): `encode` of each."""
        ids = np.zeros((len(attributes), self.columns), np.int64)
        numbers = np.zeros((len(attributes), self.number_columns), np.float32)
        for row, one in enumerate(attributes):
            if one:
                ids[row], numbers[row] = self.encode(one)
        return ids, numbers


def fit_number(name: str, attributes: Sequence[Mapping[str, Any]]) -> NumericAttribute:
    """How to scale a numeric attribute by what a log knows of it: mean 0 and deviation 1 of those that have it.

    Non-negative numbers that span more than two orders of magnitude above their median are taken as log1p.
    """
    values = np.array(
        [value for one in attributes if _is_number(value := one.get(name)) and math.isfinite(value)],
        np.float64,
    )
    if not len(values):
        return NumericAttribute(name)
    log = bool(values.min() >= 0 and values.max() > 100 * max(1.0, float(np.median(values))))
    if log:
        values = np.log1p(values)
    return NumericAttribute(name, log=log, mean=float(values.mean()), scale=float(values.std()) or 1.0)


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [str(text) for text in value]
    number = float(value)
    # a category that a file keeps as a number: 12 and 12.0 are one
    return [str(int(number)) if number.is_integer() else repr(number)] if math.isfinite(number) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scaled(value: Any, number: NumericAttribute) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0.0
    if not _is_number(value) or not math.isfinite(value):
        return 0.0
    if number.log:
        value = math.log1p(max(value, 0.0))
    scaled: float = (value - number.mean) / number.scale
    return max(-10.0, min(10.0, scaled))
