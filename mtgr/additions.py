"""Videos that join the catalog of a model while it is served."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from mtgr.attributes import AttributeEncoder, unpack_attributes
from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.requests import AddedVideos, NewVideo


class Addition(Struct, frozen=True, array_like=True):
    """A new video as the model takes it in: its place, the bucket whose vector it gets, and its attributes."""

    index: int
    bucket: int
    categories: list[int]
    numbers: list[float]


def encode_additions(
    videos: Sequence[NewVideo], catalog: Catalog, config: ModelConfig
) -> tuple[list[Addition], AddedVideos]:
    """Give the videos places in the catalog and encode them; those it has no place for are refused.

    A video that is there already stays as it is. ValueError for attributes that are none, before any is added.
    """
    encoder = AttributeEncoder(config.video_categories, config.video_numbers)
    attributes = [unpack_attributes(video.attributes) for video in videos]
    additions: list[Addition] = []
    known, refused = 0, []
    for video, described in zip(videos, attributes, strict=True):
        if video.video_id in catalog:
            known += 1
            continue
        bucket = catalog.bucket(video.video_id)
        index = catalog.add(video.video_id)
        if index is None:
            refused.append(video.video_id)
            continue
        categories, numbers = encoder.encode(described)
        additions.append(Addition(index, bucket, categories.tolist(), numbers.tolist()))
    return additions, AddedVideos(len(additions), known, refused)
