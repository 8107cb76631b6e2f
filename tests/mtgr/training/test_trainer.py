"""Promises of mtgr.training.trainer: it learns what will be watched, and says how well."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from events import watch
from training import CONFIG, QUICK, series, words

from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.evaluation.gauc import user_auc
from mtgr.evaluation.protocol import LeaveOneOut, TimeSplit
from mtgr.features import RowEncoder, candidate_rows
from mtgr.history import History
from mtgr.model.jagged import Layout
from mtgr.model.masks import Roles
from mtgr.training import loop
from mtgr.training.hooks import Hooks, Progress
from mtgr.training.log import EventLog
from mtgr.training.options import TrainingOptions
from mtgr.training.trainer import Trained, TrainingInputs, choose_device, train
from schemas.events import Event, Like, Profile

HSTU: dict[str, Any] = {
    "positions": "none",
    "position_bias": True,
    "time_bias": True,
    "similarity": "dot",
    "temperature": 1.0,
    "item_bias": True,
    "d_ff": 32,
}


def _train(
    events: list[Event], hooks: Hooks | None = None, config: ModelConfig = CONFIG, **options: Any
) -> Trained:
    return train(
        TrainingInputs(
            events=events,
            config=config,
            options=TrainingOptions(**{**QUICK, **options}),
            protocol=LeaveOneOut(),
        ),
        hooks,
    )


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {}),
        ({}, {"negatives": "all", "dropout": 0.1, "weight_decay": 0.01, "schedule": "cosine"}),
        ({}, {"in_batch": True, "average_decay": 0.9, "precision": "bfloat16"}),
        (HSTU, {}),
    ],
    ids=["defaults", "all negatives", "in-batch negatives", "relative biases"],
)
def test_a_planted_pattern_is_learnt(config: dict[str, Any], options: dict[str, Any]) -> None:
    """Where the next video is certain, a short training finds it, and popularity does not."""
    trained = _train(series(), config=CONFIG.replace(**config), epochs=30, **options)
    assert trained.accuracy is not None
    assert trained.popularity is not None
    assert trained.held_out == "validation"
    assert trained.accuracy.hit_rate > 0.9
    assert trained.accuracy.ndcg > 0.6
    assert trained.popularity.hit_rate < 0.5
    assert (trained.users, trained.events, trained.learnt_events) == (120, 1440, 1200)
    assert len(trained.catalog) == 60


def test_all_before_the_test_can_be_learnt() -> None:
    """With part known the validation cases are learnt too, for all epochs, and the test cases are what is told."""
    trained = _train(series(), epochs=8, part="known", patience=1)
    assert trained.held_out == "test"
    assert trained.accuracy is not None
    assert trained.accuracy.cases == 120
    assert trained.learnt_events == 1320
    assert (trained.epochs, trained.best, trained.ending) == (8, None, "epochs")


def test_without_a_split_everything_is_learnt() -> None:
    """A model for serving alone holds nothing back, and there is nothing to tell of it."""
    trained = train(
        TrainingInputs(events=series(20), config=CONFIG, options=TrainingOptions(epochs=1, **QUICK))
    )
    assert trained.learnt_events == trained.events == 240
    assert (trained.held_out, trained.accuracy, trained.popularity) == (None, None, None)


def test_the_same_seed_gives_the_same_model() -> None:
    """Two trainings agree in every weight, and leave the caller's random numbers and threads alone; another seed
    differs.
    """
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    weights = [_train(series(20), epochs=2, seed=seed, dropout=0.1).model.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)
    assert any(not torch.equal(weights[2][name], tensor) for name, tensor in weights[0].items())


def test_averaging_changes_what_is_kept_and_not_what_is_trained() -> None:
    """Step by step the losses are those of a training without it, to the last bit; the model is another one."""
    losses: list[list[float]] = []
    models = []
    for decay in (None, 0.9):
        seen: list[float] = []
        hooks = Hooks(on_step=lambda progress, seen=seen: seen.append(progress.loss))
        trained = _train(series(20), hooks, epochs=3, dropout=0.1, average_decay=decay)
        models.append(trained.model.state_dict())
        losses.append(seen)
    assert len(losses[0]) > 6
    assert losses[0] == losses[1]
    assert not torch.equal(models[0]["layers.0.uvqk.weight"], models[1]["layers.0.uvqk.weight"])


def test_the_best_weights_are_kept_and_training_ends_when_nothing_is_gained() -> None:
    """A rate too high for long spoils what was learnt: the model is the one that the best evaluation saw."""
    kept: list[dict[str, torch.Tensor]] = []
    hooks = Hooks(keep=lambda config, catalog, weights: kept.append(weights))  # type: ignore[func-returns-value]
    trained = _train(
        series(), hooks, epochs=200, min_steps=0, patience=2,
        schedule="constant", learning_rate=0.05, warm_up_steps=1,
    )  # fmt: skip
    assert trained.ending == "patience"
    assert trained.epochs < 200
    assert trained.best is not None
    assert trained.best.epoch == trained.epochs - 2
    assert trained.accuracy == trained.best.accuracy
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, kept[-1][name])


def test_a_small_log_is_learnt_for_a_least_number_of_steps() -> None:
    """Without a number of epochs it takes as many as that is, and patience counts only after it."""
    short = _train(series(20), min_steps=1, learning_rate=1e-9, patience=2)
    steps = short.steps // 3
    assert (short.epochs, short.ending) == (3, "patience")
    least = 10 * steps
    patient = _train(series(20), epochs=40, min_steps=least, learning_rate=1e-9, patience=2)
    assert (patient.epochs, patient.ending) == (11, "patience")
    whole = _train(series(20), min_steps=least, learning_rate=1e-9, patience=2)
    assert (whole.epochs, whole.ending) == (10, "epochs")


def test_training_ends_when_its_time_is_up_and_says_how_far_it_is() -> None:
    """A limit in seconds ends a training that would go on for long; progress runs from 0 to 1 meanwhile."""
    seen: list[Progress] = []
    trained = _train(series(), Hooks(on_step=seen.append), epochs=100_000, max_seconds=3.0, patience=None)
    assert trained.ending == "time"
    assert trained.epochs < 100_000
    assert trained.seconds < 30  # far less than the epochs, whatever the machine
    shares = [progress.done for progress in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [progress.step for progress in seen] == list(range(1, trained.steps + 1))
    assert all(progress.seconds_left >= 0 and progress.tokens_per_second > 0 for progress in seen)


def test_a_training_that_diverges_is_told() -> None:
    """A learning rate beyond reason ends in one line that names step, users and rate, not in a model of NaN."""
    with pytest.raises(InputError) as caught:
        _train(series(20), epochs=50, learning_rate=1e30)
    message = str(caught.value)
    assert message.startswith("training diverged: ")
    for part in (
        " is nan at step ",
        "in a batch of the users 'u",
        "learning rate 1e+30",
        "no good checkpoint",
    ):
        assert part in message


@pytest.mark.parametrize("part", ["training", "known", None], ids=["validation", "test", "nothing held out"])
def test_a_model_without_scores_is_never_kept(part: str | None) -> None:
    """Where the last step leaves finite weights whose scores are none, the loss of no step tells it."""
    kept: list[object] = []
    hooks = Hooks(keep=lambda config, catalog, weights: kept.append(weights))  # type: ignore[func-returns-value]
    options = TrainingOptions(
        epochs=1, learning_rate=1e30, warm_up_steps=0, part=part or "training", device="cpu"  # type: ignore[arg-type]
    )  # fmt: skip
    protocol = None if part is None else LeaveOneOut()
    with pytest.raises(
        InputError, match=r"after step 1, which learnt from the users 'u0', 'u1', with learning"
    ):
        train(TrainingInputs(events=series(2), config=CONFIG, options=options, protocol=protocol), hooks)
    assert not kept


def test_weights_that_are_no_numbers_after_a_step_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step, and the users of its batch."""
    monkeypatch.setattr(loop, "learning_rate", lambda *_: math.inf)
    with pytest.raises(
        InputError,
        match=r"weights are no numbers any more after step 1, which learnt from the users 'u[01]', 'u[01]', with",
    ):
        _train(series(2), epochs=1)


