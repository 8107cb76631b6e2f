"""Promises of mtgr.additions: new videos get places and attributes in order, and nothing is added by halves."""

from __future__ import annotations

import pytest

from mtgr.additions import encode_additions
from mtgr.attributes import AttributeEncoder, pack_attributes
from mtgr.catalog import Catalog
from mtgr.presets import PRESETS
from mtgr.requests import AddedVideos, NewVideo

CONFIG = PRESETS["tiny"].replace(
    n_items=2, spare_items=2, unknown_buckets=4, video_categories=[{"name": "tag", "size": 9}]
)


def test_new_videos_take_the_spare_places_and_the_rest_is_refused() -> None:
    """A known video is counted and left alone; each new one has its bucket's vector and its own attributes."""
    catalog = Catalog(["a", "b"], 4, 2)
    tag = pack_attributes({"tag": "music"})
    videos = [NewVideo(name, tag) for name in ("a", "c", "d", "e", "c")]
    additions, outcome = encode_additions(videos, catalog, CONFIG)
    assert outcome == AddedVideos(added=2, known=2, refused=["e"])
    ids, _ = AttributeEncoder(CONFIG.video_categories, CONFIG.video_numbers).encode({"tag": "music"})
    assert [(one.index, one.categories) for one in additions] == [(2, ids.tolist()), (3, ids.tolist())]
    assert [one.bucket for one in additions] == [catalog.bucket("c"), catalog.bucket("d")]
    assert encode_additions(videos, catalog, CONFIG) == ([], AddedVideos(0, 4, ["e"]))


def test_corrupt_attributes_add_nothing() -> None:
    """One video whose attributes cannot be read keeps the whole batch out, so that it can be sent again."""
    catalog = Catalog(["a", "b"], 4, 2)
    with pytest.raises(ValueError, match="attributes: "):
        encode_additions([NewVideo("c"), NewVideo("d", b"\xff")], catalog, CONFIG)
    assert len(catalog) == 2
