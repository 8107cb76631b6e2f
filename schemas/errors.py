"""Why a record is no valid event, one class for each thing that its producer has to change."""

from __future__ import annotations

from typing import ClassVar, Literal

Stage = Literal["decode", "validate", "generate"]
"""Where a record died: its bytes could not be read, what they say is not valid, or the model refused it."""


class UndecodableEvent(ValueError):
    """A record is no valid event; the message is one line and names the field where one is to blame."""

    stage: ClassVar[Stage] = "decode"


class UnsupportedContentType(UndecodableEvent):
    """The content-type header names a format that events do not come in."""


class MalformedEvent(UndecodableEvent):
    """The value is not JSON or not MessagePack at all, or there is none."""


class InvalidEvent(UndecodableEvent):
    """The value can be read, but a field is missing, of the wrong type or out of its bounds."""

    stage: ClassVar[Stage] = "validate"


class UndecodableList(ValueError):
    """A record is no valid recommendation list."""


class UndecodableVideo(ValueError):
    """A record is no valid video; the message is one line and names the field where one is to blame."""
