"""What a caller of the library gets: a list with all that is to be known of it."""

from __future__ import annotations

import time

from msgspec import Struct

from mtgr.errors import RequestRefused
from mtgr.requests import ListOutcome, ListRefusal, ListResult
from schemas.lists import ModelVersion, RecommendedVideo


class Recommendations(Struct, frozen=True, kw_only=True):
    """The videos that one user is recommended next in a session, best first."""

    user_id: str
    session_id: str
    items: tuple[RecommendedVideo, ...]
    model: ModelVersion
    sequence_length: int
    """Events that the model saw."""
    cached_tokens: int
    """Tokens that did not have to be computed."""
    latency_ms: float
    """From the call to the list."""


def list_of(outcome: ListOutcome) -> ListResult:
    """The list of an outcome; RequestRefused where there is none."""
    if isinstance(outcome, ListRefusal):
        raise RequestRefused(outcome.message)
    return outcome


def recommendations(
    user_id: str, session_id: str, result: ListResult, model: ModelVersion, began: float
) -> Recommendations:
    """A generator's list, as the caller gets it who called when `time.perf_counter` was at `began`."""
    return Recommendations(
        user_id=user_id,
        session_id=session_id,
        items=tuple(
            RecommendedVideo(video_id, score, rank)
            for rank, (video_id, score) in enumerate(
                zip(result.video_ids, result.scores, strict=True), start=1
            )
        ),
        model=model,
        sequence_length=result.sequence_length,
        cached_tokens=result.cached_tokens,
        latency_ms=1_000 * (time.perf_counter() - began),
    )
