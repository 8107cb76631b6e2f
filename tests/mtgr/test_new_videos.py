"""Promises of mtgr.new_videos: what an application hands in is what the wire would have it, or named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtgr.attributes import unpack_attributes
from mtgr.errors import InputError
from mtgr.new_videos import pack_profile, parse_videos
from schemas.videos import Video


def test_videos_come_as_mappings_or_as_the_wire_has_them() -> None:
    """With what is known of them, numbers of a table among it."""
    found = parse_videos(
        [
            {"video_id": "a", "attributes": {"seconds": np.float32(2.5), "tags": ["x", "y"]}},
            Video(video_id="b", attributes={"author": "z"}),
            {"video_id": "c"},
        ]
    )
    assert [(video.video_id, unpack_attributes(video.attributes)) for video in found] == [
        ("a", {"seconds": 2.5, "tags": ["x", "y"]}),
        ("b", {"author": "z"}),
        ("c", {}),
    ]


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        ({"video_id": "a"}, r"^videos = \{'video_id': 'a'\}: expected a list of videos"),
        (["a"], r"^videos\[0\] = 'a': expected a mapping of video_id"),
        ([{"video_id": "a"}, {}], r"^videos\[1\]\.video_id is missing"),
        ([{"video_id": ""}], r"^videos\[0\]\.video_id = '': expected a string of 1"),
        ([{"video_id": "a", "atributes": {}}], r"unknown field 'atributes'; did you mean attributes\?"),
        ([{"video_id": "a", "attributes": 3}], r"^videos\[0\]\.attributes = 3: expected an object"),
    ],
)
def test_what_is_no_video_is_named(videos: Any, said: str) -> None:
    """By its place, field and value, and what would be right."""
    with pytest.raises(InputError, match=said):
        parse_videos(videos)


def test_a_profile_is_attributes() -> None:
    """The same in any order, nothing where nothing is known, and named where it is none."""
    assert pack_profile({"a": "x", "b": 1}) == pack_profile({"b": np.int64(1), "a": "x"})
    assert pack_profile({}) == b""
    for wrong in ("x", {"a": None}, {"": "x"}, {"a": ["x"] * 40}):
        with pytest.raises(InputError, match=r"^profile = .*expected"):
            pack_profile(wrong)  # type: ignore[arg-type]