def test_a_training_that_diverges_late_names_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an evaluation there is a good checkpoint: the error says of which step, and where."""
    monkeypatch.setattr(loop, "learning_rate", lambda options, peak, step, *_: 1e-3 if step < 20 else 1e30)
    kept: list[dict[str, torch.Tensor]] = []

    def keep(config: object, catalog: object, weights: dict[str, torch.Tensor]) -> str:
        kept.append(weights)
        return "somewhere"

    with pytest.raises(InputError, match=r"the last good checkpoint, of step [0-9]+, is kept in somewhere"):
        _train(series(20), Hooks(keep=keep), epochs=50)
    assert all(tensor.isfinite().all() for weights in kept for tensor in weights.values())


def test_what_users_skip_is_learnt_and_not_listed() -> None:
    """After one video two of three users skip another, the third goes on to a long view: told of it, the model lists
    what is viewed; else what is skipped. What is kept is the same kind of model either way.
    """
    events: list[Event] = []
    for user in range(90):
        skips = user % 3 > 0
        events.append(watch(f"u{user}", f"{user}-0", video_id="first", timestamp_ms=0))
        events.append(
            watch(
                f"u{user}", f"{user}-1", video_id="skipped" if skips else "viewed", timestamp_ms=1,
                watch_seconds=1.0 if skips else 40.0, watch_ratio=0.05 if skips else 1.0,
            )
        )  # fmt: skip
        events.append(watch(f"u{user}", f"{user}-2", video_id=f"v{user % 7}", timestamp_ms=2))
    lists, kept = [], []
    for told in ((), ("skip",)):
        trained = train(
            TrainingInputs(
                events=events,
                config=CONFIG.replace(item_bias=True),
                options=TrainingOptions(epochs=20, negatives="all", conditioned_on=told, device="cpu"),  # type: ignore[arg-type]
                protocol=None,
            )
        )
        encoded = RowEncoder(trained.config, trained.catalog).encode(History.from_events(events[:1]))  # type: ignore[list-item]
        with torch.no_grad():
            hidden = trained.model(torch.from_numpy(encoded.rows), Layout.of(encoded.lengths))[-1]
            logits = trained.model.logits(hidden, len(trained.catalog))
        lists.append(logits[trained.catalog.index("viewed")] > logits[trained.catalog.index("skipped")])
        kept.append({name: tensor.shape for name, tensor in trained.model.state_dict().items()})
    assert lists == [False, True]
    assert kept[0] == kept[1]


def test_a_video_nobody_has_watched_is_ranked_by_its_attributes() -> None:
    """Users watch videos of one colour: a new video of that colour stands above a new one of the other."""
    chance = random.Random(0)
    colours = {f"v{number}": {"colour": ("red", "blue")[number % 2]} for number in range(60)}
    events: list[Event] = []
    for user in range(150):
        favourites = [video for video in colours if int(video[1:]) % 2 == user % 2]
        events += [
            watch(f"u{user}", f"{user}-{place}", video_id=video, timestamp_ms=place)
            for place, video in enumerate(chance.sample(favourites, 10))
        ]
    config = CONFIG.replace(
        video_categories=[{"name": "colour", "size": 8}], spare_items=2, similarity="dot", temperature=1.0
    )
    unwatched = {"red-one": {"colour": "red"}, "blue-one": {"colour": "blue"}}
    trained = train(
        TrainingInputs(
            events=events,
            config=config,
            options=TrainingOptions(
                epochs=12, cold_share=0.2, negatives="all", batch_tokens=400, device="cpu"
            ),
            protocol=LeaveOneOut(),
            videos={**colours, **unwatched},
        )
    )
    catalog, model = trained.catalog, trained.model
    encoder = model.embeddings.video
    red, blue = catalog.index("red-one"), catalog.index("blue-one")
    joined = {}
    for colour, code in (("red", red), ("blue", blue)):
        index = catalog.add(f"later-{colour}")
        assert index is not None
        joined[colour] = index
        encoder.add(index, catalog.bucket(f"later-{colour}"), encoder.categories[code].tolist(), [])
    rows = RowEncoder(trained.config, catalog)
    preferences = []
    for user in (0, 1):
        history = History.from_events([event for event in events if event.user_id == f"u{user}"][:8])  # type: ignore[misc]
        encoded = rows.encode(history)
        with torch.no_grad():
            hidden = model(torch.from_numpy(encoded.rows), Layout.of(encoded.lengths))[-1]
            logits = model.logits(hidden, len(catalog))
        preferences.append((logits[red] - logits[blue], logits[joined["red"]] - logits[joined["blue"]]))
    assert all(difference > 1 for difference in preferences[0])
    assert all(difference < -1 for difference in preferences[1])


def test_ranking_heads_learn_how_videos_are_met() -> None:
    """A model that has seen which videos are watched to their end and which are liked tells them from others."""
    chance = random.Random(0)
    events: list[Event] = []
    for user in range(200):
        for place in range(12):
            video = chance.randrange(40)
            fields = {"user_id": f"u{user}", "video_id": f"v{video}", "timestamp_ms": 2 * place}
            events.append(
                watch(event_id=f"{user}-{place}", watch_ratio=1.0 if video % 3 == 0 else 0.2, **fields)
            )
            if video % 4 == 0:
                events.append(Like(event_id=f"{user}-{place}-like", **fields))
    config = CONFIG.replace(ranking=["watch_through", "like"])
    trained = train(
        TrainingInputs(
            events=events,
            config=config,
            options=TrainingOptions(epochs=12, part="known", ranking_weight=5.0, bare_share=0.0, **QUICK),
            protocol=LeaveOneOut(),
        )
    )
    model, catalog = trained.model, trained.catalog
    assert model.ranking is not None
    rows = RowEncoder(trained.config, catalog)
    users, scores, labels = [], [], []
    log = EventLog.collect(events)
    items = np.arange(len(catalog))
    for user in range(20):
        encoded = rows.encode(log.histories[f"u{user}"])
        joined = np.concatenate([encoded.rows, candidate_rows(items, trained.config)])
        length = len(encoded.rows)
        order = torch.cat([torch.arange(length), torch.full((len(items),), length)])
        roles = Roles(order == 0, order == length, order)
        with torch.no_grad():
            hidden = model(torch.from_numpy(joined), Layout.of(np.array([len(joined)])), roles)
            scores.append(model.ranking(hidden[length:]).numpy())
        users.append(np.full(len(items), user))
        numbers = np.array([int(video[1:]) for video in catalog.video_ids])
        labels.append(np.stack([numbers % 3 == 0, numbers % 4 == 0], axis=1))
    for head in (0, 1):
        found = user_auc(
            np.concatenate(users), np.concatenate(scores)[:, head], np.concatenate(labels)[:, head]
        )
        assert found.gauc > 0.8


def test_a_mixed_mask_is_learnt_with() -> None:
    """The pattern is found by a model whose history sees itself both ways, judged as it is served."""
    config = CONFIG.replace(mask="mixed", recent_events=4)
    trained = train(
        TrainingInputs(
            events=series(),
            config=config,
            options=TrainingOptions(epochs=20, **QUICK),
            protocol=LeaveOneOut(),
        )
    )
    assert trained.accuracy is not None
    assert trained.accuracy.hit_rate > 0.9


def test_what_is_known_of_a_user_is_learnt_from_profiles_in_the_log() -> None:
    """Of users without any history but a profile, each is recommended what its kind watches."""
    chance = random.Random(0)
    events: list[Event] = []
    for user in range(200):
        kind = user % 2
        events.append(
            Profile(
                event_id=f"p{user}", user_id=f"u{user}", timestamp_ms=0, attributes={"kind": f"kind{kind}"}
            )
        )
        events += [
            watch(
                f"u{user}", f"{user}-{place}", video_id=f"v{2 * chance.randrange(30) + kind}", timestamp_ms=1
            )
            for place in range(4)
        ]
    config = CONFIG.replace(user_categories=[{"name": "kind", "size": 8}])
    inputs = TrainingInputs(events=events, config=config, options=TrainingOptions(epochs=10, **QUICK))
    trained = train(inputs)
    rows = RowEncoder(trained.config, trained.catalog)
    for kind in (0, 1):
        encoded = rows.encode(History.from_events([]), {"kind": f"kind{kind}"})
        with torch.no_grad():
            hidden = trained.model(torch.from_numpy(encoded.rows), Layout.of(encoded.lengths))
            best = trained.model.logits(hidden[-1]).topk(10).indices.tolist()
        assert all(int(trained.catalog.video_id(index)[1:]) % 2 == kind for index in best)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([], "0 users, where at least 2 are wanted"),
        (words("abc"), "1 user, where at least 2 are wanted"),
        ([*words("abc"), *words("ABCD", "w"), *words("a", "x")], "nothing to learn from"),
        ([*words("aa"), *words("a", "w")], "validation part is empty"),
    ],
    ids=["empty", "one user", "nothing new", "one video"],
)
def test_a_log_with_nothing_to_learn_from_is_told(log: list[Event], message: str) -> None:
    """Too few users, an empty part, or nothing that was watched, end in one line."""
    if message == "nothing to learn from":
        with pytest.raises(InputError, match=message):
            train(TrainingInputs(events=words("ABCD"), config=CONFIG))
        return
    with pytest.raises(InputError, match=message):
        _train(log, epochs=1)


def test_what_the_config_asks_for_must_be_given() -> None:
    """A model that takes attributes is not trained without any, nor with weights that leave no target."""
    for field, noun in (("video_numbers", "videos"), ("user_numbers", "users")):
        config = CONFIG.replace(**{field: [{"name": "age"}]})
        with pytest.raises(InputError, match=rf"attributes of {noun} \(age\), but none are given"):
            train(TrainingInputs(events=series(20), config=config))
    with pytest.raises(InputError, match="no target has a weight above 0"):
        _train(series(20), weights=dict.fromkeys(("skip", "watch", "long-view"), 0.0))
    with pytest.raises(InputError, match=r"cut: .* is not within the log"):
        train(TrainingInputs(events=series(20), config=CONFIG, protocol=TimeSplit(cut_ms=10**12)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_told() -> None:
    """CUDA asked for where there is none is one line; `auto` takes the CPU then."""
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device cuda: PyTorch finds none here"):
        choose_device("cuda")
