"""Promises of mtgr.plain_data: what is wrong in plain data, and what would be right, in one line of plain words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from mtgr.errors import InputError
from mtgr.plain_data import parse_struct


class _Part(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    size: int = 1


class _Whole(Struct, frozen=True, forbid_unknown_fields=True):
    heads: tuple[Literal["like", "share"], ...] = ()
    parts: tuple[_Part, ...] = ()
    shares: dict[str, Annotated[float, Meta(ge=0, le=1)]] = {}
    precision: Literal["auto", "float32"] = "auto"
    draws: Annotated[int, Meta(ge=1)] | Literal["all"] | None = None
    exact: bool = False


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"heads": "like"}, "heads is 'like', where a list such as [\"like\"] (of like, share) is wanted"),
        ({"heads": ["like", "lik"]}, "heads[1] is 'lik', where one of like, share is wanted"),
        ({"parts": "p"}, 'parts is \'p\', where a list such as [{"name": "name"}] is wanted'),
        ({"parts": [{"name": ""}]}, "parts[0].name is '', where a text that is not empty is wanted"),
        ({"parts": [{"name": "p"}, 3]}, "parts[1] is 3, where an object with name, size is wanted"),
        ({"parts": [{"size": 3}]}, "parts[0]: object missing required field `name`"),
        (
            {"shares": {"x": 2}},
            "shares is {'x': 2}, where an object such as {\"name\": 0.5}, each value a number of at least 0 and "
            "at most 1 is wanted",
        ),
        ({"precision": "float16"}, "precision is 'float16', where one of auto, float32 is wanted"),
        ({"draws": 0}, "draws is 0, where a whole number of at least 1 or all or null is wanted"),
        ({"exact": "yes"}, "exact is 'yes', where true or false is wanted"),
        ({"exact": "y" * 1000}, f"exact is '{'y' * 79}..., where true or false is wanted"),
        ({"head": []}, "unknown key 'head'; did you mean heads?"),
    ],
)
def test_a_wrong_value_is_told_beside_what_would_be_right(data: dict[str, Any], message: str) -> None:
    """The source, the place, the value and the allowed ones, in no library's terms."""
    with pytest.raises(InputError) as caught:
        parse_struct(data, _Whole, "--set")
    assert str(caught.value) == f"--set: {message}"


def test_what_is_right_is_read() -> None:
    """Lists are tuples, and what is left out has its default."""
    read = parse_struct({"heads": ["like"], "parts": [{"name": "p"}], "draws": "all"}, _Whole, "--set")
    assert read == _Whole(heads=("like",), parts=(_Part("p"),), draws="all")
