"""What is written on the command line of a training, as values."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from mtgr.evaluation.protocol import parse_moment
from mtgr.training.feedback import FEEDBACK
from stream.numbers import FiniteFloatRange


class Negatives(click.ParamType[int | str]):
    """A number of draws, or all."""

    name = "number or all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or the word; a usage error that names the option if it is neither."""
        if value == "all":
            return "all"
        number: int = click.IntRange(min=1).convert(value, param, ctx)
        return number


def moment(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """An ISO 8601 time in milliseconds since 1970."""
    try:
        return None if text is None else parse_moment(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no ISO 8601 time, such as 2022-05-06T00:00+08:00.", ctx, param
        ) from None


def assignments(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE by key, each value as JSON where it is some, else as text."""
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.", ctx, param)
        try:
            values[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            values[key] = value
    return values


def feedback_weights(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    """FEEDBACK=WEIGHT by the feedback's name."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in FEEDBACK:
            raise click.BadParameter(f"{text!r}: {name!r} is none of {', '.join(FEEDBACK)}.", ctx, param)
        weights[name] = FiniteFloatRange(min=0).convert(value, param, ctx)
    return weights


def names(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()
