"""Promises of schemas.codecs: what is valid goes through unchanged, and what is not names its fault."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES
from schemas.bounds import MAX_ID_CHARACTERS, MAX_SECONDS, MAX_TIMESTAMP_MS, MAX_WATCH_RATIO
from schemas.codecs import (
    JSON,
    MESSAGEPACK,
    decode_event,
    decode_list,
    decode_video,
    encode_event,
    encode_list,
    encode_video,
)
from schemas.errors import (
    InvalidEvent,
    MalformedEvent,
    UndecodableEvent,
    UndecodableList,
    UndecodableVideo,
    UnsupportedContentType,
)
from schemas.events import Event, Favorite, Like, Profile, Share, Watch
from schemas.examples import EVENTS, RECOMMENDATIONS, VIDEO
from schemas.videos import Video

HEADERS = {JSON: [None, b"", b"application/json"], MESSAGEPACK: [b"application/msgpack"]}
WATCH = json.loads(encode_event(EVENTS["watch"]))
PROFILE = json.loads(encode_event(EVENTS["profile"]))

identifiers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_ID_CHARACTERS)
numbers = {"allow_nan": False, "allow_infinity": False, "min_value": 0}
common = {
    "event_id": identifiers,
    "user_id": identifiers,
    "video_id": identifiers,
    "timestamp_ms": st.integers(0, MAX_TIMESTAMP_MS),
    "session_id": st.none() | identifiers,
}
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_ATTRIBUTE_CHARACTERS)
attributes = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    texts | st.floats(allow_nan=False, allow_infinity=False) | st.lists(texts, max_size=MAX_ATTRIBUTE_VALUES),
    max_size=8,
)
profiles = st.builds(
    Profile,
    event_id=identifiers,
    user_id=identifiers,
    timestamp_ms=st.integers(0, MAX_TIMESTAMP_MS),
    attributes=attributes,
)
videos = st.builds(
    Video,
    video_id=identifiers,
    attributes=attributes,
    timestamp_ms=st.none() | st.integers(0, MAX_TIMESTAMP_MS),
)
events: st.SearchStrategy[Event] = st.one_of(
    profiles,
    st.builds(
        Watch,
        **common,
        watch_seconds=st.floats(max_value=MAX_SECONDS, **numbers),
        watch_ratio=st.floats(max_value=MAX_WATCH_RATIO, **numbers),
        video_seconds=st.none() | st.floats(max_value=MAX_SECONDS, **numbers),
    ),
    st.builds(Like, **common),
    st.builds(Favorite, **common),
    st.builds(
        Share, **common, channel=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
    ),
)
content_types = st.sampled_from([JSON, MESSAGEPACK])


@given(events, content_types)
def test_round_trip_of_events(event: Event, content_type: Any) -> None:
    """Every valid event is read back as it was written, in both formats."""
    encoded = encode_event(event, content_type)
    assert all(decode_event(encoded, header) == event for header in HEADERS[content_type])


@given(videos, content_types)
def test_round_trip_of_videos(video: Video, content_type: Any) -> None:
    """Every valid video is read back as it was written, in both formats."""
    encoded = encode_video(video, content_type)
    assert all(decode_video(encoded, header) == video for header in HEADERS[content_type])


@given(st.sampled_from([JSON, MESSAGEPACK]))
def test_round_trip_of_lists(content_type: Any) -> None:
    """A recommendation list is read back as it was written, in both formats."""
    assert decode_list(encode_list(RECOMMENDATIONS, content_type), content_type.encode()) == RECOMMENDATIONS


@given(
    st.one_of(
        st.none(),
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
        ).map(msgspec.msgpack.encode),
        events.map(lambda event: encode_event(event)[:-1]),
        events.map(lambda event: encode_event(event, MESSAGEPACK)[:-1]),
    ),
    st.sampled_from([None, b"application/json", b"application/msgpack"]) | st.binary(max_size=20),
)
@example(b'{"type":"watch","x":' + b"[" * 500_000, None)
@example(b'{"a":' * 100_000, b"application/json")
@example(b"\x82\xa4type\xa5watch\xa1x" + b"\x91" * 500_000, b"application/msgpack")
@example(b'{"type":"like","event_id":"\xed\xa0\x80"}', None)
@example(b'{"type":"like","event_id":"\\ud800"}', None)
@example(b'{"type":"watch","watch_seconds":1e999}', None)
@example(b'{"type":"watch","watch_seconds":' + b"9" * 5_000 + b"}", None)
@example(b"\x81\x81\x90\x01\x01", b"application/msgpack")
@example(b"\xef\xbb\xbf{}", None)
def test_any_bytes_are_an_event_or_refused(value: bytes | None, content_type: bytes | None) -> None:
    """Whatever stands in the topic is an event or an UndecodableEvent of one line: nothing else escapes."""
    outcome: Event | UndecodableEvent
    try:
        outcome = decode_event(value, content_type)
    except UndecodableEvent as error:
        outcome = error
    if isinstance(outcome, UndecodableEvent):
        assert len(str(outcome).splitlines()) == 1
        assert outcome.stage in {"decode", "validate"}
    else:
        assert isinstance(outcome, Watch | Like | Favorite | Share | Profile)


wrong_values = {
    "event_id": ["", "x" * (MAX_ID_CHARACTERS + 1), 7, None, ["e"]],
    "user_id": ["", "x" * (MAX_ID_CHARACTERS + 1), 7, None, {"id": "u"}],
    "video_id": ["", 7, None],
    "timestamp_ms": [-1, MAX_TIMESTAMP_MS + 1, "1700000000000", 1.5, None, True, 2**63],
    "watch_seconds": [-0.1, MAX_SECONDS * 2, "3", None, True],
    "watch_ratio": [-0.1, MAX_WATCH_RATIO * 2, "3", None],
    "video_seconds": [-1, MAX_SECONDS * 2, "3"],
    "session_id": ["", 7, "x" * (MAX_ID_CHARACTERS + 1)],
    "schema_version": [0, 2, "1", None],
    "type": ["view", "", 3, None],
}


@pytest.mark.parametrize("content_type", [JSON, MESSAGEPACK])
@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in wrong_values.items() for value in values]
)
def test_wrong_field_is_named_with_its_value(field: str, value: object, content_type: str) -> None:
    """An event with one wrong field is invalid, and the message starts with that field and shows the value."""
    encode = msgspec.json.encode if content_type == JSON else msgspec.msgpack.encode
    with pytest.raises(InvalidEvent) as caught:
        decode_event(encode(WATCH | {field: value}), content_type.encode())
    assert caught.value.stage == "validate"
    assert str(caught.value).startswith(f"{field} = ")
    assert ": expected " in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["watch_seconds", "watch_ratio", "video_seconds"])
def test_number_that_is_none_is_refused(field: str, value: float) -> None:
    """NaN and the infinities, which MessagePack can carry, are out of every bound."""
    with pytest.raises(InvalidEvent, match=rf"^{field} = "):
        decode_event(msgspec.msgpack.encode(WATCH | {field: value}), b"application/msgpack")


@pytest.mark.parametrize(
    "field", ["type", "event_id", "user_id", "video_id", "timestamp_ms", "watch_seconds", "watch_ratio"]
)
def test_missing_field_is_named(field: str) -> None:
    """An event that lacks a field says which one, and what it should be."""
    lacking = {name: value for name, value in WATCH.items() if name != field}
    with pytest.raises(InvalidEvent, match=rf"^{field} is missing: expected "):
        decode_event(json.dumps(lacking).encode())


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        (
            {"age": True},
            "attributes.age = true: expected a string of 1 to 128 characters or a number or a list",
        ),
        ({"ok": 1, "age": None}, "attributes.age = null: expected"),
        ({"age": ""}, 'attributes.age = "": expected'),
        ({"tags": [1]}, "attributes.tags = [1]: expected"),
        ({"tags": ["x" * (MAX_ATTRIBUTE_CHARACTERS + 1)]}, "attributes.tags = "),
        ({"tags": ["x"] * (MAX_ATTRIBUTE_VALUES + 1)}, "attributes.tags = "),
        ({"": 1}, 'attributes: the name "": expected a string of 1 to 64 characters'),
        (
            {f"a{number}": 1 for number in range(MAX_ATTRIBUTES + 1)},
            "attributes = {",
        ),
        ([], "attributes = []: expected an object of at most 64 names"),
    ],
)
@pytest.mark.parametrize("content_type", [JSON, MESSAGEPACK])
def test_wrong_attribute_is_named_with_its_value(attributes: Any, fault: str, content_type: str) -> None:
    """Of a profile's or a video's many attributes the message names the one that is wrong."""
    encode = msgspec.json.encode if content_type == JSON else msgspec.msgpack.encode
    with pytest.raises(InvalidEvent) as refused_profile:
        decode_event(encode(PROFILE | {"attributes": attributes}), content_type.encode())
    with pytest.raises(UndecodableVideo) as refused_video:
        decode_video(encode({"video_id": "v", "attributes": attributes}), content_type.encode())
    assert str(refused_profile.value).startswith(fault)
    assert str(refused_video.value) == str(refused_profile.value)


@given(st.none() | st.binary(max_size=100), st.sampled_from([None, b"application/msgpack"]) | st.binary())
@example(None, None)
@example(b"", None)
@example(b'{"video_id":""}', None)
@example(b'{"attributes":{}}', None)
@example(b"[" * 500_000, None)
@example(b"{}", b"text/html")
def test_any_bytes_are_a_video_or_refused(value: bytes | None, content_type: bytes | None) -> None:
    """Whatever stands in the videos topic is a video or an UndecodableVideo of one line: nothing else escapes."""
    outcome: Video | UndecodableVideo
    try:
        outcome = decode_video(value, content_type)
    except UndecodableVideo as error:
        outcome = error
    assert isinstance(outcome, Video) or len(str(outcome).splitlines()) == 1


def test_video_needs_no_more_than_its_id() -> None:
    """A video of which nothing is known is a video, and none shares its attributes with another."""
    bare = decode_video(b'{"video_id":"v"}')
    assert (bare.attributes, bare.timestamp_ms) == ({}, None)
    assert encode_video(bare) == b'{"video_id":"v"}'
    assert decode_video(encode_video(VIDEO), b"application/json; charset=utf-8") == VIDEO


def test_long_value_is_cut_in_the_message() -> None:
    """A message stays short, however long the value that it is about."""
    with pytest.raises(InvalidEvent) as caught:
        decode_event(json.dumps(WATCH | {"user_id": "u" * 50_000}).encode())
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [None, b""])
def test_tombstone_and_empty_value_are_malformed(value: bytes | None) -> None:
    """A record without a value is no event."""
    with pytest.raises(MalformedEvent, match="expected an event"):
        decode_event(value)


@pytest.mark.parametrize(
    "header",
    [
        b"application/json; charset=utf-8",
        b"Application/JSON",
        b" application/json ",
        b"application/json;charset=UTF-8;v=1",
    ],
)
def test_spellings_of_json(header: bytes) -> None:
    """Capitals, blanks and parameters of a content type make no difference."""
    assert decode_event(encode_event(EVENTS["share"]), header) == EVENTS["share"]


@pytest.mark.parametrize(
    "header", [b"application/x-msgpack", b"application/vnd.msgpack", b"application/msgpack; v=1"]
)
def test_spellings_of_messagepack(header: bytes) -> None:
    """The names that MessagePack had before it was registered are taken too."""
    assert decode_event(encode_event(EVENTS["share"], MESSAGEPACK), header) == EVENTS["share"]


@pytest.mark.parametrize("header", [b"text/plain", b"application/avro", b"\xff\xfe", b"json"])
def test_unknown_content_type_is_refused(header: bytes) -> None:
    """A value of another format is not guessed at; the message names the header and the formats there are."""
    with pytest.raises(UnsupportedContentType, match=r"^header content-type = .* application/msgpack$"):
        decode_event(encode_event(EVENTS["like"]), header)


def test_fields_of_later_producers_are_ignored() -> None:
    """A field that this version does not know is no error, so that producers can be updated first."""
    assert decode_event(json.dumps(WATCH | {"device": {"os": "x"}}).encode()) == EVENTS["watch"]


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"list_id":""}', b"\xff"])
@pytest.mark.parametrize("header", [None, b"application/msgpack", b"text/html"])
def test_broken_list_is_refused(value: bytes | None, header: bytes | None) -> None:
    """What is no recommendation list is refused by one kind of error, which says why."""
    with pytest.raises(UndecodableList) as caught:
        decode_list(value, header)
    assert str(caught.value)
