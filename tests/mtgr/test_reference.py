"""Promises of mtgr.reference: lists of unseen videos with true log-probabilities, and refusals for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import ITEMS, MAX_EVENTS, tiny_checkpoint
from events import watch
from histories import interactions
from serving import list_request, random_checkpoint

from mtgr.attributes import pack_attributes
from mtgr.checkpoint import open_checkpoint
from mtgr.config import capacity
from mtgr.errors import InputError
from mtgr.features import RowEncoder, candidate_rows
from mtgr.history import RECORD_DTYPE, History
from mtgr.model.jagged import Layout
from mtgr.reference import ReferenceRecommender
from mtgr.requests import (
    MAX_SLATE,
    AddedVideos,
    ListOutcome,
    ListRefusal,
    ListRequest,
    ListResult,
    NewVideo,
    Strategy,
)
from schemas.events import Interaction

CAPACITY = capacity(MAX_EVENTS)
ATTRIBUTED: dict[str, Any] = {
    "spare_items": 3,
    "item_bias": True,
    "video_categories": [{"name": "author", "size": 40}],
    "user_categories": [{"name": "country", "size": 8}],
}


def _events(count: int, seed: int = 0) -> list[Interaction]:
    return interactions(seed, count)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRecommender:
    """A recommender of random weights over the videos v0 to v299."""
    return ReferenceRecommender(tiny_checkpoint(tmp_path_factory.mktemp("reference") / "checkpoint"))


@pytest.fixture
def attributed(tmp_path: Path) -> ReferenceRecommender:
    """One that knows attributes of users and videos, and has three spare places, for itself."""
    return ReferenceRecommender(
        random_checkpoint(tmp_path / "checkpoint", max_events=MAX_EVENTS, n_items=ITEMS, **ATTRIBUTED)
    )


def _list(recommender: ReferenceRecommender, request: ListRequest) -> ListResult:
    (outcome,) = recommender.recommend([request])
    assert isinstance(outcome, ListResult)
    return outcome


def _assert_alike(outcome: ListOutcome, alone: ListResult) -> None:
    """The same list; sums in a batch of another size differ in the last digits."""
    assert isinstance(outcome, ListResult)
    assert outcome.video_ids == alone.video_ids
    assert outcome.scores == pytest.approx(alone.scores, abs=1e-5)


def test_a_list_is_of_unseen_videos_best_first(recommender: ReferenceRecommender) -> None:
    """Nothing in the history is recommended, nothing twice, and scores fall."""
    events = _events(40)
    outcome = _list(recommender, list_request(events, count=50))
    assert len(outcome.video_ids) == len(set(outcome.video_ids)) == 50
    assert not {event.video_id for event in events} & set(outcome.video_ids)
    assert outcome.scores == sorted(outcome.scores, reverse=True)
    assert (outcome.sequence_length, outcome.cached_tokens) == (40, 0)


def test_scores_are_log_probabilities_over_the_unseen_videos(recommender: ReferenceRecommender) -> None:
    """Asked for all videos that are left, the probabilities of the list sum to one."""
    events = _events(30)
    left = ITEMS - len(
        {event.video_id for event in events if event.video_id in recommender.checkpoint.catalog}
    )
    outcome = _list(recommender, list_request(events, count=left))
    assert np.exp(outcome.scores).sum() == pytest.approx(1, abs=1e-5)
    (refusal,) = recommender.recommend([list_request(events, count=left + 1)])
    assert refusal == ListRefusal(
        "RequestRefused",
        f"count is {left + 1}, but {left} of the catalog's {ITEMS} videos are unseen by this user",
    )


def test_a_list_is_what_the_model_says(recommender: ReferenceRecommender) -> None:
    """The scores are those of the loaded model on the encoded history, computed apart."""
    events = _events(20)
    checkpoint = recommender.checkpoint
    history = History.from_events(events)
    encoded = RowEncoder(checkpoint.config, checkpoint.catalog).encode(history)
    model = checkpoint.load_model()
    with torch.no_grad():
        layout = Layout.of(np.array([len(encoded.rows)]))
        logits = model.logits(model(torch.from_numpy(encoded.rows), layout)[-1])
    logits[[index for index in encoded.token_ids.tolist() if index < ITEMS]] = -torch.inf
    best = torch.log_softmax(logits, 0).topk(10)
    outcome = _list(recommender, list_request(events))
    assert outcome.video_ids == [checkpoint.catalog.video_id(index) for index in best.indices.tolist()]
    assert outcome.scores == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_list_does_not_depend_on_who_else_is_in_the_batch(recommender: ReferenceRecommender) -> None:
    """Users of all lengths together get what they get alone, in the order they asked in."""
    requests = [list_request(_events(count, seed=count), count=5) for count in (1, 40, 7, 16, 33, 2)]
    for request, outcome in zip(requests, recommender.recommend(requests), strict=True):
        _assert_alike(outcome, _list(recommender, request))


def _log_probability(
    recommender: ReferenceRecommender, rows: npt.NDArray[np.float32], seen: list[int]
) -> torch.Tensor:
    """Of the videos of the catalog, computed apart: of the row after these, where `seen` have none."""
    model = recommender.checkpoint.load_model()
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(rows), Layout.of(np.array([len(rows)])))[-1])
    logits[seen] = -torch.inf
    return torch.log_softmax(logits, 0)


def test_a_slate_is_made_video_by_video(recommender: ReferenceRecommender) -> None:
    """Each is the likeliest after the ones before it, as candidates after the history; none twice, none seen."""
    events = _events(CAPACITY)  # so that the model's length is passed
    checkpoint = recommender.checkpoint
    encoded = RowEncoder(checkpoint.config, checkpoint.catalog).encode(History.from_events(events))
    rows, seen = encoded.rows, [index for index in encoded.token_ids.tolist() if index < ITEMS]
    outcome = _list(recommender, list_request(events, 8, "slate"))
    assert len(outcome.video_ids) == len(outcome.scores) == 8
    for video_id, score in zip(outcome.video_ids, outcome.scores, strict=True):
        best = _log_probability(recommender, rows, seen).max(0)
        assert video_id == checkpoint.catalog.video_id(int(best.indices))
        assert score == pytest.approx(float(best.values), abs=1e-5)
        seen.append(int(best.indices))
        rows = np.concatenate([rows, candidate_rows(np.array(seen[-1:]), checkpoint.config)])


def test_slates_and_lists_of_a_batch_are_what_they_are_alone(recommender: ReferenceRecommender) -> None:
    """Whatever their lengths; a slate of one video is a list of one."""
    kinds: list[tuple[int, int, Strategy]] = [
        (3, 5, "slate"),
        (40, 5, "topk"),
        (40, 1, "slate"),
        (17, 9, "slate"),
        (40, 1, "topk"),
    ]
    requests = [
        list_request(_events(count, seed=count), length, strategy) for count, length, strategy in kinds
    ]
    outcomes = recommender.recommend(requests)
    for request, outcome in zip(requests, outcomes, strict=True):
        _assert_alike(outcome, _list(recommender, request))
    one = outcomes[2]
    assert isinstance(one, ListResult)
    _assert_alike(outcomes[4], one)


def test_what_is_known_of_a_user_matters(attributed: ReferenceRecommender) -> None:
    """As far as the model has a use for it."""
    events = _events(10)
    nobody = _list(attributed, list_request(events))
    somebody = _list(attributed, list_request(events, profile={"country": "jp"}))
    assert somebody.scores != pytest.approx(nobody.scores, abs=1e-4)
    _assert_alike(_list(attributed, list_request(events, profile={"shoes": "red"})), nobody)


def test_new_videos_are_recommended_until_no_place_is_left(attributed: ReferenceRecommender) -> None:
    """Each by its attributes; before it joins, a new video is nobody's, and in a history it is an unknown one."""
    request = list_request(_events(10), ITEMS - 10)
    before = _list(attributed, request)
    tagged = NewVideo("one", pack_attributes({"author": "a"}))
    assert attributed.add_videos([tagged, NewVideo("v7")]) == AddedVideos(1, 1, [])
    after = _list(attributed, list_request(_events(10), ITEMS - 9))
    assert "one" not in before.video_ids
    assert "one" in after.video_ids
    more = [NewVideo(name) for name in ("two", "three", "four", "five")]
    assert attributed.add_videos(more) == AddedVideos(2, 0, ["four", "five"])
    assert attributed.add_videos(more) == AddedVideos(0, 2, ["four", "five"])
    watched = _list(attributed, list_request([watch("u", "1", video_id="one")], ITEMS + 2))
    assert "one" not in watched.video_ids
    assert {"two", "three"} <= set(watched.video_ids)


