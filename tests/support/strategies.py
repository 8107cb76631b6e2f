"""Hypothesis strategies for ids and events, with the ids that break naive code."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from schemas.bounds import MAX_ID_CHARACTERS, MAX_SECONDS, MAX_TIMESTAMP_MS, MAX_WATCH_RATIO
from schemas.events import Favorite, Interaction, Like, Share, Watch

ODD_IDS = (
    "u",
    "0",
    ":",
    "1:",
    "\x00",
    "\x00\x00\x00\x00\x00",
    "m",
    "t",
    "b",
    "ü",
    "u\u0308",
    "中文",
    "👩‍👩‍👧‍👦",
    "\u202e",
    " ",
    "\ufffd",
    "\U0010ffff" * MAX_ID_CHARACTERS,
    "x" * MAX_ID_CHARACTERS,
)

identifiers: st.SearchStrategy[str] = st.sampled_from(ODD_IDS) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=MAX_ID_CHARACTERS
)
_counts: dict[str, Any] = {"allow_nan": False, "allow_infinity": False, "min_value": 0}


def events(
    user_ids: st.SearchStrategy[str] = identifiers, event_ids: st.SearchStrategy[str] = identifiers
) -> st.SearchStrategy[Interaction]:
    """Any valid event of these users that becomes part of a sequence, with one of these ids."""
    common: dict[str, Any] = {
        "event_id": event_ids,
        "user_id": user_ids,
        "video_id": identifiers,
        "timestamp_ms": st.integers(0, MAX_TIMESTAMP_MS),
        "session_id": st.none() | identifiers,
    }
    return st.one_of(
        st.builds(
            Watch,
            **common,
            watch_seconds=st.floats(max_value=MAX_SECONDS, **_counts),
            watch_ratio=st.floats(max_value=MAX_WATCH_RATIO, **_counts),
            video_seconds=st.none() | st.floats(max_value=MAX_SECONDS, **_counts),
        ),
        st.builds(Like, **common),
        st.builds(Favorite, **common),
        st.builds(
            Share,
            **common,
            channel=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
        ),
    )
