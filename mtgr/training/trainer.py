"""Training: from a log of events to a model, and how good its lists are."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from xxhash import xxh3_128

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.evaluation.popularity import users_of_videos
from mtgr.evaluation.protocol import Case, Part, Protocol
from mtgr.history import History
from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batcher
from mtgr.training.hooks import Ending, Hooks
from mtgr.training.log import EventLog
from mtgr.training.loop import TrainingLoop
from mtgr.training.options import TrainingOptions
from mtgr.training.run import Best
from mtgr.training.validation import Accuracy, HeldOutCases
from mtgr.training.windows import Windows, make_windows
from schemas.events import Event

_ONE_THREAD_WIDTH: Final = 128
_TEST_SHARE: Final = 0.1  # of the time limit, kept for the test after training
_CASES: Final = 2  # stream of random numbers, beside those of the batches


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingInputs:
    """What a model is to be made of.

    events: the log, or its events, users' profiles among them. config: its n_items is replaced by the catalog's.
    protocol: which part is learnt and what is predicted then; None to learn everything. videos, users: what is
    known of them, by id; a video here is in the catalog even if nobody has watched it, and of a user with
    profiles in the log those count.
    """

    events: EventLog | Iterable[Event]
    config: ModelConfig
    options: TrainingOptions = field(default_factory=TrainingOptions)
    protocol: Protocol | None = None
    videos: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained model and how it did on what it was not shown.

    users, events: of the log; learnt_events: those that no case holds back.
    accuracy, popularity: of the model and of what most users know, on the held-out cases; None without a protocol.
    padded_tokens: what the tokens would have been with each batch padded to its longest window.
    """

    model: MTGR
    config: ModelConfig
    catalog: Catalog
    users: int
    events: int
    learnt_events: int
    steps: int
    epochs: float
    ending: Ending
    seconds: float
    tokens: int
    padded_tokens: int
    best: Best | None
    held_out: Literal["validation", "test"] | None
    accuracy: Accuracy | None
    popularity: Accuracy | None


def train(inputs: TrainingInputs, hooks: Hooks | None = None) -> Trained:
    """Train a model to predict what users go on to.

    The same inputs give the same model on the same machine with the same number of threads, bit for bit on the
    CPU, unless the time limit is what ends training; also if it was stopped and resumed. Raises InputError if the
    log holds too little to learn from or to split, what the config asks for is not given, the device is not
    there, or training diverges.
    """
    started = time.monotonic()
    hooks = hooks or Hooks()
    options = inputs.options
    device = choose_device(options.device)
    log = inputs.events if isinstance(inputs.events, EventLog) else EventLog.collect(inputs.events)
    _check_attributes(inputs, log)
    learnt, known, cases = _parts(inputs, log)
    catalog = _catalog(known, inputs)
    config = inputs.config.replace(n_items=len(catalog))
    only_new = inputs.protocol is None or inputs.protocol.exclude_seen

    def profile(user: str, time_ms: int) -> Mapping[str, Any]:
        return log.profiles.at(user, time_ms) or inputs.users.get(user, {})

    windows = make_windows(learnt, config, catalog, options, only_new=only_new, profile=profile)
    if not len(windows):
        noun = "watch event" if options.target == "watch" else "long view"
        raise InputError(f"the event log has nothing to learn from: no user has a {noun}")
    if not windows.weights.any():
        raise InputError("training options: weights: no target has a weight above 0")
    if len(cases) > options.max_cases:
        random = np.random.default_rng((options.seed, _CASES))
        chosen = random.choice(len(cases), options.max_cases, replace=False)
        cases = [cases[number] for number in np.sort(chosen).tolist()]
    with _settings_for(config, device):
        torch.manual_seed(options.seed)
        model = MTGR(config, options.dropout)
        model.embeddings.video.describe(catalog, inputs.videos, config)
        model.to(device)
        batcher = Batcher(windows, catalog, config, options)
        held_out = HeldOutCases(
            cases,
            config,
            catalog,
            device,
            exclude_seen=only_new,
            profile=lambda case: profile(case.user_id, case.asked_ms),
        )
        loop = TrainingLoop(
            model,
            batcher,
            catalog,
            options,
            device,
            fingerprint=_fingerprint(config, model, catalog, windows, cases),
            evaluate=(lambda: held_out.of_model(model)) if cases and options.part == "training" else None,
            window_negatives=options.window_negatives if only_new else "all",
            hooks=hooks,
        )
        limit = math.inf if options.max_seconds is None else options.max_seconds * (1 - _TEST_SHARE)
        ending = loop.run(max(1.0, limit - (time.monotonic() - started)))
        best = loop.state.best
        accuracy = popularity = None
        if cases:
            accuracy = best.accuracy if best is not None else loop.measured(lambda: held_out.of_model(model))
            counts = users_of_videos(learnt)
            popularity = held_out.of_popularity(
                np.array([counts[video] for video in catalog.video_ids], np.int64)
            )
    if hooks.run is not None:
        hooks.run.clear()
    return Trained(
        model=model.cpu().eval(),
        config=config,
        catalog=catalog,
        users=len(log.histories),
        events=len(log),
        learnt_events=sum(len(history) for history in learnt.values()),
        steps=loop.state.step,
        epochs=loop.epochs,
        ending=ending,
        seconds=time.monotonic() - started,
        tokens=loop.state.tokens,
        padded_tokens=loop.state.padded_tokens,
        best=best,
        held_out=None if not cases else "validation" if options.part == "training" else "test",
        accuracy=accuracy,
        popularity=popularity,
    )


