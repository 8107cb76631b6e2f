"""Bytes to wire types and back: JSON or MessagePack, told apart by the `content-type` header.

Each direction has one encoder or decoder that is reused for every record, so that decoding an event costs
what its bytes cost; an error is explained on a slow path of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import msgspec
from msgspec import structs

from schemas.attributes import AttributeName, AttributeValue
from schemas.describing import describe
from schemas.errors import (
    InvalidEvent,
    MalformedEvent,
    UndecodableList,
    UndecodableVideo,
    UnsupportedContentType,
)
from schemas.events import Event, Favorite, Forget, Instruction, Like, Profile, Share, Watch
from schemas.lists import RecommendationList
from schemas.videos import Video

CONTENT_TYPE_HEADER: Final = "content-type"
JSON: Final = "application/json"
MESSAGEPACK: Final = "application/msgpack"
ContentType = Literal["application/json", "application/msgpack"]

_CONTENT_TYPES: Final[dict[bytes, ContentType]] = {
    b"application/json": JSON,
    b"application/msgpack": MESSAGEPACK,
    b"application/x-msgpack": MESSAGEPACK,
    b"application/vnd.msgpack": MESSAGEPACK,
}

_Decode = Callable[[Any], Any]


def _by_header(from_json: _Decode, from_messagepack: _Decode) -> dict[bytes | None, _Decode]:
    formats = {JSON: from_json, MESSAGEPACK: from_messagepack}
    return {None: from_json} | {header: formats[name] for header, name in _CONTENT_TYPES.items()}


_EVENT_DECODERS: Final = _by_header(msgspec.json.Decoder(Event).decode, msgspec.msgpack.Decoder(Event).decode)
_INSTRUCTION_DECODERS: Final = _by_header(
    msgspec.json.Decoder(Instruction).decode, msgspec.msgpack.Decoder(Instruction).decode
)
_LIST_DECODERS: Final = _by_header(
    msgspec.json.Decoder(RecommendationList).decode, msgspec.msgpack.Decoder(RecommendationList).decode
)
_VIDEO_DECODERS: Final = _by_header(msgspec.json.Decoder(Video).decode, msgspec.msgpack.Decoder(Video).decode)
_LOOSE_DECODERS: Final = _by_header(msgspec.json.decode, msgspec.msgpack.decode)
_ENCODERS: Final = {JSON: msgspec.json.Encoder().encode, MESSAGEPACK: msgspec.msgpack.Encoder().encode}

_KINDS: Final = (Watch, Like, Favorite, Share, Profile)
_EVENT_FIELDS: Final = {
    "type": f"one of {', '.join(str(kind.__struct_config__.tag) for kind in _KINDS)}",
    **{field.name: describe(field.type) for kind in _KINDS for field in structs.fields(kind)},
}
_INSTRUCTION_FIELDS: Final = _EVENT_FIELDS | {
    "type": f"{_EVENT_FIELDS['type']}, {Forget.__struct_config__.tag}"
}
_VIDEO_FIELDS: Final = {field.name: describe(field.type) for field in structs.fields(Video)}
_ATTRIBUTES: Final = "attributes"
_ABSENT: Final = object()
_MAX_SHOWN_CHARACTERS: Final = 80


def decode_event(value: bytes | None, content_type: bytes | None = None) -> Event:
    """The event in a record's value, checked against its bounds; `content_type` is the header, if any.

    Raises UndecodableEvent: UnsupportedContentType, MalformedEvent or InvalidEvent.
    """
    try:
        return _EVENT_DECODERS[content_type](value)  # type: ignore[no-any-return]
    except KeyError:
        return decode_event(value, _known(content_type))
    except (ValueError, TypeError, RecursionError) as error:
        _refuse_event(error, value, content_type, _EVENT_FIELDS)


def decode_instruction(value: bytes | None, content_type: bytes | None = None) -> Instruction:
    """What a record of the events topic asks for: an event to fold, or a user to forget.

    Raises UndecodableEvent as `decode_event` does.
    """
    try:
        return _INSTRUCTION_DECODERS[content_type](value)  # type: ignore[no-any-return]
    except KeyError:
        return decode_instruction(value, _known(content_type))
    except (ValueError, TypeError, RecursionError) as error:
        _refuse_event(error, value, content_type, _INSTRUCTION_FIELDS)


def decode_list(value: bytes | None, content_type: bytes | None = None) -> RecommendationList:
    """The recommendation list in a record's value; raises UndecodableList."""
    try:
        return _LIST_DECODERS[content_type](value)  # type: ignore[no-any-return]
    except KeyError:
        try:
            known = _known(content_type)
        except UnsupportedContentType as error:
            raise UndecodableList(str(error)) from None
        return decode_list(value, known)
    except (ValueError, TypeError, RecursionError) as error:
        raise UndecodableList("there is no value" if not value else str(error)) from None


