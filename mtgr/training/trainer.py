"""Training: from a log of events to a model, and how good its lists are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batcher
from mtgr.training.held_out import Accuracy, HeldOutTest
from mtgr.training.log import EventLog
from mtgr.training.loop import Progress, TrainingLoop
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, hold_out, make_windows
from schemas.events import Event

_ONE_THREAD_WIDTH: Final = 128
_TEST_SHARE: Final = 0.1  # of the time limit, kept for the test after training


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model and how it did on what it was not shown."""

    model: MTGR
    config: ModelConfig
    catalog: Catalog
    users: int
    events: int
    steps: int
    epochs: float
    seconds: float
    accuracy: Accuracy
    popularity: Accuracy


def train(
    events: Iterable[Event],
    config: ModelConfig,
    options: TrainingOptions,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a model of this config, its n_items replaced by the log's, to predict the next new video.

    The same events, config and options give the same model on the same machine with the same number of
    threads, unless the time limit is what ends training. Raises InputError if the log holds too little to
    learn from, the device is not there, or training diverges.
    """
    started = time.monotonic()
    device = choose_device(options.device)
    log = EventLog.collect(events)
    catalog = log.catalog(config.unknown_buckets, config.spare_items)
    config = config.replace(n_items=len(catalog))
    histories, tests = hold_out(log, config, catalog)
    windows = make_windows(histories, config, catalog)
    if not len(windows):
        raise InputError("the event log has nothing to learn from: no user has a watch event")
    random = np.random.default_rng(options.seed)
    if len(tests) > options.max_test_users:
        chosen = random.choice(len(tests), options.max_test_users, replace=False)
        tests = [tests[number] for number in chosen]
    target_counts = np.bincount(windows.targets[windows.targets != NO_TARGET], minlength=len(catalog))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = MTGR(config)
    model.embeddings.video.describe(catalog, {}, config)
    model.to(device)
    batcher = Batcher(windows, catalog, config, options, random)
    loop = TrainingLoop(model, batcher, torch.from_numpy(target_counts), options, device)
    limit = math.inf if options.max_seconds is None else options.max_seconds * (1 - _TEST_SHARE)
    test = HeldOutTest(tests, config, catalog)
    with _threads_for(config):
        loop.run(max(1.0, limit - (time.monotonic() - started)), on_step)
        accuracy, popularity = test.of_model(model, device), test.of_popularity(target_counts)
    return Trained(
        model=model.cpu().eval(),
        config=config,
        catalog=catalog,
        users=len(log.histories),
        events=len(log),
        steps=loop.step,
        epochs=loop.epochs,
        seconds=time.monotonic() - started,
        accuracy=accuracy,
        popularity=popularity,
    )


@contextmanager
def _threads_for(config: ModelConfig) -> Iterator[None]:
    """One thread for a narrow model: its products are too small to share, and where other processes want the
    cores too, threads that wait for each other at every product took five times as long.
    """
    before = torch.get_num_threads()
    if config.d_model <= _ONE_THREAD_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """The device of this name, `auto` being CUDA where it is; InputError if CUDA is asked for and missing."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device cuda: PyTorch finds none here; cpu or auto would do")
    return torch.device("cuda" if name == "auto" and there else "cpu" if name == "auto" else name)
