"""The model in PyTorch over padded dense attention, as HSTU is published: the scores of all pairs are in memory.

It is `mtgr.model` itself, in the served type and on the device, eager or through torch.compile. A batch begins with
histories and ends with ids and scores on the host, like ours. It has no cache, so it has fresh rows alone.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mtgr.bench.cases import TOP, Case
from mtgr.bench.checkpoints import random_checkpoint
from mtgr.bench.ours import memory_record
from mtgr.bench.plan import WARM_UPS, Plan
from mtgr.bench.probe import memory, reset_memory
from mtgr.bench.records import Missing, RecordFile, Row, Started, System
from mtgr.bench.timing import run_async, settle, time_batches
from mtgr.bench.users import SyntheticUsers, requests_of
from mtgr.bench.work import batch_work, hstu_shape
from mtgr.checkpoint import Checkpoint
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.model.jagged import Layout
from mtgr.model.mtgr import parameter_counts
from mtgr.requests import ListRequest

_SEED: Final = 5


def run_eager(plan: Plan, records: RecordFile) -> None:
    """Fresh rows, each operation by itself."""
    run_async(_measure(plan, records, "padded"))


def run_compiled(plan: Plan, records: RecordFile) -> None:
    """Fresh rows with the layers compiled, for each shape anew; that time is not counted."""
    run_async(_measure(plan, records, "padded-compiled"))


class PaddedHSTU:
    """Lists from the module itself, on one device."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, *, compiled: bool) -> None:
        self._config = checkpoint.config
        self._catalog = checkpoint.catalog
        self._encoder = RowEncoder(checkpoint.config, checkpoint.catalog)
        self._device = torch.device(device)
        self._model = checkpoint.load_model().to(self._device, dtype)
        if compiled:
            for layer in self._model.layers:
                layer.compile(dynamic=False)

    @torch.inference_mode()
    def recommend(self, requests: list[ListRequest]) -> tuple[Tensor, Tensor]:
        """(users, TOP) item indices and log-probabilities on the host; seen videos are not among them."""
        histories = [History.from_bytes(request.records, request.videos) for request in requests]
        encoded = self._encoder.encode_batch(histories)
        rows = torch.from_numpy(encoded.rows).to(self._device)
        layout = Layout.of(encoded.lengths, self._device)
        hidden = self._model(rows, layout)
        logits = self._model.logits(hidden[layout.last], len(self._catalog)).float()
        user = np.repeat(np.arange(len(requests)), encoded.lengths)
        seen = encoded.token_ids < len(self._catalog)
        where = torch.from_numpy(np.stack([user[seen], encoded.token_ids[seen]])).to(self._device)
        logits[where[0], where[1]] = -torch.inf
        top = torch.log_softmax(logits, dim=-1).topk(TOP)
        return top.indices.cpu(), top.values.cpu()


async def _measure(plan: Plan, records: RecordFile, system: System) -> None:
    compiled = system == "padded-compiled"
    checkpoint = random_checkpoint(plan)
    began = time.perf_counter()
    model = PaddedHSTU(checkpoint, plan.device, getattr(torch, plan.dtype), compiled=compiled)
    how = "layers through torch.compile" if compiled else "eager"
    records.add(
        Started(
            plan.setting,
            system,
            parameter_counts(plan.config)[0],
            time.perf_counter() - began,
            f"PyTorch, dense attention over padded histories, {how}",
        )
    )
    settle()
    reset_memory(None, plan.device)
    shape = hstu_shape(plan.config, plan.number_bytes)
    users = SyntheticUsers(plan.config.n_items, _SEED)

    async def serve(requests: list[ListRequest]) -> None:
        _, scores = model.recommend(requests)
        if not torch.isfinite(scores).all():
            raise RuntimeError("the padded model's scores are not finite")

    for case in plan.fresh:

        def prepare(number: int, case: Case = case) -> Any:
            return requests_of(users.draw(case.users, case.events), case.events)

        try:
            times = await time_batches(prepare, serve, warm_ups=WARM_UPS, repeats=plan.repeats)
        except torch.OutOfMemoryError:
            records.add(
                Missing(plan.device, plan.preset, f"{system} {case}", "its scores do not fit in memory")
            )
            torch.cuda.empty_cache()
            continue
        work = batch_work(shape, case)
        records.add(Row(plan.setting, system, case, times, work.bytes, work.operations))
    records.add(memory_record(plan, system, memory(None, plan.device), 0.0))
