"""Promises of mtgr.catalog: ids and indices are one to one, and what is unknown stays apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import identifiers

from mtgr.catalog import Catalog
from mtgr.errors import InputError

id_lists = st.lists(identifiers, min_size=1, max_size=30, unique=True)
buckets = st.integers(1, 9)


@given(id_lists, buckets)
def test_every_video_gets_its_place_and_its_name_back(video_ids: list[str], unknown_buckets: int) -> None:
    """Index and id are inverse to each other, in the order the ids were given."""
    catalog = Catalog(video_ids, unknown_buckets)
    assert catalog.indices(video_ids).tolist() == list(range(len(video_ids)))
    assert [catalog.video_id(index) for index in range(len(catalog))] == video_ids


@given(id_lists, buckets, st.lists(identifiers, max_size=30))
def test_an_unknown_video_has_a_bucket_after_the_items(
    video_ids: list[str], unknown_buckets: int, asked: list[str]
) -> None:
    """Known or not, one by one or all at once, an id has one index; an unknown one has it behind the items."""
    catalog = Catalog(video_ids, unknown_buckets)
    indices = catalog.indices(asked).tolist()
    assert indices == [catalog.index(video_id) for video_id in asked]
    for video_id, index in zip(asked, indices, strict=True):
        assert (index < len(catalog)) == (video_id in catalog)
        assert index < len(catalog) + unknown_buckets


def test_a_bucket_is_the_same_on_every_run() -> None:
    """Buckets are part of a trained model: they must not depend on Python's hash seed."""
    catalog = Catalog(["a"], 1000)
    assert [catalog.index(video_id) for video_id in ("b", "ü", "4711")] == [616, 303, 242]


@pytest.mark.parametrize("index", [-1, 2, 3, 100])
def test_what_is_no_video_is_not_decoded(index: int) -> None:
    """A bucket, a negative number and a number beyond all are refused, with the catalog's size."""
    with pytest.raises(IndexError, match=f"item index {index} is no video of the catalog, which has 2"):
        Catalog(["a", "b"], 2).video_id(index)


@given(id_lists, buckets)
def test_the_file_holds_the_catalog(video_ids: list[str], unknown_buckets: int) -> None:
    """A catalog read from its file is the catalog that was written."""
    catalog = Catalog(video_ids, unknown_buckets)
    assert Catalog.from_json(catalog.to_json(), unknown_buckets) == catalog


@given(id_lists, buckets, st.integers(0, 4), st.lists(identifiers, max_size=8, unique=True))
def test_a_new_video_takes_a_spare_place_and_moves_no_other(
    video_ids: list[str], unknown_buckets: int, spare_items: int, arriving: list[str]
) -> None:
    """Videos that join get the indices after the trained ones while there are places; buckets stay where they were."""
    catalog = Catalog(video_ids, unknown_buckets, spare_items)
    new = [video_id for video_id in arriving if video_id not in catalog]
    before = [catalog.index(video_id) for video_id in new]
    assert all(index >= len(video_ids) + spare_items for index in before)
    given_places = [catalog.add(video_id) for video_id in new]
    joined = new[:spare_items]
    assert given_places[: len(joined)] == list(range(len(video_ids), len(video_ids) + len(joined)))
    assert given_places[len(joined) :] == [None] * (len(new) - len(joined))
    assert catalog.indices(video_ids + joined).tolist() == list(range(len(catalog)))
    assert [catalog.index(video_id) for video_id in new[spare_items:]] == before[spare_items:]
    assert [catalog.bucket(video_id) for video_id in new] == before
    assert Catalog.from_json(catalog.to_json(), unknown_buckets, spare_items) == Catalog(
        video_ids, unknown_buckets, spare_items
    )
    with pytest.raises(ValueError, match="is in the catalog already"):
        catalog.add(video_ids[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b'{"video_ids": ["a", "b"', "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `video_ids`"),
        (b'{"video_ids": [], "items": 3}', "unknown field `items`"),
        (b'{"video_ids": []}', "at least one video"),
        (b'{"video_ids": ["a", 7]}', "Expected `str`, got `int` - at `$.video_ids[1]`"),
        (b'{"video_ids": ["a", ""]}', "length >= 1 - at `$.video_ids[1]`"),
        (json.dumps({"video_ids": ["x" * 129]}).encode(), "length <= 128"),
        (b'{"video_ids": ["a", "b", "a"]}', "video id 'a' stands there twice"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(content: bytes, message: str) -> None:
    """The error begins with the file and says what is wrong in it."""
    with pytest.raises(InputError) as caught:
        Catalog.from_json(content, 4, source="dir/catalog.json")
    assert str(caught.value).startswith("dir/catalog.json: ")
    assert message in str(caught.value)
