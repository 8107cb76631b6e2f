"""Promises of mtgr.training: it learns what will be watched, from what the daemon would have seen."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from events import watch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.history import History
from mtgr.model.embeddings import unpack_rows
from mtgr.model.mtgr import MTGR
from mtgr.presets import PRESETS
from mtgr.training.batches import Batcher
from mtgr.training.held_out import HeldOutTest
from mtgr.training.log import EventLog
from mtgr.training.loop import Progress
from mtgr.training.loss import SampledSoftmax
from mtgr.training.options import TrainingOptions
from mtgr.training.trainer import choose_device, train
from mtgr.training.windows import NO_TARGET, HeldOut, hold_out, make_windows, next_new_videos
from schemas.events import Event, Like
from stream.sequences import UserState

CONFIG = PRESETS["tiny"].replace(d_model=32, d_qk=16, d_v=16, max_events=32, n_items=10, unknown_buckets=4)
WORDS = "abcdefghij"
CATALOG = Catalog(WORDS, 4)
CPU = torch.device("cpu")


def _log(videos: str, user_id: str = "u") -> list[Event]:
    """A watch for each letter, a like for each capital."""
    return [
        watch(user_id, f"{user_id}{place}", video_id=video, timestamp_ms=1_000 * place)
        if video.islower()
        else Like(
            event_id=f"{user_id}{place}", user_id=user_id, video_id=video.lower(), timestamp_ms=1_000 * place
        )
        for place, video in enumerate(videos)
    ]


def _targets(videos: str) -> str:
    history = History.from_events(_log(videos))
    targets = next_new_videos(history, CATALOG.indices(history.video_ids), len(CATALOG))
    return "".join("-" if target == NO_TARGET else WORDS[target] for target in targets)


@pytest.mark.parametrize(
    ("videos", "targets"),
    [
        ("abc", "abc-"),
        ("aAbBc", "abbcc-"),
        ("aab", "abb-"),
        ("abab", "ab---"),
        ("Aab", "bbb-"),
        ("azb", "abb-"),
        ("", "-"),
        ("A", "--"),
    ],
)
def test_the_target_is_the_next_watched_video_that_is_new(videos: str, targets: str) -> None:
    """Likes, repeats, videos liked before and videos outside the catalog are no targets; what follows is."""
    assert _targets(videos) == targets


@given(st.text(WORDS + WORDS.upper() + "z", max_size=30))
def test_no_target_was_seen_before(videos: str) -> None:
    """After each event the target lies ahead and not behind: it could be in a list made there."""
    for place, target in enumerate(_targets(videos)):
        assert target == "-" or (target in videos[place:] and target not in videos[:place].lower())


def test_duplicates_are_left_out_as_the_daemon_leaves_them_out() -> None:
    """An event id that a user has already changes nothing; the same id of another user does."""
    events = _log("abc")
    log = EventLog.collect([*events, *events, *_log("b", "w"), events[1]])
    assert {user: history.video_ids for user, history in log.histories.items()} == {
        "u": ["a", "b", "c"],
        "w": ["b"],
    }
    assert len(log) == 4


def test_the_catalog_of_a_log_is_its_videos_by_frequency() -> None:
    """Every video is there, the most frequent first; too few of them are told."""
    assert EventLog.collect(_log("abccbc")).catalog(4).video_ids == ["c", "b", "a"]
    with pytest.raises(InputError, match="1 videos, where training needs at least 2"):
        EventLog.collect(_log("aaa")).catalog(4)


def _long_config(events: int) -> tuple[ModelConfig, Catalog, list[Event]]:
    config = CONFIG.replace(max_events=32, n_items=events)
    events_ = [watch("u", f"e{place}", video_id=f"v{place}", timestamp_ms=place) for place in range(events)]
    return config, Catalog([f"v{place}" for place in range(events)], 4), list(events_)


@given(st.integers(2, 300))
def test_a_test_sees_the_history_that_the_daemon_would_hold(events: int) -> None:
    """The held-out video is the last, and before it stands what is left in the daemon after its cuts."""
    config, catalog, log = _long_config(events)
    training, (test,) = hold_out(EventLog.collect(log), config, catalog)
    state = UserState("u")
    for offset, event in enumerate(log[:-1]):
        state.fold(event, offset, 0, None, config.max_events)
    assert catalog.video_id(test.target) == log[-1].video_id
    assert test.history.video_ids == History.from_bytes(state.records, state.videos).video_ids
    assert [len(history) for history in training] == [events - 1]


@given(st.integers(40, 160), st.integers(1, 60), st.randoms(use_true_random=False))
def test_what_is_held_out_is_new_to_the_history_before_it(
    events: int, videos: int, draws: random.Random
) -> None:
    """Lists leave seen videos out, so a target that is in the history could not be hit by any model."""
    config = CONFIG.replace(max_events=32, n_items=videos)
    catalog = Catalog([f"v{video}" for video in range(videos)], 4)
    log = [
        watch("u", f"e{place}", video_id=f"v{draws.randrange(videos)}", timestamp_ms=place)
        for place in range(events)
    ]
    (training,), tests = hold_out(EventLog.collect(log), config, catalog)
    for test in tests:
        assert catalog.video_id(test.target) not in test.history.video_ids
        assert log[len(training)].video_id == catalog.video_id(test.target)
        assert training.video_ids[-len(test.history) :] == test.history.video_ids


def test_a_user_with_nothing_to_predict_is_not_tested() -> None:
    """One watch, or likes alone, leave no video to hold out; a repeat or a like at the end is not it."""
    training, tests = hold_out(
        EventLog.collect([*_log("a", "one"), *_log("AB", "likes"), *_log("abaB", "two")]), CONFIG, CATALOG
    )
    assert [history.video_ids for history in training] == [["a"], ["a", "b"], ["a"]]
    assert [(test.history.video_ids, test.target) for test in tests] == [(["a"], 1)]


@given(st.integers(1, 400))
def test_a_long_history_is_learnt_once_and_at_every_length_the_daemon_serves(events: int) -> None:
    """Windows keep to the capacity, every event is a target once, and after the first window with a cut's past."""
    config, catalog, log = _long_config(events)
    windows = make_windows([History.from_events(log)], config, catalog)
    targets = windows.targets[windows.targets != NO_TARGET]
    assert sorted(targets.tolist()) == list(range(events))
    assert windows.lengths.max() <= config.max_length
    for start, length in zip(windows.starts[1:].tolist(), windows.lengths[1:].tolist(), strict=True):
        learnt = np.flatnonzero(windows.targets[start : start + length] != NO_TARGET)
        assert learnt.min() >= config.max_events - 16


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(20, 200), st.integers(0, 3))
def test_an_epoch_shows_every_window_once_within_the_token_budget(
    lengths: list[int], budget: int, seed: int
) -> None:
    """Batches hold all windows, none twice, and no more tokens than allowed unless one window alone does."""
    histories = [
        History.from_events([watch("u", f"{number}-{place}", video_id="a") for place in range(length)])
        for number, length in enumerate(lengths)
    ]
    windows = make_windows(histories, CONFIG, CATALOG)
    options = TrainingOptions(batch_tokens=budget, unknown_share=0.0)
    batcher = Batcher(windows, CATALOG, CONFIG, options, np.random.default_rng(seed))
    plan = batcher.plan()
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(windows)))
    for chosen in plan:
        batch = batcher.batch(chosen, CPU)
        assert len(chosen) == 1 or len(batch.token_ids) <= budget
        begin = 0
        for owner, number in enumerate(chosen.tolist()):
            start, length = windows.starts[number], windows.lengths[number]
            assert np.array_equal(batch.rows[begin : begin + length], windows.rows[start : start + length])
            targets = np.full(length, NO_TARGET)
            targets[batch.places[batch.owners == owner] - begin] = batch.targets[batch.owners == owner]
            assert np.array_equal(targets, windows.targets[start : start + length])
            begin += length
        assert begin == len(batch.rows)


