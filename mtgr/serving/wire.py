"""What an engine server and its clients say to each other over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mtgr.attributes import unpack_attributes
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo
from schemas.bounds import MAX_ID_CHARACTERS

LISTS_PATH: Final = "/v1/lists"
VIDEOS_PATH: Final = "/v1/videos"
MODEL_PATH: Final = "/v1/model"
HEALTH_PATH: Final = "/healthz"

MAX_LISTS: Final = 4096
"""Lists of one call: far above a daemon's batch, far below what would starve the other daemons."""

MAX_VIDEOS: Final = 4096
"""New videos of one call, which lists wait for."""

MSGPACK: Final = "application/msgpack"
VERSION_HEADER: Final = "X-Model-Version"
"""On each answer with lists: the version of the model that made them."""

encode: Final = msgspec.msgpack.encode
decode_requests: Final = msgspec.msgpack.Decoder(list[ListRequest]).decode
decode_outcomes: Final = msgspec.msgpack.Decoder(list[ListOutcome]).decode
decode_added: Final = msgspec.msgpack.Decoder(AddedVideos).decode
decode_model: Final = msgspec.json.Decoder(ModelInfo).decode

_decode_videos: Final = msgspec.msgpack.Decoder(list[NewVideo]).decode


def decode_videos(body: bytes) -> list[NewVideo]:
    """New videos as a call holds them; msgspec.DecodeError or ValueError for what is none."""
    videos = _decode_videos(body)
    check_videos(videos)
    return videos


def check_videos(videos: Sequence[NewVideo]) -> None:
    """ValueError naming the first video whose id or attributes are none."""
    for video in videos:
        if not 1 <= len(video.video_id) <= MAX_ID_CHARACTERS:
            raise ValueError(
                f"video_id has {len(video.video_id)} characters, where 1 to {MAX_ID_CHARACTERS} are wanted"
            )
        try:
            unpack_attributes(video.attributes)
        except ValueError as error:
            raise ValueError(f"video {video.video_id!r}: {error}") from None
