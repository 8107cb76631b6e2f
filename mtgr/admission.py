"""What a model can serve: the checks every generator makes before a request reaches its forward pass."""

from __future__ import annotations

from mtgr.config import ModelConfig
from mtgr.errors import RequestRefused
from mtgr.features import check_records
from mtgr.history import History
from mtgr.requests import ListRequest


def admit(request: ListRequest, config: ModelConfig) -> History:
    """The request's history, once it is known that the model can serve it.

    Raises RequestRefused for a history that is empty, corrupt or longer than the config's capacity, and for
    a count that the catalog cannot give for certain: at least as many videos must be left as are asked for.
    """
    try:
        history = History.from_bytes(request.records, request.videos)
        check_records(history)
    except ValueError as error:  # UnicodeDecodeError is one
        raise RequestRefused(f"history is corrupt: {error}") from None
    if not len(history):
        raise RequestRefused("history is empty, where at least 1 event is wanted")
    if len(history) > config.capacity:
        raise RequestRefused(f"history has {len(history)} events, where the model takes {config.capacity}")
    if request.count < 1:
        raise RequestRefused(f"count is {request.count}, where at least 1 is wanted")
    return history


def check_count(count: int, seen: int, config: ModelConfig) -> None:
    """RequestRefused if fewer than `count` videos are left when `seen` videos of the catalog are excluded."""
    left = config.n_items - seen
    if count > left:
        raise RequestRefused(
            f"count is {count}, but {left} of the catalog's {config.n_items} videos are unseen by this user"
        )
