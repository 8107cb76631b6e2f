"""What tests of serving share: checkpoints in which every weight matters, requests, and what equal lists are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtgr.catalog import Catalog
from mtgr.checkpoint import save_checkpoint
from mtgr.history import event_digest, pack_event
from mtgr.model.mtgr import MTGR
from mtgr.presets import PRESETS
from mtgr.requests import ListOutcome, ListRequest, ListResult
from schemas.events import Event

TOLERANCE = 1e-4
ITEMS = 500


def random_checkpoint(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of a small model none of whose weights is zero, one or shared; returns its directory."""
    sizes = {"d_model": 32, "d_qk": 16, "d_v": 8, "d_ff": 24, "max_events": 64, "n_items": ITEMS}
    config = PRESETS["tiny"].replace(**(sizes | {"unknown_buckets": 8} | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = {
            name: tensor + 0.2 * torch.randn_like(tensor)
            for name, tensor in MTGR(config).state_dict().items()
        }
    catalog = Catalog([f"v{number}" for number in range(config.n_items)], config.unknown_buckets)
    save_checkpoint(directory, "random", config, catalog, weights)
    return directory


def list_request(events: Sequence[Event], count: int = 10) -> ListRequest:
    """The request of one user's events, packed as the daemon packs them."""
    videos = [event.video_id.encode() for event in events]
    records = b"".join(
        pack_event(event, event_digest(event.event_id), video)
        for event, video in zip(events, videos, strict=True)
    )
    return ListRequest(events[0].user_id if events else "nobody", records, b"".join(videos), count)


def assert_same_lists(got: Sequence[ListOutcome], wanted: Sequence[ListOutcome]) -> None:
    """Same videos in the same order with the same scores; videos may change places only where they tie."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        if not isinstance(theirs, ListResult):
            assert ours == theirs
            continue
        assert isinstance(ours, ListResult), ours
        assert len(ours.video_ids) == len(set(ours.video_ids)) == len(theirs.video_ids)
        assert ours.sequence_length == theirs.sequence_length
        worst = max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True))
        assert worst < TOLERANCE, f"scores differ by {worst}"
        score_of = dict(zip(theirs.video_ids, theirs.scores, strict=True))
        for video, score in zip(ours.video_ids, ours.scores, strict=True):
            # a video that the other list does not have can only tie with its last one
            assert abs(score_of.get(video, theirs.scores[-1]) - score) < TOLERANCE, video
