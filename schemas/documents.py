"""The wire as documents made from its types: their JSON Schema, and an AsyncAPI description of the topics.

`python -m schemas.documents` writes them beside this file, `--check` fails where one is out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.bounds import Identifier
from schemas.codecs import CONTENT_TYPE_HEADER, JSON, MESSAGEPACK, encode_event, encode_list, encode_video
from schemas.dead_letters import REPLAYED_HEADER, DeadLetter
from schemas.events import Favorite, Forget, Instruction, Like, Profile, Share, Watch
from schemas.examples import DEAD_LETTER, EVENTS, FORGET, RECOMMENDATIONS, VIDEO
from schemas.lists import RecommendationList
from schemas.videos import Video

COMMAND: Final = "python -m schemas.documents"
DIRECTORY: Final = Path(__file__).parent

_INSTRUCTIONS: Final[dict[str, Instruction]] = {**EVENTS, "forget": FORGET}
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_BINDING: Final = {"bindingVersion": "0.5.0"}
_TRACEPARENT: Final = {
    "type": "string",
    "description": "W3C trace context; a list carries that of the event which triggered it.",
}


def documents() -> dict[str, str]:
    """Every generated file: its name and its text."""
    files = {
        "event.schema.json": _json_schema("event", "Event", msgspec.json.schema(Instruction)),
        "recommendation_list.schema.json": _json_schema(
            "recommendation_list", "RecommendationList", msgspec.json.schema(RecommendationList)
        ),
        "video.schema.json": _json_schema("video", "Video", msgspec.json.schema(Video)),
        "dead_letter.schema.json": _json_schema("dead_letter", "DeadLetterHeaders", _dead_letter_headers()),
        "asyncapi.json": asyncapi(),
    }
    return {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document from the daemon's side: it receives events and videos and sends the other two."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "mtgr-stream",
            "version": "1.0.0",
            "description": "Turns a Kafka topic of watch, like, favorite, share and profile events into a topic "
            "of fresh recommendation lists. The version is that of the wire, not of the program.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "kafka": {"host": "localhost:9092", "protocol": "kafka", "description": "Any Kafka 2.5+."}
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {"schemas": _component_schemas(), "messages": _messages()},
    }


def _json_schema(name: str, title: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": f"urn:mtgr-stream:{name}:1", "title": title, **schema}


def _dead_letter_headers() -> dict[str, Any]:
    """The headers' schema: that of the type, but with every value as the text that a header holds."""
    _, components = msgspec.json.schema_components([DeadLetter])
    schema = dict(components["DeadLetter"])
    schema["properties"] = {
        name: {"type": "string", "pattern": "^[0-9]+$", "description": field["description"]}
        if field.get("type") == "integer"
        else field
        for name, field in schema["properties"].items()
    }
    return schema


def _component_schemas() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(
        [Watch, Like, Favorite, Share, Profile, Forget, Video, RecommendationList],
        ref_template="#/components/schemas/{name}",
    )
    return {name: schemas[name] for name in sorted(schemas)}


def _channels() -> dict[str, Any]:
    return {
        "events": _channel(
            "user-events",
            "What users do and what is known of them, keyed by user, in order for each user; and whom to forget.",
            list(_INSTRUCTIONS),
        ),
        "videos": _channel(
            "videos",
            "Videos that can be recommended beside those that the model was trained with, keyed by video; compacted. "
            "Read where the setting topics.videos names it. A tombstone is ignored: a model cannot unlearn.",
            ["video"],
        ),
        "recommendations": _channel(
            "recommendations",
            "Fresh lists, keyed by user. At least once: deduplicate by list_id.",
            ["recommendation_list"],
        ),
        "dead_letters": _channel(
            "user-events.dlq",
            "Records that could not be served: key, value and headers as they came, with the reason.",
            ["dead_letter"],
        ),
    }


def _channel(address: str, description: str, messages: list[str]) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topic": address, **_BINDING}},
    }


