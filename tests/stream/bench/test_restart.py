"""Promises of stream.bench.restart: an event without a list is counted, and a wait is that of the first to serve it."""

from __future__ import annotations

import pytest

from stream.bench.restart import _Arrived, _Sent, _Traffic
from stream.settings import Settings


@pytest.fixture
def traffic() -> _Traffic:
    """Three events of a user and one of another, and what came of them."""
    traffic = _Traffic(Settings(), users=2, rate=1)
    traffic.sent = [_Sent("a", 0, 10.0), _Sent("a", 3, 11.0), _Sent("a", 7, 20.0), _Sent("b", 1, 10.5)]
    traffic.arrived["a"] = [_Arrived("x", 3, 11.5), _Arrived("y", 7, 20.25)]
    return traffic


def test_an_event_that_no_list_serves_is_owed(traffic: _Traffic) -> None:
    """A list serves its user's events up to its offset, and nobody else's."""
    assert traffic.owed() == 1
    traffic.arrived["b"] = [_Arrived("z", 1, 30.0)]
    assert traffic.owed() == 0
    traffic.sent.append(_Sent("b", 2, 31.0))
    assert traffic.owed() == 1


def test_a_wait_ends_with_the_first_list_that_serves_the_event(traffic: _Traffic) -> None:
    """Two events that one list serves wait for the same list; those of another time are left out."""
    traffic.arrived["a"].append(_Arrived("y", 7, 29.0))
    waits = traffic.waits(10.0, 12.0)
    assert (waits.events, waits.p50, waits.most) == (2, 1000.0, 1500.0)
    assert traffic.waits(20.0, 21.0).most == 250.0
    with pytest.raises(RuntimeError, match="no event"):
        traffic.waits(50.0, 60.0)


def test_lists_that_come_twice_or_late_are_counted(traffic: _Traffic) -> None:
    """A list with the id of another, and one that serves less than the one before it."""
    assert (traffic.repeated(), traffic.backward()) == (0, 0)
    traffic.arrived["a"].append(_Arrived("x", 3, 30.0))
    assert (traffic.repeated(), traffic.backward()) == (1, 1)
