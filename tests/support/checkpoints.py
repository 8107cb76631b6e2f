"""The checkpoint that daemons under test serve: tiny, random and the same on every run."""

from __future__ import annotations

from pathlib import Path

from serving import random_checkpoint

MAX_EVENTS = 32
"""Events a cut sequence keeps: few, so that tests see cuts."""
ITEMS = 300


def tiny_checkpoint(directory: Path) -> Path:
    """A checkpoint of random weights for the videos v0, v1, ...; returns its directory."""
    return random_checkpoint(directory, max_events=MAX_EVENTS, n_items=ITEMS)