def _operations() -> dict[str, Any]:
    return {
        "receiveEvent": _operation(
            "receive",
            "events",
            "Fold an event into its user's sequence, and a list is owed; a profile replaces the user's own; a user to "
            "forget has nothing left.",
        ),
        "receiveVideo": _operation("receive", "videos", "Let the model recommend the video too."),
        "sendRecommendations": _operation("send", "recommendations", "Send the user a fresh list."),
        "sendDeadLetter": _operation("send", "dead_letters", "Put a record aside, with the reason."),
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    operation = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
    return operation | {
        "messages": [
            {"$ref": f"#/channels/{channel}/messages/{name}"} for name in _channels()[channel]["messages"]
        ]
    }


def _messages() -> dict[str, Any]:
    types = {
        "watch": Watch,
        "like": Like,
        "favorite": Favorite,
        "share": Share,
        "profile": Profile,
        "forget": Forget,
    }
    key = msgspec.json.schema(Identifier) | {"description": "The user id, as UTF-8."}
    replayed = {"type": "string", "const": "true", "description": "Sent back from the dead letters."}
    events = {
        name: {
            "name": name,
            "title": type_.__name__,
            "summary": (type_.__doc__ or "").strip(),
            "contentType": JSON,
            "headers": _headers({REPLAYED_HEADER: replayed}),
            "payload": {"$ref": f"#/components/schemas/{type_.__name__}"},
            "bindings": {"kafka": {"key": key, **_BINDING}},
            "examples": [{"name": name, "payload": json.loads(encode_event(_INSTRUCTIONS[name]))}],
        }
        for name, type_ in types.items()
    }
    list_id = {"type": "string", "description": "The payload's list_id, to deduplicate by without decoding."}
    return events | {
        "video": {
            "name": "video",
            "title": "Video",
            "summary": (Video.__doc__ or "").strip(),
            "contentType": JSON,
            "headers": _headers({}),
            "payload": {"$ref": "#/components/schemas/Video"},
            "bindings": {"kafka": {"key": key | {"description": "The video id, as UTF-8."}, **_BINDING}},
            "examples": [{"name": "video", "payload": json.loads(encode_video(VIDEO))}],
        },
        "recommendation_list": {
            "name": "recommendation_list",
            "title": "RecommendationList",
            "summary": (RecommendationList.__doc__ or "").strip(),
            "contentType": JSON,
            "headers": _headers({"list_id": list_id}, required=["list_id"]),
            "payload": {"$ref": "#/components/schemas/RecommendationList"},
            "bindings": {"kafka": {"key": key, **_BINDING}},
            "examples": [
                {
                    "name": "recommendation_list",
                    "headers": {"list_id": RECOMMENDATIONS.list_id},
                    "payload": json.loads(encode_list(RECOMMENDATIONS)),
                }
            ],
        },
        "dead_letter": {
            "name": "dead_letter",
            "title": "DeadLetter",
            "summary": (DeadLetter.__doc__ or "").strip(),
            "contentType": "application/octet-stream",
            "headers": _dead_letter_headers(),
            "payload": {
                "description": "The record's value as it came, whatever it was; null for a tombstone."
            },
            "bindings": {"kafka": {"key": {"description": "The record's key as it came."}, **_BINDING}},
            "examples": [
                {
                    "name": "dead_letter",
                    "headers": {name: (value or b"").decode() for name, value in DEAD_LETTER.to_headers()},
                    "payload": '{"type":"watch",',
                }
            ],
        },
    }


def _headers(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    content_type = {
        "type": "string",
        "enum": [JSON, MESSAGEPACK],
        "default": JSON,
        "description": "Format of the value. MessagePack holds the same fields under the same names.",
    }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {CONTENT_TYPE_HEADER: content_type, "traceparent": _TRACEPARENT, **properties},
    }
    return schema | ({"required": required} if required else {})


def stale(directory: Path) -> list[str]:
    """Names of the files in the directory that are missing or differ from what the types say."""
    return [
        name
        for name, text in documents().items()
        if not (directory / name).is_file() or (directory / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str] | None = None, directory: Path = DIRECTORY) -> int:
    """Write the documents, or with --check only compare them; the exit code is 1 where one is out of date."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Write JSON Schema and AsyncAPI from the types."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where one is out of date")
    options = parser.parse_args(arguments)
    outdated = stale(directory)
    if options.check:
        if outdated:
            sys.stderr.write(f"out of date: {', '.join(outdated)}; run {COMMAND}\n")
        return 1 if outdated else 0
    for name in outdated:
        (directory / name).write_text(documents()[name], encoding="utf-8")
        sys.stdout.write(f"wrote {directory / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
