"""The engine beside plain torch, batch by batch in turn, so that both meet the same noise: the rows of a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

import torch

from mtgr.bench.cases import Case
from mtgr.bench.ceilings import thread_counts
from mtgr.bench.checkpoints import random_checkpoint
from mtgr.bench.ours import check_lists, engine_options, free_gib, leave_out
from mtgr.bench.plan import WARM_UPS, Plan
from mtgr.bench.records import RecordFile, Row, Started
from mtgr.bench.timing import run_async, settle
from mtgr.bench.users import SyntheticUsers, requests_of
from mtgr.bench.work import batch_work, hstu_shape
from mtgr.model.mtgr import parameter_counts
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListRequest
from mtgr.serving.engine import RecommendationEngine

_SEED: Final = 4


def run(plan: Plan, records: RecordFile) -> None:
    """Rows of both. Plain torch knows no cache: an event more costs it the whole history."""
    run_async(_measure(plan, records))


async def _measure(plan: Plan, records: RecordFile) -> None:
    cases, cache_gib = plan.affordable(free_gib(plan))
    leave_out(plan, records, [case for case in plan.cases if case not in cases], "plain torch")
    checkpoint = random_checkpoint(plan)
    parameters = parameter_counts(plan.config)[0]
    engine = RecommendationEngine(engine_options(plan, checkpoint, cache_gib))
    began = time.perf_counter()
    await engine.start()
    try:
        records.add(
            Started(
                plan.setting,
                "ours",
                parameters,
                time.perf_counter() - began,
                "RecommendationEngine, whole histories with features, in an engine process",
            )
        )
        began = time.perf_counter()
        reference = ReferenceRecommender(checkpoint)
        records.add(
            Started(
                plan.setting,
                "torch",
                parameters,
                time.perf_counter() - began,
                f"ReferenceRecommender on {' or '.join(map(str, thread_counts()))} threads, whichever is faster",
            )
        )
        settle()
        users = SyntheticUsers(plan.config.n_items, _SEED)
        for case in cases:
            await _rows(plan, records, engine, reference, users, case)
    finally:
        await engine.close()


async def _rows(
    plan: Plan,
    records: RecordFile,
    engine: RecommendationEngine,
    reference: ReferenceRecommender,
    users: SyntheticUsers,
    case: Case,
) -> None:
    prepare: Callable[[int], list[ListRequest]]
    if case.cached:
        known = users.draw(case.users, case.events + plan.appended)
        check_lists(await engine.recommend(requests_of(known, case.events)))

        def prepare(number: int) -> list[ListRequest]:
            return requests_of(known, case.events + 1 + number)
    else:

        def prepare(number: int) -> list[ListRequest]:
            return requests_of(users.draw(case.users, case.events), case.events)

    ours: list[float] = []
    theirs: dict[int, list[float]] = {threads: [] for threads in thread_counts()}
    for number in range(WARM_UPS + plan.repeats):
        batch = prepare(number)
        began = time.perf_counter()
        check_lists(await engine.recommend(batch))
        ours.append(1000 * (time.perf_counter() - began))
        for threads, times in theirs.items():
            torch.set_num_threads(threads)
            began = time.perf_counter()
            check_lists(reference.recommend(batch))
            times.append(1000 * (time.perf_counter() - began))
    del ours[:WARM_UPS]
    fastest = min((times[WARM_UPS:] for times in theirs.values()), key=statistics.median)
    shape = hstu_shape(plan.config, plan.number_bytes)
    work = batch_work(shape, case)
    records.add(Row(plan.setting, "ours", case, ours, work.bytes, work.operations))
    # without a cache the same list is the work of a whole history
    whole = batch_work(shape, Case(case.users, case.events + case.cached))
    records.add(Row(plan.setting, "torch", case, fastest, whole.bytes, whole.operations))