def test_a_share_of_events_is_shown_as_unknown() -> None:
    """At a share of one every event's row is its bucket's row, while what is to be predicted stays."""
    windows = make_windows([History.from_events(_log("abcde"))], CONFIG, CATALOG)
    options = TrainingOptions(unknown_share=1.0)
    batch = Batcher(windows, CATALOG, CONFIG, options, np.random.default_rng(0)).batch(np.array([0]), CPU)
    model = MTGR(CONFIG)
    hidden = [CATALOG.bucket(video) for video in "abcde"]
    assert unpack_rows(batch.rows, model.config).video[1:].tolist() == hidden
    assert batch.targets.tolist() == [0, 1, 2, 3, 4]
    assert batch.places.tolist() == [0, 1, 2, 3, 4]


def test_the_sampled_loss_is_the_full_one_on_average() -> None:
    """With the logQ correction, the mean over many draws comes to the cross entropy over the whole catalog."""
    config = CONFIG.replace(n_items=40, temperature=1.0)
    catalog = Catalog([f"v{number}" for number in range(40)], 4)
    log = [watch("u", f"e{place}", video_id=f"v{place}") for place in range(6)]
    windows = make_windows([History.from_events(list(log))], config, catalog)
    batch = Batcher(
        windows, catalog, config, TrainingOptions(unknown_share=0.0), np.random.default_rng(0)
    ).batch(np.array([0]), CPU)
    torch.manual_seed(0)
    model = MTGR(config)
    counts = torch.tensor([1 + number % 7 for number in range(40)])
    sampled = SampledSoftmax(counts, 5_000)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        estimate = torch.stack([sampled(model, batch, generator) for _ in range(20)]).mean()
        logits = model.logits(model(batch.rows, batch.layout)[:6])
        # only the target of the window's own videos competes
        rows = []
        for place in range(6):
            others = torch.tensor([place, *range(6, 40)])
            rows.append(torch.log_softmax(logits[place, others], 0)[0])
    assert estimate.item() == pytest.approx(-torch.stack(rows).mean().item(), abs=5e-3)


