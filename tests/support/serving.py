"""What tests of serving share: checkpoints in which every weight matters, requests, and what equal lists are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mtgr.attributes import pack_attributes
from mtgr.catalog import Catalog
from mtgr.checkpoint import save_checkpoint
from mtgr.history import event_digest, pack_event
from mtgr.model.mtgr import MTGR
from mtgr.presets import PRESETS
from mtgr.requests import ListOutcome, ListRequest, ListResult, Strategy
from schemas.events import Interaction

TOLERANCE = 1e-4
ITEMS = 500
SPARE = 7

MODELS: dict[str, dict[str, Any]] = {
    # what most presets ask for
    "plain": {},
    # all that a config may ask for and an engine serves, and ranking heads, which it does not load
    "everything": {
        "position_bias": True,
        "time_bias": True,
        "item_bias": True,
        "spare_items": SPARE,
        "ranking": ["like", "share"],
        "video_categories": [{"name": "tags", "size": 16, "values": 3}, {"name": "author", "size": 40}],
        "video_numbers": [{"name": "seconds", "log": True, "mean": 3.0}],
        "user_categories": [{"name": "country", "size": 8}],
        "user_numbers": [{"name": "age", "mean": 30.0, "scale": 10.0}],
    },
    # the other side of each choice
    "bare": {
        "positions": "none",
        "position_bias": True,
        "group_norm": False,
        "similarity": "dot",
        "temperature": 5.0,
        "d_ff": 0,
        "spare_items": SPARE,
        "discrete": [],
        "user_numbers": [{"name": "age", "mean": 30.0, "scale": 10.0}],
    },
}
"""What models differ in, by a name for each."""


def little_memory(kv_cache_gib: float) -> dict[str, float]:
    """Options of an engine beside which others fit: its cache, and on a GPU the share that vLLM looks for."""
    return {"kv_cache_gib": kv_cache_gib} | ({"memory_utilization": 0.1} if torch.cuda.is_available() else {})


def random_checkpoint(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of a small model none of whose weights is zero, one or shared; returns its directory."""
    sizes = {"d_model": 32, "d_qk": 16, "d_v": 8, "d_ff": 24, "max_events": 64, "n_items": ITEMS}
    config = PRESETS["tiny"].replace(**(sizes | {"unknown_buckets": 8} | changes))
    catalog = Catalog(
        [f"v{number}" for number in range(config.n_items)], config.unknown_buckets, config.spare_items
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MTGR(config)
        for name, parameter in model.named_parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
            if name.endswith("attributes.categories.weight"):
                parameter.data[0] = 0.0  # of a value that is not known
    chance = random.Random(seed)
    known = {video: video_attributes(chance) for video in catalog.video_ids if chance.random() < 0.8}
    model.embeddings.video.describe(catalog, known, config)
    save_checkpoint(directory, "random", config, catalog, model.state_dict())
    return directory


def video_attributes(chance: random.Random) -> dict[str, Any]:
    """What may be known of a video, more or less of it."""
    attributes = {
        "tags": chance.sample(["sport", "music", "food", "news", "art"], chance.randrange(5)),
        "author": f"author{chance.randrange(30)}",
        "seconds": chance.expovariate(0.02),
    }
    return {name: value for name, value in attributes.items() if chance.random() < 0.9}


def user_attributes(chance: random.Random) -> dict[str, Any]:
    """What may be known of a user, more or less of it."""
    attributes = {"country": chance.choice(["de", "fr", "jp"]), "age": chance.randint(10, 90)}
    return {name: value for name, value in attributes.items() if chance.random() < 0.7}


def list_request(
    events: Sequence[Interaction],
    count: int = 10,
    strategy: Strategy = "topk",
    profile: Mapping[str, Any] | None = None,
) -> ListRequest:
    """The request of one user's events, packed as the daemon packs them."""
    videos = [event.video_id.encode() for event in events]
    records = b"".join(
        pack_event(event, event_digest(event.event_id), video)
        for event, video in zip(events, videos, strict=True)
    )
    user = events[0].user_id if events else "nobody"
    return ListRequest(user, records, b"".join(videos), count, strategy, pack_attributes(profile or {}))


def assert_same_lists(got: Sequence[ListOutcome], wanted: Sequence[ListOutcome]) -> None:
    """Same videos in the same order with the same scores; videos may change places only where they tie."""
    for ours, theirs in _alike(got, wanted):
        worst = max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True))
        assert worst < TOLERANCE, f"scores differ by {worst}"
        score_of = dict(zip(theirs.video_ids, theirs.scores, strict=True))
        for video, score in zip(ours.video_ids, ours.scores, strict=True):
            # a video that the other list does not have can only tie with its last one
            assert abs(score_of.get(video, theirs.scores[-1]) - score) < TOLERANCE, video


def assert_same_slates(got: Sequence[ListOutcome], wanted: Sequence[ListOutcome]) -> None:
    """Same videos in the same order with the same scores, as far as none of them ties with another."""
    for ours, theirs in _alike(got, wanted):
        for place, (one, other) in enumerate(zip(ours.scores, theirs.scores, strict=True)):
            assert abs(one - other) < TOLERANCE, f"scores at place {place} are {one} and {other}"
            if ours.video_ids[place] != theirs.video_ids[place]:
                break  # either may be first, and what follows depends on it


def _alike(
    got: Sequence[ListOutcome], wanted: Sequence[ListOutcome]
) -> Iterator[tuple[ListResult, ListResult]]:
    """The pairs of lists, once they are as long and of as long sequences; refusals must be equal."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        if not isinstance(theirs, ListResult):
            assert ours == theirs
            continue
        assert isinstance(ours, ListResult), ours
        assert len(ours.video_ids) == len(set(ours.video_ids)) == len(theirs.video_ids)
        assert ours.sequence_length == theirs.sequence_length
        yield ours, theirs
