"""Promises of mtgr.training.options and attributes: bounds that are told, and sizes that fit what is there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mtgr.config import CategoricalAttribute
from mtgr.errors import InputError
from mtgr.presets import RECIPES, recipe
from mtgr.training.attributes import fit_categories, fit_numbers
from mtgr.training.options import TrainingOptions, parse_options

VIDEOS: dict[str, dict[str, Any]] = {
    "a": {"author": "x", "tags": ["p", "q"], "seconds": 10.0},
    "b": {"author": "y", "tags": ["r"], "seconds": 20.0},
    "c": {"author": "x"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs is 0, where a whole number of at least 1 or null is wanted"),
        ({"negatives": "some"}, r"negatives is 'some', where a whole number of at least 1 or all is wanted"),
        (
            {"weights": {"dislike": 1}},
            r"weights is {'dislike': 1}, where each key should be one of .*, skip, watch",
        ),
        (
            {"weights": {"like": -1}},
            r"weights is {'like': -1}, where .*, each value a number of at least 0 is wanted",
        ),
        ({"dropout": 1.0}, r"dropout is 1.0, where a number of at least 0 and below 1 is wanted"),
        (
            {"conditioned_on": ["skip", "watch", "skip"]},
            "conditioned_on is skip, watch, skip, where each kind is wanted once",
        ),
        ({"epoch": 3}, r"unknown key 'epoch'; did you mean epochs"),
    ],
)
def test_what_is_no_option_is_told(changes: dict[str, Any], message: str) -> None:
    """The source, the field and what would be right."""
    with pytest.raises(InputError, match=f"^recipe: .*{message}"):
        parse_options(changes, "recipe")


def test_options_change_one_by_one() -> None:
    """What is not changed stays; a number of draws beyond the catalog means the catalog."""
    options = TrainingOptions(epochs=3, weights={"like": 2.0}).replace(negatives="all", seed=4)
    assert options == TrainingOptions(epochs=3, weights={"like": 2.0}, negatives="all", seed=4)
    assert options.draws(100) is None
    assert [TrainingOptions(negatives=50).draws(items) for items in (49, 50, 51)] == [None, None, 50]


def test_options_are_read_without_torch() -> None:
    """A preset can say how it is trained, and the list of presets is there at once."""
    code = "import sys, mtgr.training.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_attributes_are_sized_by_what_is_known() -> None:
    """A power of two well above the values, with less room where there are many; lists at their longest; numbers by
    their mean and spread.
    """
    assert fit_categories(["author", "tags"], VIDEOS, "videos.csv") == (
        CategoricalAttribute("author", 64, 1),
        CategoricalAttribute("tags", 64, 2),
    )
    many = {str(number): {"author": str(number)} for number in range(3000)}
    assert fit_categories(["author"], many, "videos.csv") == (CategoricalAttribute("author", 16_384, 1),)
    (seconds,) = fit_numbers(["seconds"], VIDEOS, "videos.csv")
    assert (seconds.mean, seconds.scale) == (15.0, 5.0)


@pytest.mark.parametrize(
    ("fit", "name", "message"),
    [
        (fit_categories, "autor", "videos.csv: nothing has an attribute 'autor'; did you mean author"),
        (fit_numbers, "views", "videos.csv: nothing has an attribute 'views'"),
        (fit_numbers, "author", "videos.csv: attribute 'author' has the value 'x', which is no number"),
    ],
)
def test_an_attribute_that_is_not_there_is_told(fit: Any, name: str, message: str) -> None:
    """By the file's name, the attribute, and the nearest one that is there."""
    with pytest.raises(InputError, match=message):
        fit([name], VIDEOS, "videos.csv")


def test_a_small_log_has_small_batches() -> None:
    """An epoch has 32 steps, or as many as there are full sequences, however large the batches asked for are."""
    options = TrainingOptions(batch_tokens=20_000)
    assert options.tokens_a_batch(200, 1_000_000) == 20_000
    assert options.tokens_a_batch(200, 64_000) == 2_000
    assert options.tokens_a_batch(200, 1_000) == 200
    assert TrainingOptions().tokens_a_batch(200, 1_000_000) == 800


def test_a_small_log_has_more_epochs() -> None:
    """As many as make the least number of steps, but for those who ask for a number of epochs."""
    assert [TrainingOptions().epochs_of(steps) for steps in (1, 30, 166, 167, 10_000)] == [1000, 34, 7, 6, 6]
    assert TrainingOptions(min_steps=0).epochs_of(1) == 6
    assert TrainingOptions(epochs=2).epochs_of(1) == 2


def test_recipes_are_trained_for_the_epochs_they_name() -> None:
    """Patience and the least number of steps change none of them; that of MovieLens learns all but the last video."""
    for name, options in RECIPES.items():
        assert (name, options.patience, options.epochs_of(1)) == (name, None, options.epochs)
    movies = recipe("hstu-ml1m")
    assert (movies.part, movies.epochs) == ("known", 101)
