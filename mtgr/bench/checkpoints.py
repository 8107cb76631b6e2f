"""Checkpoints with random weights: what such a model recommends is no matter, what it costs is the same."""

from __future__ import annotations

from typing import Final

import torch

from mtgr.bench.plan import Plan
from mtgr.bench.records import RecordFile
from mtgr.bench.users import video_name
from mtgr.catalog import Catalog
from mtgr.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint, save_checkpoint
from mtgr.model.mtgr import MTGR

_SEED: Final = 0


def run(plan: Plan, records: RecordFile) -> None:
    """Make it in a process of its own: with CUDA in theirs, the systems could not fork their engines'."""
    random_checkpoint(plan)


def random_checkpoint(plan: Plan) -> Checkpoint:
    """The checkpoint of a plan's model, its weights in the type that is served; made where it is not there yet."""
    config = plan.config
    directory = plan.directory / f"{plan.preset}-{config.max_events}-{plan.dtype}"
    if (directory / CONFIG_FILE).exists():
        return open_checkpoint(directory)
    torch.manual_seed(_SEED)
    with torch.device(plan.device):
        model = MTGR(config).to(getattr(torch, plan.dtype))
    catalog = Catalog(
        [video_name(index) for index in range(config.n_items)], config.unknown_buckets, config.spare_items
    )
    return save_checkpoint(directory, plan.preset, config, catalog, model.state_dict())
