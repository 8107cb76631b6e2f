"""Promises of stream.triggers: who is due, when and in which order, as the rules say it and for ever."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stream.triggers import TriggerQueue, TriggerRules

USERS = [f"user-{number}" for number in range(5)]
TICK = 0.125  # sums of ticks are exact, so that a deadline met exactly is a case of its own
ticks = st.integers(0, 12).map(TICK.__mul__)
rules = st.builds(TriggerRules, st.integers(1, 4), ticks, ticks)


@dataclass
class Waiting:
    first: float
    last: float
    count: int


class TriggerMachine(RuleBasedStateMachine):
    """The queue against a dictionary of windows and the rules as DESIGN states them."""

    @initialize(trigger=rules)
    def begin(self, trigger: TriggerRules) -> None:
        self.trigger = trigger
        self.queue = TriggerQueue(trigger)
        self.now = 1_000.0
        self.waiting: dict[str, Waiting] = {}
        self.busy: set[str] = set()

    def _deadline(self, waiting: Waiting) -> float:
        latest = waiting.first + self.trigger.max_wait
        if waiting.count < self.trigger.min_events:
            return latest
        return min(latest, waiting.last + self.trigger.quiet_period)

    def _deadlines(self) -> dict[str, float]:
        return {
            user: self._deadline(waiting) for user, waiting in self.waiting.items() if user not in self.busy
        }

    @rule(seconds=ticks)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(user=st.sampled_from(USERS), events=st.integers(1, 3), apart=st.integers(0, 2))
    def note(self, user: str, events: int, apart: int) -> None:
        for _ in range(events):
            self.queue.note(user, self.now)
            waiting = self.waiting.setdefault(user, Waiting(self.now, self.now, 0))
            waiting.last = self.now
            waiting.count += 1
            self.now += TICK * apart

    @rule()
    def take(self) -> None:
        due = {user: at for user, at in self._deadlines().items() if at <= self.now}
        user = self.queue.take(self.now)
        if not due:
            assert user is None
            return
        assert user in due
        assert due[user] == min(due.values())
        del self.waiting[user]
        self.busy.add(user)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(self.busy)))
        self.queue.release(user)
        self.busy.remove(user)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """What a partition does with a list that could not be published."""
        user = data.draw(st.sampled_from(sorted(self.busy)))
        self.queue.release(user)
        self.queue.owe(user)
        self.busy.remove(user)
        self._owed(user)

    @rule(user=st.sampled_from(USERS))
    def owe(self, user: str) -> None:
        """What a partition does with a list owed from before, when it begins."""
        if user not in self.busy and user not in self.waiting:
            self.queue.owe(user)
            self._owed(user)

    def _owed(self, user: str) -> None:
        before = float("-inf")
        self.waiting[user] = Waiting(before, before, self.trigger.min_events)

    @rule()
    def hurry(self) -> None:
        self.queue.hurry()
        for waiting in self.waiting.values():
            waiting.first = float("-inf")

    @invariant()
    def everyone_is_counted_once(self) -> None:
        assert len(self.queue) == len(self.waiting.keys() | self.busy)

    @invariant()
    def nobody_is_overslept(self) -> None:
        deadlines = self._deadlines().values()
        announced = self.queue.next_deadline()
        assert announced == min(deadlines, default=None)

    def teardown(self) -> None:
        """In the end everyone who waits is taken, once."""
        if not hasattr(self, "queue"):
            return
        for busy in self.busy:
            self.queue.release(busy)
        taken = []
        while (user := self.queue.take(float("inf"))) is not None:
            taken.append(user)
        assert sorted(taken) == sorted(self.waiting)


def test_users_are_due_as_the_rules_say() -> None:
    """Nobody is due early, late, twice or never, and the oldest deadline comes first, in any order of calls."""
    run_state_machine_as_test(
        TriggerMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_a_burst_costs_one_list(gaps: list[int]) -> None:
    """However many events fall into the window, the user is due once for them all."""
    queue, now = TriggerQueue(TriggerRules(1, 1.25, 1e9)), 0.0
    for gap in gaps:
        now += gap * TICK
        queue.note("u", now)
        assert queue.take(now) is None
    assert queue.take(now + 1.25 - TICK) is None
    assert queue.take(now + 1.25) == "u"
    assert queue.take(now + 1e9) is None


def test_a_user_who_never_pauses_is_served_all_the_same() -> None:
    """A user with an event every tick gets a list every max_wait."""
    queue, now, taken = TriggerQueue(TriggerRules(1, 0.5, 2.0)), 0.0, []
    while now < 40:
        queue.note("u", now)
        if queue.take(now) is not None:
            taken.append(now)
            queue.release("u")
        now += TICK
    # the event after a list begins the next window
    assert {later - earlier for earlier, later in pairwise(taken)} == {2.0 + TICK}
    assert taken[-1] > 40 - 2 * (2.0 + TICK)


def test_too_few_events_wait_for_the_longest_time_only() -> None:
    """A user with fewer than min_events is not forgotten: max_wait after the first of them a list is due."""
    queue = TriggerQueue(TriggerRules(3, 0.5, 10.0))
    queue.note("u", 0.0)
    queue.note("u", 1.0)
    assert queue.take(9.875) is None
    assert queue.take(10.0) == "u"


def test_events_during_a_list_are_due_by_their_own_arrival() -> None:
    """What comes while a user's list is made waits for its own quiet period, not for another one after the list."""
    queue = TriggerQueue(TriggerRules(1, 1.0, 5.0))
    queue.note("u", 0.0)
    assert queue.take(1.0) == "u"
    queue.note("u", 2.0)
    assert queue.take(100.0) is None
    queue.release("u")
    assert queue.next_deadline() == 3.0
    assert queue.take(3.0) == "u"


@given(rules, st.integers(1, 3))
@settings(max_examples=30)
def test_memory_does_not_grow_with_time(rules: TriggerRules, failures: int) -> None:
    """After any number of lists, what the queue keeps is bounded by the users who wait, not by the past."""
    queue, now = TriggerQueue(rules), 0.0
    longest = 0
    for number in range(1_500):
        now += TICK
        queue.note(USERS[number % len(USERS)], now)
        queue.note(USERS[number % 2], now)
        while (user := queue.take(now)) is not None:
            queue.release(user)
            if number % 7 < failures:
                queue.owe(user)
                break
        if number > 500:
            longest = max(longest, len(queue._heap))
    assert longest < 2 * len(USERS) + 100


@given(st.floats(0, 1e8), st.floats(0, 3_600), st.floats(0, 3_600))
def test_what_is_owed_from_before_comes_first(now: float, quiet_period: float, max_wait: float) -> None:
    """A list owed since before the start is due at once and before all others, whatever the clock and the rules."""
    queue = TriggerQueue(TriggerRules(1, quiet_period, max_wait))
    queue.note("a", 0.0)
    queue.owe("u")
    assert queue.take(now) == "u"
