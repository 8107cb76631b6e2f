"""Promises of mtgr.config: presets are what they say, and a wrong config is told in one clear line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.config import BLOCK_EVENTS, DiscreteFeature, ModelConfig, parse_config
from mtgr.errors import InputError
from mtgr.presets import PRESETS, preset

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_its_own_bounds_and_reads_back(name: str) -> None:
    """Every preset passes the validation of a config from a file, and is the same afterwards."""
    assert parse_config(preset(name).to_dict()) == PRESETS[name]


@given(st.integers(1, 4096).map(lambda blocks: blocks * BLOCK_EVENTS))
def test_a_sequence_grows_by_a_quarter_in_whole_blocks(max_events: int) -> None:
    """The capacity is the first whole block at or above 125 %, and the longest sequence has the profile too."""
    config = TINY.replace(max_events=max_events)
    assert config.capacity % BLOCK_EVENTS == 0
    assert 0 <= config.capacity - 1.25 * max_events < BLOCK_EVENTS
    assert config.max_length == config.capacity + 1


def test_token_ids_are_items_then_buckets_then_the_profile() -> None:
    """Ids do not overlap, and the vocabulary holds them all."""
    config = TINY.replace(n_items=100, unknown_buckets=8)
    assert (config.n_indices, config.profile_id, config.vocab_size) == (108, 108, 109)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 64}, "unknown key 'd_modle'; did you mean d_model?"),
        ({"wheels": 4}, "unknown key 'wheels'; known are d_model, "),
        ({"d_model": 4}, "d_model is 4, where a whole number of at least 8 and at most 65536 is wanted"),
        (
            {"d_model": "64"},
            "d_model is '64', where a whole number of at least 8 and at most 65536 is wanted",
        ),
        ({"n_layers": 0}, "n_layers is 0, where a whole number of at least 1 and at most 512 is wanted"),
        (
            {"max_events": 100},
            "max_events is 100, where a whole number of at least 16, at most 65536 and a mult",
        ),
        ({"temperature": 0}, "temperature is 0, where a number above 0 and at most 1000 is wanted"),
        ({"positions": "relative"}, "positions is 'relative', where one of absolute, none is wanted"),
        (
            {"n_items": 1 << 24},
            "n_items + spare_items + unknown_buckets is 16777280, where 3 byte lanes hold 16777216",
        ),
        (
            {"video_numbers": [{"name": "length", "scale": 0}]},
            "video_numbers[0].scale is 0, where a number above 0 is wanted",
        ),
        (
            {"video_categories": [{"name": "tag", "size": 8}], "video_numbers": [{"name": "tag"}]},
            "video attribute 'tag' stands there 2 times",
        ),
        ({"ranking": ["like", "like"]}, "ranking head 'like' stands there 2 times"),
        ({"discrete": [{"name": "hour", "size": 24}] * 2}, "feature 'hour' stands there 2 times"),
        ({"discrete": [{"name": "hour", "size": 300}]}, "feature 'hour': 300 values do not fit 1 byte lanes"),
        ({"discrete": [{"name": "hour", "sice": 24}]}, "discrete[0]: object contains unknown field `sice`"),
    ],
)
def test_a_wrong_config_names_the_field_and_what_would_be_right(
    changes: dict[str, Any], message: str
) -> None:
    """The error begins with the source and holds the field, the value or bound, and for a key the nearest one."""
    with pytest.raises(InputError) as caught:
        parse_config({**TINY.to_dict(), **changes}, "some/config.json: model")
    assert str(caught.value).startswith("some/config.json: model: ")
    assert message in str(caught.value)


def test_a_missing_field_is_named() -> None:
    """A config without a needed field says which."""
    data = TINY.to_dict()
    del data["n_heads"]
    with pytest.raises(InputError, match="missing required field `n_heads`"):
        parse_config(data)


def test_a_preset_that_is_not_there_names_the_nearest() -> None:
    """A slip in a preset's name is answered by the name that was meant."""
    with pytest.raises(InputError, match="unknown preset 'meduim'; did you mean medium"):
        preset("meduim")


def test_features_decide_the_width_of_a_row() -> None:
    """A feature of more lanes or a feature less changes the row by as many lanes."""
    wider = TINY.replace(discrete=[{"name": "hour", "size": 24, "lanes": 2}])
    assert wider.discrete == (DiscreteFeature("hour", 24, 2),)
    assert wider.row_width == 1 + 3 + 2 + len(TINY.continuous)
    assert isinstance(wider, ModelConfig)