def decode_video(value: bytes | None, content_type: bytes | None = None) -> Video:
    """The video in a record's value, checked against its bounds; raises UndecodableVideo."""
    try:
        return _VIDEO_DECODERS[content_type](value)  # type: ignore[no-any-return]
    except KeyError:
        try:
            known = _known(content_type)
        except UnsupportedContentType as error:
            raise UndecodableVideo(str(error)) from None
        return decode_video(value, known)
    except (ValueError, TypeError, RecursionError) as error:
        raise UndecodableVideo(_reason(error, value, content_type, "a video", _VIDEO_FIELDS)) from None


def encode_event(event: Instruction, content_type: ContentType = JSON) -> bytes:
    """The event as bytes; fields at their default are left out."""
    return _ENCODERS[content_type](event)


def encode_list(recommendations: RecommendationList, content_type: ContentType = JSON) -> bytes:
    """The list as bytes."""
    return _ENCODERS[content_type](recommendations)


def encode_video(video: Video, content_type: ContentType = JSON) -> bytes:
    """The video as bytes; fields at their default are left out."""
    return _ENCODERS[content_type](video)


def _known(content_type: bytes | None) -> bytes | None:
    """The spelling that the decoders know: no parameters, no capitals, none at all for an empty header."""
    name = (content_type or b"").partition(b";")[0].strip().lower()
    if not name:
        return None
    if name not in _CONTENT_TYPES:
        raise UnsupportedContentType(
            f"header {CONTENT_TYPE_HEADER} = {_shown(content_type)}: expected {JSON} or {MESSAGEPACK}"
        )
    return name


def _refuse_event(
    error: Exception, value: bytes | None, content_type: bytes | None, fields: dict[str, str]
) -> NoReturn:
    invalid = value and isinstance(error, msgspec.ValidationError)
    reason = _reason(error, value, content_type, "an event", fields)
    raise (InvalidEvent if invalid else MalformedEvent)(reason) from None


def _reason(
    error: Exception, value: bytes | None, content_type: bytes | None, wanted: str, fields: dict[str, str]
) -> str:
    """Why the value does not decode, in one line; raises the error where it is not the value's fault."""
    match error:
        case _ if value is None:
            return f"the value is null (a tombstone): expected {wanted}"
        case _ if not value:
            return f"the value is empty: expected {wanted}"
        case RecursionError():
            return "nested too deeply: expected an object of plain fields"
        case UnicodeDecodeError():
            return f"text that is not UTF-8: {error.reason}"
        case msgspec.ValidationError():
            return _explain(str(error), value, content_type, fields)
        case msgspec.DecodeError():
            return str(error)
        case _:
            raise error


def _explain(message: str, value: bytes, content_type: bytes | None, fields: dict[str, str]) -> str:
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
        return f"{missing[1]} is missing: expected {fields[missing[1]]}"
    at = re.search(r"`\$\.(\w+)\S*`$", message)
    if at is None or at[1] not in fields:
        return f"the value: {message}"  # about the whole: Expected `object`, got `array`
    try:
        found = _LOOSE_DECODERS[content_type](value).get(at[1], _ABSENT)
    except (ValueError, TypeError, RecursionError):  # broken further on; the field was reached first
        found = _ABSENT
    if at[1] == _ATTRIBUTES and isinstance(found, dict) and (wrong := _wrong_attribute(found)):
        return wrong
    shown = at[1] if found is _ABSENT else f"{at[1]} = {_shown(found)}"
    return f"{shown}: expected {fields[at[1]]}"


def _wrong_attribute(attributes: dict[Any, Any]) -> str | None:
    """What is wrong with the first attribute that is not taken, None where it is their number."""
    for name, value in attributes.items():
        try:
            msgspec.convert(name, AttributeName)
        except msgspec.ValidationError:
            return f"{_ATTRIBUTES}: the name {_shown(name)}: expected {describe(AttributeName)}"
        try:
            msgspec.convert(value, AttributeValue)
        except msgspec.ValidationError:
            return f"{_ATTRIBUTES}.{name} = {_shown(value)}: expected {describe(AttributeValue)}"
    return None


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr) if not isinstance(value, bytes) else repr(value)[1:]
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"
