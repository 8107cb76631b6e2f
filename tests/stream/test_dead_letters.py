"""Promises of stream.dead_letters: a dead record is kept whole with its reason, and never too many of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letters import DeadLetter, original_headers
from schemas.lists import TriggerEvent
from stream.dead_letters import DeadLetterGuard, DeadRecord
from stream.errors import Fatal

TP = TopicPartition("user-events", 3)

shares = st.integers(1, 16).map(lambda sixteenths: sixteenths / 16)


@dataclass(frozen=True)
class Record:
    key: bytes | None = b"u"
    value: bytes | None = b"{}"
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 5
    offset: int = 17


headers = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), st.none() | st.binary(max_size=20)),
    max_size=4,
)


@given(st.none() | st.binary(), st.none() | st.binary(), headers, st.text(max_size=2_000))
def test_a_dead_record_is_kept_whole(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], message: str
) -> None:
    """Key, value, time and headers stay as they were, and the reason reads back from the headers beside them."""
    dead = DeadRecord.of(TP, Record(key, value, tuple(headers)), "decode", "MalformedEvent", message)
    assert (dead.key, dead.value, dead.timestamp_ms) == (key, value, 5)
    assert dead.all_headers()[: len(headers)] == headers
    assert original_headers(dead.all_headers()) == headers
    letter = DeadLetter.from_headers(dead.all_headers())
    assert (letter.topic, letter.partition, letter.offset) == ("user-events", 3, 17)
    assert (letter.stage, letter.exception_class) == ("decode", "MalformedEvent")
    assert "\n" not in letter.message


TRIGGER = TriggerEvent("user-events", 3, 17, "e", 9)


def test_a_refused_list_buries_the_event_it_was_for() -> None:
    """The dead letter of a refused list is the event that it was due after, whole."""
    record = Record(headers=(("a", b"b"),))
    dead = DeadRecord.of_trigger(TRIGGER, "u", record, "RequestRefused", "too long")
    assert (dead.key, dead.value, dead.timestamp_ms, dead.headers) == (b"u", b"{}", 5, (("a", b"b"),))
    assert dead.letter.stage == "generate"


def test_a_refused_list_whose_event_is_gone_still_names_its_place() -> None:
    """Where Kafka has lost the event, the dead letter still says whose it was and where it stood."""
    dead = DeadRecord.of_trigger(TRIGGER, "u", None, "RequestRefused", "too long")
    assert (dead.key, dead.value, dead.timestamp_ms) == (b"u", None, 9)
    assert (dead.letter.partition, dead.letter.offset) == (3, 17)


@given(st.integers(0, 3_000), st.sampled_from([0, 1, 100, 1_000, 70_000]))
def test_a_dead_letter_fits_its_topic(value_bytes: int, max_bytes: int) -> None:
    """Of a record too large for the topic as much is kept as fits, and always the reason."""
    record = Record(b"k" * 40, b"v" * value_bytes, (("h", b"x" * 30),))
    dead = DeadRecord.of(TP, record, "decode", "OversizedEvent", "m")
    fitting = dead.fitting(max_bytes)
    assert fitting.letter == dead.letter
    assert fitting.value in (dead.value, None)
    if fitting.value is None and value_bytes:
        assert dead._nbytes() > max_bytes
    if fitting.key is not None:
        assert fitting._nbytes() <= max_bytes


# ---- the guard

batches = st.lists(
    st.integers(1, 5_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=40
)


@given(batches, st.integers(1, 2_000), shares)
def test_a_tolerable_share_never_stops_the_daemon(
    batches: list[tuple[int, int]], window: int, share: float
) -> None:
    """As long as no batch has more dead letters than the limit allows, the daemon goes on, whatever their sizes."""
    guard = DeadLetterGuard("records", window, share)
    for seen, dead in batches:
        guard.count(seen, min(dead, int(seen * share)))


@given(batches, st.integers(1, 2_000))
def test_a_limit_of_one_never_stops_the_daemon(batches: list[tuple[int, int]], window: int) -> None:
    """With a share limit of 1 even a topic of nothing but dead letters is read to its end."""
    guard = DeadLetterGuard("records", window, 1.0)
    for seen, _ in batches:
        guard.count(seen, seen)


def stopped_by(guard: DeadLetterGuard) -> bool:
    try:
        guard.count(1, 1)
    except Fatal:
        return True
    return False


@given(st.integers(1, 2_000), shares.filter(lambda share: share < 1), st.integers(0, 5_000))
def test_a_dying_topic_is_stopped_in_time(window: int, share: float, healthy: int) -> None:
    """A topic whose every record dies loses one window's share, or two if it was healthy before."""
    guard = DeadLetterGuard("records", window, share)
    for _ in range(healthy):
        guard.count(1, 0)
    dead = 1
    while not stopped_by(guard):
        dead += 1
    allowed = int(share * window)
    assert dead <= (2 if healthy else 1) * (allowed + 1)
    assert dead > allowed


def test_the_message_says_what_to_look_at() -> None:
    """The last words of a daemon that stops over dead letters name counts, settings and a suspect."""
    guard = DeadLetterGuard("records", 10, 0.5)
    with pytest.raises(
        Fatal, match=r"6 of the last 8 records .* 50% of 10 .*dead_letter_share_limit.*producer"
    ):
        guard.count(8, 6)
    with pytest.raises(Fatal, match=r"6 of the last 6 lists .*checkpoint"):
        DeadLetterGuard("lists", 10, 0.5).count(6, 6)