def choose_device(name: str) -> torch.device:
    """The device of this name, `auto` being CUDA where it is; InputError if CUDA is asked for and missing."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device cuda: PyTorch finds none here; cpu or auto would do")
    return torch.device("cuda" if name == "auto" and there else "cpu" if name == "auto" else name)


def _parts(
    inputs: TrainingInputs, log: EventLog
) -> tuple[Mapping[str, History], Mapping[str, History], list[Case]]:
    """What is learnt, what is known before the test, and the cases that are predicted."""
    if inputs.protocol is None:
        return log.histories, log.histories, []
    in_training = inputs.options.part == "training"
    needs: tuple[Part, ...] = ("training", "validation") if in_training else ("test",)
    split = inputs.protocol.split(log, needs)
    if in_training:
        return split.training, split.known, split.validation
    return split.known, split.known, split.test


def _check_attributes(inputs: TrainingInputs, log: EventLog) -> None:
    config = inputs.config
    of_videos = [one.name for one in config.video_categories] + [one.name for one in config.video_numbers]
    of_users = [one.name for one in config.user_categories] + [one.name for one in config.user_numbers]
    for noun, wanted, given in (
        ("videos", of_videos, len(inputs.videos)),
        ("users", of_users, len(inputs.users) + len(log.profiles)),
    ):
        if wanted and not given:
            raise InputError(
                f"the model config names attributes of {noun} ({', '.join(wanted)}), but none are given"
            )


def _catalog(known: Mapping[str, History], inputs: TrainingInputs) -> Catalog:
    """The videos of the log before the test, the most frequent first, then those that only have attributes."""
    counts = Counter(video for history in known.values() for video in history.video_ids)
    for video in inputs.videos:
        counts.setdefault(video, 0)
    if len(counts) < 2:
        raise InputError(f"the event log has {len(counts)} videos, where training needs at least 2")
    ordered = sorted(counts, key=lambda video: (-counts[video], video))
    return Catalog(ordered, inputs.config.unknown_buckets, inputs.config.spare_items)


def _fingerprint(
    config: ModelConfig, model: MTGR, catalog: Catalog, windows: Windows, cases: list[Case]
) -> str:
    """Of all that decides, beside the options, what is learnt and which weights are kept."""
    told = [(case.user_id, case.video_id, case.asked_ms) for case in cases]
    digest = xxh3_128(msgspec.json.encode([config.to_dict(), catalog.video_ids, windows.user_ids, told]))
    arrays = [getattr(windows, one.name) for one in fields(windows) if one.name != "user_ids"]
    arrays += [buffer.cpu().numpy() for buffer in model.embeddings.video.buffers()]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def _settings_for(config: ModelConfig, device: torch.device) -> Iterator[None]:
    """PyTorch's settings for a training; the caller's, and its random numbers, are as before afterwards.

    One thread for a narrow model on the CPU: its products are too small to share, and where other processes
    want the cores too, threads that wait for each other at every product took five times as long.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if device.type == "cuda":
                torch.set_float32_matmul_precision("high")  # TF32 for the logits: more digits than bfloat16
            elif config.d_model <= _ONE_THREAD_WIDTH:
                torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
