"""Trains one of our recipes and ranks the test cases, by the same functions as `train` and `evaluate`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import msgspec
import numpy as np
from xxhash import xxh3_64_hexdigest

from mtgr.checkpoint import save_checkpoint
from mtgr.evaluation.evaluation import CaseTable
from mtgr.evaluation.quality.data_sets import DataSet, Loaded
from mtgr.evaluation.quality.runs import BEYOND, Run, machine
from mtgr.evaluation.quality.variants import VARIANTS
from mtgr.evaluation.run import CheckpointEvaluation, EvaluationOptions
from mtgr.presets import recipe
from mtgr.training.trainer import TrainingInputs, train

COLD_ITEMS: Final = 5
"""Videos that fewer users know are cold."""


def run_ours(
    chosen: DataSet,
    loaded: Loaded,
    variant_name: str,
    seed: int,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    max_seconds: float | None = None,
) -> Run:
    """Train a variant of the data set's recipe with a seed, and rank the whole catalog for every test case."""
    variant = VARIANTS[variant_name]
    changes: dict[str, Any] = dict(variant.config)
    if variant.without_videos:
        changes |= {"video_categories": [], "video_numbers": []}
    if variant.without_users:
        changes |= {"user_categories": [], "user_numbers": []}
    config = loaded.config.replace(**changes)
    options = recipe(chosen.preset).replace(
        seed=seed, device=device, max_seconds=max_seconds, **dict(variant.options)
    )
    began = time.monotonic()
    trained = train(
        TrainingInputs(
            events=loaded.log,
            config=config,
            options=options,
            protocol=chosen.protocol,
            videos=loaded.videos,
        )
    )
    seconds = time.monotonic() - began
    with TemporaryDirectory(prefix="quality-") as scratch:
        checkpoint = save_checkpoint(
            Path(scratch) / "model",
            chosen.preset,
            trained.config,
            trained.catalog,
            trained.model.state_dict(),
        )
        report = CheckpointEvaluation(
            checkpoint, loaded.log, chosen.protocol, EvaluationOptions(ks=(5, 10), cold_items=COLD_ITEMS)
        ).run()
    system = report.systems[0]
    return Run(
        data_set=chosen.name,
        system=variant_name,
        seed=seed,
        cases=cases_digest(report.cases),
        ranks=[BEYOND if rank is None else rank for rank in system.ranks],
        coverage=system.lists.coverage[10],
        cold=np.flatnonzero(np.array(report.cases.target_popularity) < COLD_ITEMS).tolist(),
        seconds=seconds,
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        settings={"config": trained.config.to_dict(), "options": msgspec.to_builtins(options)},
        facts={
            "epochs": trained.epochs,
            "steps": trained.steps,
            "ending": trained.ending,
            "tokens": trained.tokens,
            "padded_tokens": trained.padded_tokens,
            "validation": msgspec.to_builtins(trained.best),
            "heads": msgspec.to_builtins(report.heads),
        },
    )


def cases_digest(cases: CaseTable) -> str:
    """A name for these cases in this order."""
    return xxh3_64_hexdigest(msgspec.json.encode([cases.user_ids, cases.video_ids]))
