"""What a model can serve: the checks every generator makes before a request reaches its forward pass."""

from __future__ import annotations

from typing import Any

from mtgr.attributes import unpack_attributes
from mtgr.config import ModelConfig
from mtgr.errors import RequestRefused
from mtgr.features import check_records
from mtgr.history import RECORD_BYTES, History
from mtgr.requests import MAX_SLATE, ListRefusal, ListRequest


def refusal(error: RequestRefused) -> ListRefusal:
    """A refusal as it crosses process boundaries."""
    return ListRefusal(type(error).__name__, str(error))


def admit(request: ListRequest, config: ModelConfig) -> tuple[History, dict[str, Any]]:
    """The request's history and its user's attributes, once it is known that the model can serve it.

    Raises RequestRefused for a history that is empty, corrupt or longer than the config's capacity, a profile
    that is corrupt, and a count that no list of its strategy has.
    """
    try:
        history = History.from_bytes(request.records, request.videos)
        check_records(history)
    except ValueError as error:  # UnicodeDecodeError is one
        raise RequestRefused(f"history is corrupt: {error}") from None
    try:
        profile = unpack_attributes(request.profile)
    except ValueError as error:
        raise RequestRefused(f"profile is corrupt: {error}") from None
    if not len(history):
        raise RequestRefused("history is empty, where at least 1 event is wanted")
    if len(history) > config.capacity:
        raise RequestRefused(f"history has {len(history)} events, where the model takes {config.capacity}")
    if request.count < 1:
        raise RequestRefused(f"count is {request.count}, where at least 1 is wanted")
    if request.strategy == "slate" and request.count > MAX_SLATE:
        raise RequestRefused(f"count is {request.count}, where a slate has at most {MAX_SLATE} videos")
    return history, profile


def looks_sound(request: ListRequest, config: ModelConfig) -> bool:
    """Whether `admit` can only refuse the request for what its events or its profile say, as lengths alone tell."""
    events, rest = divmod(len(request.records), RECORD_BYTES)
    most = MAX_SLATE if request.strategy == "slate" else request.count
    return not rest and 1 <= events <= config.capacity and 1 <= request.count <= most


def check_count(count: int, seen: int, videos: int) -> None:
    """RequestRefused if fewer than `count` of the catalog's videos are left when `seen` of them are excluded."""
    left = videos - seen
    if count > left:
        raise RequestRefused(
            f"count is {count}, but {left} of the catalog's {videos} videos are unseen by this user"
        )
