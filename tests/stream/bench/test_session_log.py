"""Promises of stream.bench.session_log: every user gets as many events, in sessions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.bench.session_log import SessionLog


@given(st.integers(1, 50), st.integers(1, 30), st.integers(1, 12), st.integers(1, 60))
def test_every_user_has_as_many_events(users: int, events: int, session: int, at_once: int) -> None:
    """Whatever the sizes, the log is whole, and no wave holds more of a user than a session."""
    log = SessionLog(users, events, session_events=session, at_once=at_once)
    waves = list(log.waves())
    counted = np.bincount(np.concatenate(waves), minlength=users)
    assert counted.tolist() == [events] * users
    assert sum(map(len, waves)) == log.events
    assert max(np.bincount(wave).max() for wave in waves) <= session


@pytest.mark.parametrize("seed", [0, 1])
def test_a_log_is_the_same_every_time(seed: int) -> None:
    """A seed stands for one log."""
    first, second = (SessionLog(20, 10, session_events=4, at_once=3, seed=seed) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first.waves(), second.waves(), strict=True))
