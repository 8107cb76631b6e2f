"""Promises of mtgr.training.validation: the figures that `mtgr.evaluation` would give, on the training's device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from events import EventMaker, names, watch
from training import CONFIG

from mtgr.catalog import Catalog
from mtgr.checkpoint import save_checkpoint
from mtgr.evaluation.metrics import gains, hits
from mtgr.evaluation.protocol import Case, LeaveOneOut
from mtgr.evaluation.rankings import rank_all
from mtgr.evaluation.served import ReferenceScorer
from mtgr.history import History
from mtgr.model.mtgr import MTGR
from mtgr.reference import ReferenceRecommender
from mtgr.training.log import EventLog
from mtgr.training.validation import Accuracy, HeldOutCases

CPU = torch.device("cpu")


def _case(seen: str, target: int) -> Case:
    events = [watch("u", f"{place}", video_id=f"v{video}") for place, video in enumerate(seen.split())]
    return Case("u", History.from_events(list(events)), f"v{target}", 0, 0)


def test_accuracy_is_counted_as_it_is_defined() -> None:
    """Hits and gains of known ranks among unseen videos give the HR@10 and NDCG@10 one computes by hand."""
    catalog = Catalog([f"v{number}" for number in range(30)], 4)
    cases = [_case("0 1", 2), _case("29", 2), _case("29", 10), _case("0 1", 11), _case("0", 99)]
    held_out = HeldOutCases(cases, CONFIG.replace(n_items=30), catalog, CPU)
    # ranks 1, 3, 11 and 10, and one that is not in the catalog
    accuracy = held_out.of_popularity(np.arange(30, 0, -1))
    assert accuracy.cases == 5
    assert accuracy.hit_rate == pytest.approx(3 / 5)
    assert accuracy.ndcg == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(11)) / 5)
    # all alike: the first in the catalog come first
    assert held_out.of_popularity(np.zeros(30, np.int64)) == accuracy


@pytest.mark.parametrize("changes", [{}, {"mask": "mixed", "recent_events": 8, "time_bias": True}])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_figures_are_those_of_the_evaluation(
    changes: dict[str, object], exclude_seen: bool, tmp_path: object
) -> None:
    """The same cases by the reference and the full rankings of mtgr.evaluation, long histories among them."""
    log = EventLog.collect(EventMaker(0, names("u", 12)).take(700))
    catalog = Catalog([f"v{number}" for number in range(300)], 4)
    config = CONFIG.replace(n_items=300, **changes)
    cases = LeaveOneOut(exclude_seen=exclude_seen).split(log).test
    assert max(len(case.history) for case in cases) > config.capacity
    torch.manual_seed(0)
    model = MTGR(config)
    found = HeldOutCases(cases, config, catalog, CPU, exclude_seen=exclude_seen).of_model(model)
    checkpoint = save_checkpoint(f"{tmp_path}/model", "tiny", config, catalog, model.state_dict())
    scorer = ReferenceScorer(ReferenceRecommender(checkpoint), config, catalog, exclude_seen=exclude_seen)
    index_of = {video: index for index, video in enumerate(catalog.video_ids)}
    ranks = rank_all(cases, scorer, index_of, 300, 10, exclude_seen=exclude_seen).ranks
    assert found == Accuracy(
        len(cases), pytest.approx(hits(ranks, 10).mean()), pytest.approx(gains(ranks, 10).mean())
    )


def test_without_cases_there_is_nothing_to_count() -> None:
    """No case is no hit, and no division by zero."""
    config = CONFIG.replace(n_items=2)
    held_out = HeldOutCases([], config, Catalog(["v0", "v1"], 4), CPU)
    assert held_out.of_model(MTGR(config)) == Accuracy(0, 0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_no_accuracy(value: float) -> None:
    """A broken model is told rather than counted as one that ranks nothing first."""
    catalog = Catalog(["v0", "v1"], 4)
    config = CONFIG.replace(n_items=2)
    broken = MTGR(config)
    torch.nn.init.constant_(broken.head.norm.weight, value)
    with pytest.raises(FloatingPointError):
        HeldOutCases([_case("0", 1)], config, catalog, CPU).of_model(broken)
