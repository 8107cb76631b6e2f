"""Checkpoints for tests: tiny, random and the same on every run."""

from __future__ import annotations

from pathlib import Path

import torch

from mtgr.catalog import Catalog
from mtgr.checkpoint import save_checkpoint
from mtgr.config import PRESETS
from mtgr.model.mtgr import MTGR

MAX_EVENTS = 32
"""Events a cut sequence keeps: few, so that tests see cuts."""
ITEMS = 300


def tiny_checkpoint(
    directory: Path, *, seed: int = 0, items: int = ITEMS, max_events: int = MAX_EVENTS
) -> Path:
    """A checkpoint of random weights for the videos v0, v1, ...; returns its directory."""
    config = PRESETS["tiny"].replace(
        d_model=32, d_qk=16, d_v=16, max_events=max_events, n_items=items, unknown_buckets=8
    )
    catalog = Catalog([f"v{number}" for number in range(items)], config.unknown_buckets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = MTGR(config).state_dict()
    save_checkpoint(directory, "tiny", config, catalog, weights)
    return directory