def test_a_new_video_is_what_its_bucket_and_its_attributes_say(attributed: ReferenceRecommender) -> None:
    """The score of two videos of one bucket differs by their attributes alone."""
    catalog = attributed.checkpoint.catalog
    names = [name for name in map(str, range(100)) if catalog.bucket(name) == catalog.bucket("0")][:3]
    kinds = [{"author": "a"}, {"author": "a"}, {"author": "b"}]
    attributed.add_videos(
        [NewVideo(name, pack_attributes(kind)) for name, kind in zip(names, kinds, strict=True)]
    )
    outcome = _list(attributed, list_request(_events(10), ITEMS - 7))
    score = dict(zip(outcome.video_ids, outcome.scores, strict=True))
    assert score[names[0]] == pytest.approx(score[names[1]], abs=1e-5)
    assert score[names[0]] != pytest.approx(score[names[2]], abs=1e-3)


def test_a_video_with_torn_attributes_is_refused_with_all_that_come_with_it(
    attributed: ReferenceRecommender,
) -> None:
    """Nothing is added then."""
    with pytest.raises(ValueError, match="attributes: "):
        attributed.add_videos([NewVideo("fine"), NewVideo("torn", b"\x81")])
    assert "fine" not in attributed.checkpoint.catalog


def test_only_unknown_videos_are_a_history_too(recommender: ReferenceRecommender) -> None:
    """A user who watched nothing of the catalog gets a list of it."""
    outcome = _list(recommender, list_request([watch("u", "1", video_id="elsewhere")], count=ITEMS))
    assert len(outcome.video_ids) == ITEMS


