"""Small logs and configs to train with."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from events import watch

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.history import History
from mtgr.presets import PRESETS
from mtgr.training.batches import Batch, Batcher
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import Windows, make_windows
from schemas.events import Event, Like

CONFIG = PRESETS["tiny"].replace(d_model=32, d_qk=16, d_v=16, max_events=32, n_items=10, unknown_buckets=4)
WORDS = "abcdefghij"
CATALOG = Catalog(WORDS, 4)
QUICK: dict[str, Any] = {"batch_tokens": 400, "negatives": 64, "min_steps": 0, "device": "cpu"}
PLAIN = TrainingOptions(unknown_share=0.0, cold_share=0.0, bare_share=0.0)
"""Options that show everything as it is."""


def words(videos: str, user_id: str = "u", **fields: Any) -> list[Event]:
    """A watch for each letter, a like for each capital, a second apart."""
    return [
        watch(user_id, f"{user_id}{place}", video_id=video, timestamp_ms=1_000 * place, **fields)
        if video.islower()
        else Like(
            event_id=f"{user_id}{place}", user_id=user_id, video_id=video.lower(), timestamp_ms=1_000 * place
        )
        for place, video in enumerate(videos)
    ]


def histories(*of_users: str, **fields: Any) -> dict[str, History]:
    """The histories of users u0, u1, ..., each of `words`."""
    return {
        f"u{number}": History.from_events(words(videos, f"u{number}", **fields))
        for number, videos in enumerate(of_users)
    }


def series(users: int = 120, videos: int = 60, length: int = 12, seed: int = 0) -> list[Event]:
    """Users who watch a series in order, each from a place of their own: the next video is certain."""
    chance = random.Random(seed)
    events: list[Event] = []
    for user in range(users):
        first = chance.randrange(videos)
        events += [
            watch(f"u{user}", f"{user}-{place}", video_id=f"v{(first + place) % videos}", timestamp_ms=place)
            for place in range(length)
        ]
    return events


def batch_of(
    learnt: Mapping[str, History],
    config: ModelConfig = CONFIG,
    options: TrainingOptions = PLAIN,
    catalog: Catalog = CATALOG,
    number: int = 0,
) -> tuple[Batch, Windows]:
    """All windows of these histories in one batch."""
    windows = make_windows(learnt, config, catalog, options)
    batcher = Batcher(windows, catalog, config, options)
    return batcher.batch(np.arange(len(windows)), 0, number), windows
