"""Short sequences of likes, and what two states must have in common to be the same."""

from __future__ import annotations

from schemas.events import Like
from stream.sequences import UserState

MAX_EVENTS = 32
BLOCK = 16


def fold(state: UserState, count: int, video_id: str = "v") -> None:
    """Fold so many further likes of one video."""
    for _ in range(count):
        offset = state.offset + 1
        state.fold(
            Like(event_id=f"e{offset}", user_id=state.user_id, video_id=video_id, timestamp_ms=offset),
            offset,
            offset,
            None,
            MAX_EVENTS,
        )


def facts(state: UserState | None) -> object:
    """Everything of a state that outlives the process."""
    if state is None:
        return None
    return (
        *(state.user_id, bytes(state.records), bytes(state.videos), state.first_block, state.offset),
        *(state.unserved, state.unserved_since_ms, state.event_id, state.timestamp_ms, state.session_id),
    )
