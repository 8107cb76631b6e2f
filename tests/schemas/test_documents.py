"""Promises of schemas.documents: what is published of the wire is what the codecs do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from schemas.codecs import (
    decode_event,
    decode_instruction,
    decode_list,
    decode_video,
    encode_event,
    encode_list,
    encode_video,
)
from schemas.documents import COMMAND, DIRECTORY, documents, main, stale
from schemas.errors import InvalidEvent
from schemas.examples import DEAD_LETTER, EVENTS, FORGET, RECOMMENDATIONS, VIDEO

ASYNCAPI: dict[str, Any] = json.loads(documents()["asyncapi.json"])
SCHEMAS = {name: json.loads(text) for name, text in documents().items() if name.endswith(".schema.json")}
WATCH = json.loads(encode_event(EVENTS["watch"]))


def test_committed_documents_are_those_of_the_types() -> None:
    """The files in the repository say what the types say."""
    assert stale(DIRECTORY) == [], f"run {COMMAND}"


def test_check_names_what_is_out_of_date_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check fails on drift and says how to mend it; without it the files are written, and --check passes."""
    assert main(["--check"], tmp_path) == 1
    assert not list(tmp_path.iterdir())
    assert f"run {COMMAND}" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "asyncapi.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1
    assert "asyncapi.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schemas_are_valid_json_schema(name: str) -> None:
    """Each schema is one of the dialect that it names."""
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_encoded_events_fit_their_schema(kind: str) -> None:
    """What the codec writes is what the schema promises."""
    Draft202012Validator(SCHEMAS["event.schema.json"]).validate(json.loads(encode_event(EVENTS[kind])))


def test_encoded_list_fits_its_schema() -> None:
    """What consumers read is what the schema promises."""
    validator = Draft202012Validator(SCHEMAS["recommendation_list.schema.json"])
    validator.validate(json.loads(encode_list(RECOMMENDATIONS)))


def test_encoded_video_fits_its_schema() -> None:
    """What the codec writes is what the schema promises."""
    Draft202012Validator(SCHEMAS["video.schema.json"]).validate(json.loads(encode_video(VIDEO)))


def test_dead_letter_headers_fit_their_schema() -> None:
    """A dead letter's headers are what their schema promises, as text."""
    headers = {name: (value or b"").decode() for name, value in DEAD_LETTER.to_headers()}
    validator = Draft202012Validator(SCHEMAS["dead_letter.schema.json"])
    validator.validate(headers)
    for name in headers:
        with pytest.raises(ValidationError):
            validator.validate({other: value for other, value in headers.items() if other != name})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "view"),
        ("event_id", ""),
        ("user_id", "u" * 129),
        ("timestamp_ms", -1),
        ("timestamp_ms", 4_102_444_800_001),
        ("watch_seconds", -1),
        ("watch_seconds", "1"),
        ("watch_ratio", 1_001),
        ("video_seconds", -1),
        ("session_id", ""),
        ("schema_version", 2),
    ],
)
def test_schema_and_codec_refuse_the_same(field: str, value: object) -> None:
    """A producer that checks against the schema is not surprised by the daemon."""
    event = WATCH | {field: value}
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMAS["event.schema.json"]).validate(event)
    with pytest.raises(InvalidEvent):
        decode_event(json.dumps(event).encode())


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _resolve(reference: str) -> Any:
    assert reference.startswith("#/")
    node: Any = ASYNCAPI
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_every_reference_of_the_asyncapi_document_resolves() -> None:
    """The document is whole: no reference leads outside it or nowhere."""
    references = list(_references(ASYNCAPI))
    assert len(references) > 20
    for reference in references:
        assert _resolve(reference)


def test_asyncapi_document_has_the_shape_of_version_3() -> None:
    """Operations name a channel and messages of that channel, and every message is used by one."""
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= ASYNCAPI["info"].keys()
    used = set()
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in {"send", "receive"}
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")
            used.add(_resolve(message["$ref"])["$ref"].rpartition("/")[2])
    assert used == ASYNCAPI["components"]["messages"].keys()


def test_topics_are_those_of_the_daemon_s_defaults() -> None:
    """The addresses are the topics that a daemon without settings uses; videos are read only where set."""
    from stream.settings import TopicSettings

    topics = TopicSettings()
    addresses = {name: channel["address"] for name, channel in ASYNCAPI["channels"].items()}
    assert addresses == {
        "events": topics.events,
        "recommendations": topics.lists,
        "dead_letters": topics.dead_letters,
        "videos": "videos",
    }
    assert topics.videos is None


@pytest.mark.parametrize("name", sorted(ASYNCAPI["components"]["messages"]))
def test_examples_in_the_asyncapi_document_are_valid(name: str) -> None:
    """An example can be copied: it fits its schemas, and the codec reads it."""
    message = ASYNCAPI["components"]["messages"][name]
    (example,) = message["examples"]
    for part in ("headers", "payload"):
        schema = {"components": ASYNCAPI["components"], "allOf": [message[part]]}
        Draft202012Validator(schema).validate(example.get(part, {}))
    if name == "recommendation_list":
        assert decode_list(json.dumps(example["payload"]).encode()) == RECOMMENDATIONS
    elif name == "video":
        assert decode_video(json.dumps(example["payload"]).encode()) == VIDEO
    elif name == "forget":
        assert decode_instruction(json.dumps(example["payload"]).encode()) == FORGET
    elif name in EVENTS:
        assert decode_event(json.dumps(example["payload"]).encode()) == EVENTS[name]
