"""Promise of mtgr.evaluation.served: the sequences it judges by are those that the daemon holds."""

from __future__ import annotations

from events import EventMaker
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgr.config import BLOCK_EVENTS
from mtgr.evaluation.served import held_history
from mtgr.history import History
from mtgr.presets import PRESETS
from stream.sequences import UserState


@given(count=st.integers(1, 400), blocks=st.integers(1, 6))
@settings(max_examples=60)
def test_a_held_history_is_the_daemons_sequence(count: int, blocks: int) -> None:
    """Event by event or all at once, the same records of the same videos are left."""
    config = PRESETS["tiny"].replace(max_events=blocks * BLOCK_EVENTS)
    events = EventMaker(0, ["u"]).take(count)
    state = UserState("u")
    for offset, event in enumerate(events):
        state.fold(event, offset, 0, None, config.max_events)
    held = held_history(History.from_events(events), config)
    assert held.records.tobytes() == bytes(state.records)
    assert "".join(held.video_ids).encode() == bytes(state.videos)