def test_accuracy_is_counted_as_it_is_defined() -> None:
    """Hits and gains of known ranks among unseen videos give the HR@10 and NDCG@10 one computes by hand."""
    catalog = Catalog([f"v{number}" for number in range(30)], 4)
    config = CONFIG.replace(n_items=30)
    popularity = np.arange(30, 0, -1)  # v0 is the most popular
    seen_two_best = History.from_events([watch("u", "1", video_id="v0"), watch("u", "2", video_id="v1")])
    seen_last = History.from_events([watch("u", "1", video_id="v29")])
    tests = [
        HeldOut(seen_two_best, 2),
        HeldOut(seen_last, 2),
        HeldOut(seen_last, 10),
        HeldOut(seen_two_best, 11),
    ]
    accuracy = HeldOutTest(tests, config, catalog).of_popularity(popularity)
    # ranks 1, 3, 11 and 10
    assert accuracy.users == 4
    assert accuracy.hit_rate == pytest.approx(3 / 4)
    assert accuracy.ndcg == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(11)) / 4)


def _series(users: int = 120, videos: int = 60, length: int = 12, seed: int = 0) -> list[Event]:
    """Users who watch a series in order, each from a place of their own: the next video is certain."""
    chance = random.Random(seed)
    events: list[Event] = []
    for user in range(users):
        first = chance.randrange(videos)
        events += [
            watch(f"u{user}", f"{user}-{place}", video_id=f"v{(first + place) % videos}", timestamp_ms=place)
            for place in range(length)
        ]
    return events


QUICK: dict[str, Any] = {"batch_tokens": 400, "negatives": 64, "device": "cpu"}


def test_a_planted_pattern_is_learnt() -> None:
    """Where the next video is certain, a short training finds it, and popularity does not."""
    trained = train(_series(), CONFIG, TrainingOptions(epochs=30, **QUICK))
    assert trained.accuracy.hit_rate > 0.9
    assert trained.accuracy.ndcg > 0.6
    assert trained.popularity.hit_rate < 0.5
    assert (trained.users, trained.events, len(trained.catalog)) == (120, 1440, 60)


def test_the_same_seed_gives_the_same_model() -> None:
    """Two trainings agree in every weight, and leave the caller's random numbers alone; another seed differs."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights = [
        train(_series(20), CONFIG, TrainingOptions(epochs=2, seed=seed, **QUICK)).model.state_dict()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)
    assert any(not torch.equal(weights[2][name], tensor) for name, tensor in weights[0].items())


def test_training_ends_when_its_time_is_up_and_says_how_far_it_is() -> None:
    """A limit in seconds ends a training that would go on for long; progress runs from 0 to 1 meanwhile."""
    seen: list[Progress] = []
    trained = train(_series(), CONFIG, TrainingOptions(epochs=100_000, max_seconds=3.0, **QUICK), seen.append)
    assert trained.epochs < 100_000
    assert trained.seconds < 30  # far less than the epochs, whatever the machine
    shares = [progress.done for progress in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [progress.step for progress in seen] == list(range(1, trained.steps + 1))
    assert all(progress.seconds_left >= 0 and progress.tokens_per_second > 0 for progress in seen)


def test_a_training_that_diverges_is_told() -> None:
    """A learning rate beyond reason ends in one line that names it, not in a model of NaN."""
    with pytest.raises(InputError, match=r"training diverged: .* learning rate 1e\+30"):
        train(_series(20), CONFIG, TrainingOptions(epochs=50, learning_rate=1e30, **QUICK))


@pytest.mark.parametrize(
    ("log", "message"),
    [([], "0 videos, where training needs at least 2"), (_log("ABCD"), "no user has a watch event")],
    ids=["empty", "likes alone"],
)
def test_a_log_with_nothing_to_learn_from_is_told(log: list[Event], message: str) -> None:
    """Too few videos, or none that was watched, end in one line."""
    with pytest.raises(InputError, match=message):
        train(log, CONFIG, TrainingOptions(epochs=1, **QUICK))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_told() -> None:
    """CUDA asked for where there is none is one line; `auto` takes the CPU then."""
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device cuda: PyTorch finds none here"):
        choose_device("cuda")
