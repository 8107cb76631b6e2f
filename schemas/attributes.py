"""What is known of a video or a user beside its id: named texts, numbers and lists of texts."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_CHARACTERS: Final = 128
MAX_ATTRIBUTE_VALUES: Final = 32

AttributeName = Annotated[str, Meta(min_length=1, max_length=64)]
AttributeText = Annotated[str, Meta(min_length=1, max_length=MAX_ATTRIBUTE_CHARACTERS)]
AttributeTexts = Annotated[list[AttributeText], Meta(max_length=MAX_ATTRIBUTE_VALUES)]
AttributeValue = AttributeText | float | AttributeTexts
Attributes = Annotated[
    dict[AttributeName, AttributeValue],
    Meta(
        max_length=MAX_ATTRIBUTES,
        description="Name to text, number or list of texts; a model uses those that its config names.",
    ),
]
