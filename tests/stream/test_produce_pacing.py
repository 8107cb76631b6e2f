"""Events are sent as fast as was asked for, by a clock that is handed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.tools.pacing import BURST_SECONDS, LogPace, Pace, RatePace, Unpaced


def sent_at(pace: Pace, times_ms: list[int], stall_at: int = -1, stall: float = 0.0) -> list[float]:
    """When each event goes, if the sender always waits for as long as it is told; one may take longer."""
    now, moments = 100.0, []
    for number, time in enumerate(times_ms):
        now += max(pace.delay(now, time), 0.0)
        moments.append(now)
        if number == stall_at:
            now += stall
    return moments


@given(rate=st.floats(0.1, 10_000), count=st.integers(2, 200))
def test_a_rate_is_kept_from_the_first_event_on(rate: float, count: int) -> None:
    """Without a stall, event n goes n intervals after the first, which goes at once."""
    moments = sent_at(RatePace(rate), [0] * count)
    assert moments[0] == 100.0
    assert moments[-1] - moments[0] == pytest.approx((count - 1) / rate)


@given(rate=st.floats(1, 10_000), stall=st.floats(0, 1_000))
def test_a_stall_is_made_up_for_by_a_short_burst_only(rate: float, stall: float) -> None:
    """After a stall, no window holds more events than the rate and one burst allow."""
    moments = sent_at(RatePace(rate), [0] * 300, stall_at=50, stall=stall)
    after = moments[51:]
    for number, moment in enumerate(after):
        allowed = (moment - after[0] + BURST_SECONDS) * rate + 1
        assert number <= allowed + 1e-6


@given(
    times=st.lists(st.integers(0, 10**9), min_size=1, max_size=50).map(sorted), speedup=st.floats(0.01, 1_000)
)
def test_log_speed_keeps_the_gaps_of_the_log(times: list[int], speedup: float) -> None:
    """Each event goes as long after the first as in the log, over the speed-up."""
    moments = sent_at(LogPace(speedup), times)
    for moment, time in zip(moments, times, strict=True):
        assert moment - 100.0 == pytest.approx((time - times[0]) / 1000 / speedup, abs=1e-6)


def test_log_speed_catches_up_after_a_stall() -> None:
    """What a stall kept back goes at once, and then the log's times hold again."""
    moments = sent_at(LogPace(), [0, 1_000, 2_000, 60_000], stall_at=0, stall=10.0)
    assert moments == [100.0, 110.0, 110.0, 160.0]


def test_no_pace_never_waits() -> None:
    """Unpaced events go at once."""
    assert sent_at(Unpaced(), [0, 10**9]) == [100.0, 100.0]
