"""What the daemon asks of a generator and what it gets back, small enough to cross a process boundary."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Strategy = Literal["topk", "slate"]
"""topk: the likeliest next videos, from one step. slate: a list made video by video, each chosen as if the ones
before it had been watched."""

MAX_SLATE: Final = 64
"""Most videos of a slate: each is a step of the model and a token of its sequence."""


class ListRequest(Struct, frozen=True, array_like=True, gc=False):
    """One user's history and how many videos to recommend.

    records and videos are read by `mtgr.history.History.from_bytes`; profile by
    `mtgr.attributes.unpack_attributes`, empty where nothing is known of the user.
    """

    user_id: str
    records: bytes
    videos: bytes
    count: int
    strategy: Strategy = "topk"
    profile: bytes = b""


class ListResult(Struct, frozen=True, array_like=True, gc=False, tag="list"):
    """Recommended videos, best first, with their log-probabilities; seen videos are not among them.

    In a slate each log-probability is given the videos before it, which have none left.
    """

    video_ids: list[str]
    scores: list[float]
    sequence_length: int
    cached_tokens: int


class ListRefusal(Struct, frozen=True, array_like=True, gc=False, tag="refusal"):
    """Why the model cannot serve this request, however often it is tried."""

    error: str
    message: str


ListOutcome = ListResult | ListRefusal


class NewVideo(Struct, frozen=True, array_like=True, gc=False):
    """A video for the catalog of a model that is being served; attributes as in `ListRequest.profile`."""

    video_id: str
    attributes: bytes = b""


class AddedVideos(Struct, frozen=True, array_like=True):
    """What became of new videos: how many can be recommended now, and the ids there was no place for."""

    added: int
    known: int
    """Had been in the catalog before, and are left as they were trained."""
    refused: list[str]


class CacheStats(Struct, frozen=True):
    """What lies in an engine's KV cache: blocks, those that sessions have, sessions, and how many had to go."""

    blocks: int
    used_blocks: int
    sessions: int
    evictions: int


class ModelInfo(Struct, frozen=True):
    """What a daemon must know of the model that a generator serves.

    max_events: the length that a sequence is cut back to; the model takes a quarter more.
    """

    name: str
    version: str
    max_events: int
    items: int
