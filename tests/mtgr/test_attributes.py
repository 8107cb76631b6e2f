"""Promises of mtgr.attributes: every process gives an attribute the same numbers, and nothing unknown breaks one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.attributes import MISSING, AttributeEncoder, fit_number, pack_attributes, unpack_attributes
from mtgr.config import CategoricalAttribute, NumericAttribute
from schemas.attributes import MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES

ENCODER = AttributeEncoder(
    [CategoricalAttribute("author", 100), CategoricalAttribute("tag", 8, values=2)],
    [
        NumericAttribute("seconds", log=True, mean=2.0, scale=0.5),
        NumericAttribute("age", mean=30.0, scale=10.0),
    ],
)
texts = st.text(min_size=1, max_size=20)
attributes = st.dictionaries(
    st.sampled_from(["author", "tag", "seconds", "age", "other"]),
    texts | st.floats() | st.lists(texts, max_size=4),
)


@given(attributes)
def test_any_attributes_have_ids_inside_the_table_and_finite_numbers(given_: dict[str, object]) -> None:
    """Whatever is said of a video, its ids lie in their own attribute's range and its numbers are bounded."""
    ids, numbers = ENCODER.encode(given_)
    assert ENCODER.table_size == 1 + 100 + 8
    assert ids[0] == MISSING or 1 <= ids[0] < 101
    assert all(index == MISSING or 101 <= index < 109 for index in ids[1:])
    assert np.isfinite(numbers).all()


def test_what_is_missing_adds_nothing() -> None:
    """No attributes give the missing id throughout, and numbers at their mean."""
    ids, numbers = ENCODER.encode({})
    assert ids.tolist() == [MISSING] * 3
    assert numbers.tolist() == [0.0, 0.0]
    many_ids, many_numbers = ENCODER.encode_all([{}, {"age": 40.0}])
    assert many_ids.shape == (2, 3)
    assert many_numbers.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_a_category_is_the_same_as_text_and_as_number_and_on_every_run() -> None:
    """An author kept as 12, 12.0 or "12" is one; ids are part of a trained model and must not change."""
    ids = {ENCODER.encode({"author": author})[0][0] for author in (12, 12.0, "12")}
    assert ids == {17}


def test_numbers_are_scaled_as_the_config_says() -> None:
    """(log1p(x) - mean) / scale, and a number written as text counts."""
    assert ENCODER.encode({"seconds": 9.0})[1][0] == pytest.approx((math.log1p(9) - 2) / 0.5)
    assert ENCODER.encode({"age": "35"})[1][1] == pytest.approx(0.5)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=10),
        texts | st.floats(allow_nan=False) | st.lists(texts, max_size=MAX_ATTRIBUTE_VALUES),
    )
)
def test_packed_attributes_come_back(given_: dict[str, object]) -> None:
    """Packing keeps names and values, and equal attributes give equal bytes whatever their order."""
    packed = pack_attributes(given_)
    assert unpack_attributes(packed) == given_
    assert pack_attributes(dict(reversed(given_.items()))) == packed
    assert (packed == b"") == (not given_)


@pytest.mark.parametrize(
    "packed",
    [b"\xff", b"\x93\x01\x02\x03", pack_attributes({str(n): 1.0 for n in range(MAX_ATTRIBUTES + 1)})],
)
def test_bytes_that_are_no_attributes_are_refused(packed: bytes) -> None:
    """Broken bytes, another type and too many attributes are told apart from attributes."""
    with pytest.raises(ValueError, match="attributes: "):
        unpack_attributes(packed)


def test_a_number_is_fitted_to_what_is_known_of_it() -> None:
    """Scaled values have mean 0 and deviation 1; a long tail is taken as log1p; unknown everywhere changes nothing."""
    plain = fit_number("age", [{"age": 20.0}, {"age": 40.0}, {}, {"age": "old"}])
    assert (plain.log, plain.mean, plain.scale) == (False, 30.0, 10.0)
    assert fit_number("fans", [{"fans": 10.0**power} for power in range(7)]).log
    assert fit_number("age", [{}]) == NumericAttribute("age")
    assert fit_number("age", [{"age": 5.0}]).scale == 1.0
