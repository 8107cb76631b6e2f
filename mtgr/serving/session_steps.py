"""What an engine's workers are sent and what they answer: packed arrays, in the byte order of the machine."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct


class Step(Struct, frozen=True, array_like=True, gc=False):
    """What a worker computes at once; arrays as bytes, one number for each token or request.

    rows: float32 (tokens, lanes); items: int32 (tokens,) places of the catalog, or NO_ITEM; cached, new: int32
    (requests,) tokens that each request has and gets; blocks: int32 (requests, n), padded; counts: int32 (requests,)
    length of its list, 0 where more of the request follows in another step; slates: bool (requests,).
    """

    rows: bytes
    items: bytes
    cached: bytes
    new: bytes
    blocks: bytes
    counts: bytes
    slates: bytes


class Answer(Struct, frozen=True, array_like=True, gc=False):
    """The lists of a batch, joined in the order of its requests: int32 places of the catalog, float32 scores."""

    items: bytes
    scores: bytes


NO_ITEM: Final = -1
"""Item of a token that no list leaves out: a profile, or a video outside the catalog."""

NOTHING: Final = Answer(b"", b"")

encode_steps: Final = msgspec.msgpack.Encoder().encode
decode_steps: Final = msgspec.msgpack.Decoder(list[Step]).decode
encode_answer: Final = msgspec.msgpack.Encoder().encode
decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode
