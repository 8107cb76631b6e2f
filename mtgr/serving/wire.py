"""What an engine server and its clients say to each other over HTTP."""

from __future__ import annotations

from typing import Final

import msgspec

from mtgr.requests import ListOutcome, ListRequest, ModelInfo

LISTS_PATH: Final = "/v1/lists"
MODEL_PATH: Final = "/v1/model"
HEALTH_PATH: Final = "/healthz"

MSGPACK: Final = "application/msgpack"
VERSION_HEADER: Final = "X-Model-Version"
"""On each answer with lists: the version of the model that made them."""

encode: Final = msgspec.msgpack.encode
decode_requests: Final = msgspec.msgpack.Decoder(list[ListRequest]).decode
decode_outcomes: Final = msgspec.msgpack.Decoder(list[ListOutcome]).decode
decode_model: Final = msgspec.json.Decoder(ModelInfo).decode
