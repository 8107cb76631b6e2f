"""What the daemon asks of a generator and what it gets back, small enough to cross a process boundary."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Strategy = Literal["topk"]


class ListRequest(Struct, frozen=True, array_like=True, gc=False):
    """One user's history and how many videos to recommend.

    records and videos are read by `mtgr.history.History.from_bytes`.
    """

    user_id: str
    records: bytes
    videos: bytes
    count: int
    strategy: Strategy = "topk"


class ListResult(Struct, frozen=True, array_like=True, gc=False, tag="list"):
    """Recommended videos, best first, with their log-probabilities; seen videos are not among them."""

    video_ids: list[str]
    scores: list[float]
    sequence_length: int
    cached_tokens: int


class ListRefusal(Struct, frozen=True, array_like=True, gc=False, tag="refusal"):
    """Why the model cannot serve this request, however often it is tried."""

    error: str
    message: str


ListOutcome = ListResult | ListRefusal


class ModelInfo(Struct, frozen=True):
    """What a daemon must know of the model that a generator serves.

    max_events: the length that a sequence is cut back to; the model takes a quarter more.
    """

    name: str
    version: str
    max_events: int
    items: int
