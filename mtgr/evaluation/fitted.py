"""Baselines fitted on the split that a model is evaluated on, and kept for the next evaluation on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xxhash import xxh3_64

from mtgr.evaluation.baselines import BaselineLists, BaselineOptions, read_lists, run_baselines, write_task
from mtgr.evaluation.baselines.launch import OnEvent, baselines_folder
from mtgr.evaluation.protocol import Protocol, Split


def fit_baselines(
    split: Split,
    protocol: Protocol,
    models: Sequence[str],
    *,
    k: int,
    seed: int,
    times: bool,
    on_event: OnEvent = lambda event: None,
) -> list[BaselineLists]:
    """Lists of k videos for the test cases from each of the models, in their order.

    What was fitted on the same split before is taken from `fits` in `baselines_folder`, where each task and length
    of lists has a folder. times: as in `write_task`, which says what the
    models learn. Raises InputError as `run_baselines` does.
    """
    fits = baselines_folder() / "fits"
    fits.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="task-", dir=fits))
    try:
        write_task(work, split, protocol, times=times)
        out = fits / f"{_digest(work)}-{k}"
        options = BaselineOptions(models=tuple(models), seeds=(seed,), k=k)
        run_baselines(work, out, options, on_event)
    finally:
        shutil.rmtree(work)
    return [read_lists(out, model, seed) for model in models]


def _digest(task: Path) -> str:
    digest = xxh3_64()
    for path in sorted(task.iterdir()):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
