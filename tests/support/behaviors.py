"""Behaviours as an application reports them: plausible, seeded, and as odd as hypothesis makes them."""

from __future__ import annotations

import random
from typing import Any

from checkpoints import ITEMS
from hypothesis import strategies as st
from strategies import identifiers

from schemas.bounds import MAX_SECONDS, MAX_TIMESTAMP_MS

NOW_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC


def behavior(video_id: str = "v1", **fields: Any) -> dict[str, Any]:
    """One valid behaviour, with whatever fields the test is about."""
    return {"video_id": video_id, "watch_duration": 25.0, "watch_percentage": 0.83} | fields


def behaviors_of(seed: int, count: int) -> list[dict[str, Any]]:
    """What one user did, some of it with times and flags, one video in twenty outside the catalog."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        fields: dict[str, Any] = {
            "watch_duration": round(chance.uniform(0, 60), 1),
            "watch_percentage": round(chance.uniform(0, 1.5), 2),
        }
        for flag in ("is_liked", "is_favorited", "is_shared"):
            if chance.random() < 0.3:
                fields[flag] = chance.random() < 0.5
        if chance.random() < 0.5:
            fields["timestamp_ms"] = NOW_MS + 60_000 * number
        video = f"v{chance.randrange(ITEMS)}" if chance.random() < 0.95 else f"new{number}"
        made.append(behavior(video, **fields))
    return made


behaviors: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "video_id": st.sampled_from(("v0", "v1", "v2")) | identifiers,
        # few values, so that behaviours come again
        "watch_duration": st.sampled_from((0, 1.5, 30)) | st.floats(0, MAX_SECONDS),
        "watch_percentage": st.sampled_from((0, 0.5, 1)) | st.floats(0, 10),
    },
    optional={
        "is_liked": st.booleans(),
        "is_favorited": st.booleans(),
        "is_shared": st.booleans(),
        "timestamp_ms": st.none() | st.integers(0, MAX_TIMESTAMP_MS),
    },
)
