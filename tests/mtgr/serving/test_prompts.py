"""What is sent to the engine is checked before it is sent, and what comes back is a list or a refusal."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from events import watch
from histories import interactions
from serving import ITEMS, list_request

from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.reference import ReferenceRecommender
from mtgr.requests import MAX_SLATE, ListRefusal, ListRequest, ListResult, Strategy
from mtgr.serving.prompts import PromptBuilder
from mtgr.serving.seen_argument import INDEX_DTYPE, SEEN_ARGUMENT
from schemas.events import Interaction

pytestmark = pytest.mark.vllm


@pytest.fixture
def builder(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint)


def history(count: int, seed: int = 0) -> list[Interaction]:
    return interactions(seed, count)


def wrong_requests() -> dict[str, ListRequest]:
    good = list_request(history(5))
    records = np.frombuffer(
        good.records, dtype=History.from_bytes(good.records, good.videos).records.dtype
    ).copy()
    records["watch_ratio"][2] = np.nan
    return {
        "no events": list_request([]),
        "too long": list_request(history(81)),
        "torn records": msgspec.structs.replace(good, records=good.records[:-1]),
        "torn videos": msgspec.structs.replace(good, videos=good.videos[:-1]),
        "not UTF-8": msgspec.structs.replace(good, videos=b"\xff" * len(good.videos)),
        "not a number": msgspec.structs.replace(good, records=records.tobytes()),
        "count of 0": msgspec.structs.replace(good, count=0),
        "count of all": msgspec.structs.replace(good, count=ITEMS),
        "torn profile": msgspec.structs.replace(good, profile=b"\x81"),
        "long slate": msgspec.structs.replace(good, strategy="slate", count=MAX_SLATE + 1),
    }


@pytest.mark.parametrize("name", list(wrong_requests()))
def test_a_request_that_cannot_be_served_is_refused_as_the_reference_refuses_it(
    builder: PromptBuilder, reference: ReferenceRecommender, name: str
) -> None:
    """It never reaches the engine, and its neighbours do."""
    wrong, good = wrong_requests()[name], list_request(history(7))
    prompts, refusals = builder.build([wrong, good, wrong])
    assert [prompt.place for prompt in prompts] == [1]
    assert [refusals[0], refusals[2]] == reference.recommend([wrong, wrong])


def test_a_prompt_is_the_users_rows_and_the_videos_to_leave_out(
    builder: PromptBuilder, checkpoint: Checkpoint
) -> None:
    """Each user's own rows, and of the videos seen those of the catalog, each once."""
    users = [history(30, seed=1), history(1, seed=2), history(80, seed=3)]
    prompts, refusals = builder.build([list_request(events) for events in users])
    assert not refusals
    encoder = RowEncoder(checkpoint.config, checkpoint.catalog)
    for prompt, events in zip(prompts, users, strict=True):
        np.testing.assert_array_equal(
            prompt.rows["prompt_embeds"].numpy(), encoder.encode(History.from_events(events)).rows
        )
        assert (prompt.params.max_tokens, prompt.params.logprobs) == (1, 10)
        seen = np.frombuffer(prompt.params.extra_args[SEEN_ARGUMENT], INDEX_DTYPE).tolist()
        assert sorted(seen) == sorted(
            {checkpoint.catalog.index(one.video_id) for one in events if one.video_id in checkpoint.catalog}
        )


def test_a_prompt_begins_with_what_is_known_of_its_user(checkpoints: dict[str, Checkpoint]) -> None:
    """The attributes that the model has a use for, of each user their own."""
    checkpoint = checkpoints["everything"]
    profiles = [{"country": "jp", "age": 40.0}, {}, {"age": 3, "shoes": "red"}]
    requests = [list_request(history(4, seed), profile=profile) for seed, profile in enumerate(profiles)]
    prompts, _ = PromptBuilder(checkpoint).build(requests)
    encoder = RowEncoder(checkpoint.config, checkpoint.catalog)
    for prompt, seed, profile in zip(prompts, range(3), profiles, strict=True):
        rows = encoder.encode(History.from_events(history(4, seed)), profile).rows
        np.testing.assert_array_equal(prompt.rows["prompt_embeds"].numpy(), rows)


def test_a_slate_is_a_step_for_each_video(builder: PromptBuilder) -> None:
    """Of each step nothing is asked but the video it takes."""
    (prompt,), _ = builder.build([list_request(history(4), 6, "slate")])
    assert (prompt.params.max_tokens, prompt.params.logprobs) == (6, 0)


def test_videos_that_have_joined_count_as_seen_and_as_left(checkpoints: dict[str, Checkpoint]) -> None:
    """A request is measured by the catalog as it is when it comes."""
    checkpoint = open_checkpoint(checkpoints["everything"].directory)
    builder = PromptBuilder(checkpoint)
    request = list_request([watch("u", "1", video_id="joins")], count=ITEMS + 1)
    _, refusals = builder.build([request])
    assert f"{ITEMS} of the catalog's {ITEMS} videos" in refusals[0].message
    for video in ("joins", "joins too"):
        checkpoint.catalog.add(video)
    (prompt,), _ = builder.build([request])
    assert prompt.params.extra_args[SEEN_ARGUMENT] == np.array([ITEMS], INDEX_DTYPE).tobytes()


def test_no_requests_give_no_prompts(builder: PromptBuilder) -> None:
    """An empty batch is no mistake."""
    assert builder.build([]) == ([], {})


def output(scores: list[float], tokens: tuple[int, ...] = (3, 3, 1, 2), steps: int = 1) -> SimpleNamespace:
    """What vLLM gives back: of each step the sampled video, then the best ones, perhaps more than were asked for."""
    width = len(tokens) // steps
    best = SimpleNamespace(
        token_ids=list(tokens), logprobs=scores, start_indices=list(range(0, len(tokens), width))
    )
    return SimpleNamespace(outputs=[SimpleNamespace(logprobs=best)], num_cached_tokens=None)


def test_a_list_is_as_long_as_it_was_asked_for(builder: PromptBuilder) -> None:
    """vLLM answers a step with the longest list of its batch."""
    (prompt,), _ = builder.build([list_request(history(4), count=2)])
    assert builder.read(prompt, output([-1.0, -1.0, -2.0, -3.0])) == ListResult(
        ["v3", "v1"], [-1.0, -2.0], 4, 0
    )


def test_a_slate_is_what_was_sampled(builder: PromptBuilder) -> None:
    """Also beside requests that ask for more of each step."""
    (prompt,), _ = builder.build([list_request(history(4), 2, "slate")])
    scores = [-1.0, -1.0, -2.0, -1.5, -1.5, -2.5]
    assert builder.read(prompt, output(scores, (3, 3, 1, 1, 1, 2), steps=2)) == ListResult(
        ["v3", "v1"], [-1.0, -1.5], 4, 0
    )


@pytest.mark.parametrize("strategy", ["topk", "slate"])
def test_scores_that_are_no_numbers_are_refused(builder: PromptBuilder, strategy: Strategy) -> None:
    """A model that overflows recommends nothing rather than anything."""
    (prompt,), _ = builder.build([list_request(history(4), 2, strategy)])
    outcome = builder.read(prompt, output([np.nan] * 4, steps=2))
    assert isinstance(outcome, ListRefusal)
    assert "finite" in outcome.message
