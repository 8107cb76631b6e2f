"""Promises of schemas.dead_letters."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letters import MAX_MESSAGE_CHARACTERS, DeadLetter, original_headers
from schemas.errors import Stage
from schemas.examples import DEAD_LETTER

letters = st.builds(
    DeadLetter.make,
    topic=st.text(st.characters(codec="ascii"), min_size=1, max_size=20),
    partition=st.integers(0, 10_000),
    offset=st.integers(0, 2**63 - 1),
    stage=st.sampled_from(get_args(Stage)),
    exception_class=st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
    message=st.text(max_size=3_000),
)
headers = st.lists(st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=10)), max_size=4)


@given(letters, headers)
def test_round_trip_beside_the_record_s_own_headers(
    letter: DeadLetter, own: list[tuple[str, bytes | None]]
) -> None:
    """The reason is read back from the headers, and the record's own are there unchanged, repeats and all."""
    dead = [*own, *letter.to_headers()]
    assert DeadLetter.from_headers(dead) == letter
    assert original_headers(dead) == own


@given(letters)
def test_message_is_one_bounded_line(letter: DeadLetter) -> None:
    """A message never breaks a line or grows beyond its bound, whatever the error said."""
    assert len(letter.message) <= MAX_MESSAGE_CHARACTERS
    assert len(letter.message.splitlines()) <= 1


def test_header_names_are_kafka_connect_s() -> None:
    """Tools made for Kafka Connect's dead letters find what they look for."""
    assert [name for name, _ in DEAD_LETTER.to_headers()] == [
        "__connect.errors.topic",
        "__connect.errors.partition",
        "__connect.errors.offset",
        "__connect.errors.stage",
        "__connect.errors.exception.class.name",
        "__connect.errors.exception.message",
    ]


def test_last_death_counts() -> None:
    """A record that was replayed and died again tells of its second death, and keeps no header of the first."""
    second = DeadLetter.make(
        topic="t", partition=0, offset=9, stage="generate", exception_class="Refused", message="too long"
    )
    dead = [*DEAD_LETTER.to_headers(), ("mine", b"1"), *second.to_headers()]
    assert DeadLetter.from_headers(dead) == second
    assert original_headers(dead) == [("mine", b"1")]


@pytest.mark.parametrize("name", [name for name, _ in DEAD_LETTER.to_headers()])
def test_missing_header_is_named(name: str) -> None:
    """A record that is no dead letter says which header it lacks."""
    with pytest.raises(ValueError, match=rf"^header {name} is missing$"):
        DeadLetter.from_headers([header for header in DEAD_LETTER.to_headers() if header[0] != name])


@pytest.mark.parametrize(
    ("name", "value"),
    [("partition", b"-1"), ("offset", b"x"), ("stage", b"lunch"), ("topic", b"\xff"), ("offset", b"")],
)
def test_wrong_header_is_named(name: str, value: bytes) -> None:
    """A header that holds something else is named with what it holds."""
    with pytest.raises(ValueError, match=rf"^header __connect\.errors\.{name} = b'"):
        DeadLetter.from_headers([*DEAD_LETTER.to_headers(), (f"__connect.errors.{name}", value)])