def _corrupt(field: str, value: float) -> ListRequest:
    request = list_request(_events(3))
    records = np.frombuffer(request.records, RECORD_DTYPE).copy()
    records[field][1] = value
    return ListRequest("u", records.tobytes(), request.videos, 10)


WHOLE = list_request(_events(3))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (list_request([]), "history is empty, where at least 1 event is wanted"),
        (
            list_request(_events(CAPACITY + 1)),
            f"history has {CAPACITY + 1} events, where the model takes {CAPACITY}",
        ),
        (list_request(_events(3), count=0), "count is 0, where at least 1 is wanted"),
        (
            list_request(_events(3), MAX_SLATE + 1, "slate"),
            f"count is {MAX_SLATE + 1}, where a slate has at most {MAX_SLATE} videos",
        ),
        (
            ListRequest("u", WHOLE.records, WHOLE.videos, 10, profile=b"\x81"),
            "profile is corrupt: attributes: ",
        ),
        (list_request(_events(3), count=ITEMS + 1), f"count is {ITEMS + 1}, but "),
        (ListRequest("u", WHOLE.records[:-1], WHOLE.videos, 10), "history is corrupt: records: "),
        (ListRequest("u", WHOLE.records, WHOLE.videos + b"x", 10), "history is corrupt: videos: "),
        (ListRequest("u", WHOLE.records, b"\xff" * len(WHOLE.videos), 10), "history is corrupt: "),
        (_corrupt("watch_seconds", np.nan), "history is corrupt: watch_seconds of event 1 is nan"),
        (_corrupt("event_type", 77), "history is corrupt: event type of event 1 is 77"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_others_are_served(
    recommender: ReferenceRecommender, request_: ListRequest, message: str
) -> None:
    """A bad request is answered by a refusal that says why, in its place among lists for the others."""
    good = list_request(_events(CAPACITY))
    first, refusal, last = recommender.recommend([good, request_, good])
    assert isinstance(refusal, ListRefusal)
    assert refusal.error == "RequestRefused"
    assert refusal.message.startswith(message)
    _assert_alike(first, _list(recommender, good))
    _assert_alike(last, _list(recommender, good))


def test_no_requests_are_no_lists(recommender: ReferenceRecommender) -> None:
    """An empty batch is answered by an empty list."""
    assert recommender.recommend([]) == []


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A wrong path is one clear error, not a failure at the first request."""
    with pytest.raises(InputError, match="no such checkpoint directory"):
        ReferenceRecommender(tmp_path / "nowhere")


def test_an_opened_checkpoint_serves_as_its_directory_does(recommender: ReferenceRecommender) -> None:
    """A recommender takes a checkpoint that is open already."""
    again = ReferenceRecommender(open_checkpoint(recommender.checkpoint.directory))
    assert again.recommend([WHOLE]) == recommender.recommend([WHOLE])
