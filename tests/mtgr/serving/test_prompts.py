"""What is sent to the engine is checked before it is sent, and what comes back is a list or a refusal."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from events import EventMaker
from serving import ITEMS, list_request

from mtgr.checkpoint import Checkpoint
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListRefusal, ListRequest, ListResult
from mtgr.serving.prompts import PromptBuilder
from mtgr.serving.seen_argument import INDEX_DTYPE, SEEN_ARGUMENT
from schemas.events import Event

pytestmark = pytest.mark.vllm


@pytest.fixture
def builder(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint)


def history(count: int, seed: int = 0) -> list[Event]:
    return EventMaker(seed, ["u"]).take(count)


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
        seen = np.frombuffer(prompt.params.extra_args[SEEN_ARGUMENT], INDEX_DTYPE).tolist()
        assert sorted(seen) == sorted(
            {checkpoint.catalog.index(one.video_id) for one in events if one.video_id in checkpoint.catalog}
        )


def test_no_requests_give_no_prompts(builder: PromptBuilder) -> None:
    """An empty batch is no mistake."""
    assert builder.build([]) == ([], {})


def output(scores: list[float]) -> SimpleNamespace:
    """What vLLM gives back: the sampled video first, then the best ones, perhaps more than were asked for."""
    best = SimpleNamespace(token_ids=[3, 3, 1, 2], logprobs=scores)
    return SimpleNamespace(outputs=[SimpleNamespace(logprobs=best)], num_cached_tokens=None)


def test_a_list_is_as_long_as_it_was_asked_for(builder: PromptBuilder) -> None:
    """vLLM answers a step with the longest list of its batch."""
    (prompt,), _ = builder.build([list_request(history(4), count=2)])
    assert builder.read(prompt, output([-1.0, -1.0, -2.0, -3.0])) == ListResult(
        ["v3", "v1"], [-1.0, -2.0], 4, 0
    )


def test_scores_that_are_no_numbers_are_refused(builder: PromptBuilder) -> None:
    """A model that overflows recommends nothing rather than anything."""
    (prompt,), _ = builder.build([list_request(history(4), count=2)])
    outcome = builder.read(prompt, output([np.nan] * 4))
    assert isinstance(outcome, ListRefusal)
    assert "finite" in outcome.message
