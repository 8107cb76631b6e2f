"""Videos that an application adds to a model while it is served, checked as the wire checks them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import structs

from mtgr.arguments import check_argument, plain, shown
from mtgr.attributes import pack_attributes
from mtgr.errors import InputError
from mtgr.requests import NewVideo
from mtgr.suggestions import did_you_mean
from schemas.attributes import Attributes
from schemas.videos import Video

_TYPES: Final[dict[str, Any]] = {field.name: field.type for field in structs.fields(Video)}


def parse_videos(videos: Iterable[Video | Mapping[str, Any]]) -> list[NewVideo]:
    """Read videos from mappings with the fields of `schemas.videos.Video`, or as they are.

    Raises InputError naming the place, the field, the value and what would be right, for the first that is none.
    """
    if isinstance(videos, str | bytes | Mapping | Video) or not isinstance(videos, Iterable):
        raise InputError(f"videos = {shown(videos)}: expected a list of videos")
    return [_parse(video, f"videos[{place}]") for place, video in enumerate(videos)]


def pack_profile(profile: Mapping[str, Any]) -> bytes:
    """What is known of a user, as a request has it; InputError names what is wrong, and what would be right."""
    if not isinstance(profile, Mapping):
        raise InputError(
            f"profile = {shown(profile)}: expected a mapping of names to texts, numbers and lists of texts"
        )
    return pack_attributes(check_argument("profile", _plain(profile), Attributes))


def _parse(video: Video | Mapping[str, Any], place: str) -> NewVideo:
    if isinstance(video, Video):
        video = structs.asdict(video)  # whose constructor checks nothing
    if not isinstance(video, Mapping):
        raise InputError(
            f"{place} = {shown(video)}: expected a mapping of video_id and, where known, attributes"
        )
    for name in video:
        if name not in _TYPES:
            raise InputError(f"{place}: unknown field {shown(name)}{did_you_mean(str(name), _TYPES)}")
    if "video_id" not in video:
        raise InputError(f"{place}.video_id is missing")
    fields = {name: _plain(value) for name, value in video.items()}
    for name, value in fields.items():
        check_argument(f"{place}.{name}", value, _TYPES[name])
    found = msgspec.convert(fields, Video)
    return NewVideo(found.video_id, pack_attributes(found.attributes))


def _plain(value: Any) -> Any:
    return {name: plain(one) for name, one in value.items()} if isinstance(value, Mapping) else plain(value)
