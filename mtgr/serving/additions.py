"""How videos that join the catalog reach the model in the engine's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mtgr.additions import Addition

ADD_VIDEOS: Final = "add_videos"
"""The method of vLLM's workers that takes additions in."""

_decode: Final = msgspec.msgpack.Decoder(list[Addition]).decode


def pack_additions(additions: Sequence[Addition]) -> bytes:
    """Additions as the argument of `ADD_VIDEOS`."""
    return msgspec.msgpack.encode(list(additions))


class VideoAdditions:
    """What vLLM adds to its worker class, so that `collective_rpc` finds the method."""

    def add_videos(self, packed: bytes) -> None:
        """Let new videos be recommended from the next step on; packed: of `pack_additions`."""
        worker: Any = self
        worker.get_model().add_videos(_decode(packed))
