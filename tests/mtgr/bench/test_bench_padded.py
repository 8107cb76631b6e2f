"""The padded model that ours is held against."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtgr.bench.cases import parse_case
from mtgr.bench.checkpoints import random_checkpoint
from mtgr.bench.padded import PaddedHSTU
from mtgr.bench.plan import Plan
from mtgr.bench.users import SyntheticUsers, requests_of
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListResult


def test_it_makes_the_lists_of_the_reference(tmp_path: Path) -> None:
    """Both systems do the whole of the same work, the exclusion of seen videos included."""
    plan = Plan(
        device="cpu", preset="tiny", dtype="float32", cases=(parse_case("5x40"),), repeats=1,
        directory=tmp_path, out=tmp_path / "out.jsonl", command="test",
    )  # fmt: skip
    checkpoint = random_checkpoint(plan)
    drawn = SyntheticUsers(checkpoint.config.n_items, seed=8)
    requests = requests_of([*drawn.draw(4, 40), *drawn.draw(1, 90)], 40)
    indices, scores = PaddedHSTU(checkpoint, "cpu", torch.float32, compiled=False).recommend(requests)
    for outcome, items, values in zip(
        ReferenceRecommender(checkpoint).recommend(requests), indices.tolist(), scores.tolist(), strict=True
    ):
        assert isinstance(outcome, ListResult)
        assert [checkpoint.catalog.video_id(item) for item in items] == outcome.video_ids
        assert values == pytest.approx(outcome.scores, abs=1e-4)
