"""RecTools' SASRec and HSTU, trained until the validation cases are predicted no better."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as lightning
import torch
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule

from .ranking import SELECT_AT
from .task import Cases, Task, dataset_of

BATCH_USERS: Final = 128
PATIENCE: Final = 6
"""Epochs without a better validation score after which training stops."""
MAX_EPOCHS: Final = 100

_BLOCKS: Final = 2
_HEAD_WIDTH: Final = 64


class PackedSoftmax(TransformerLightningModule):  # type: ignore[misc]
    """RecTools' training step with its softmax over all items, computed where there is a target and not on padding.

    The loss is the same, for padding is masked out of it; on short histories the step is several times faster.
    """

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean cross entropy of the batch's targets."""
        net = self.torch_model
        embeddings = net.item_model.get_all_embeddings()  # (items + 1, d)
        filled = batch["y"] != 0  # (users, length)
        sessions = net.encode_sessions(batch, embeddings)[filled].unsqueeze(1)  # (targets, 1, d)
        logits = net.similarity_module(sessions, embeddings) / self.logits_t  # (targets, 1, items + 1)
        loss: torch.Tensor = self._calc_softmax_loss(
            logits, batch["y"][filled].unsqueeze(1), batch["yw"][filled].unsqueeze(1)
        )
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss


class Transformer:
    """One fitted SASRec or HSTU."""

    def __init__(self, model: Any, items: npt.NDArray[Any], settings: dict[str, Any]) -> None:
        self._model = model
        self._items = items
        self._length: int = settings["session_max_len"]
        self._targets_only = settings["events"] == "targets"
        self._padded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def scores(self, cases: Cases, start: int, stop: int) -> torch.Tensor:
        """(stop - start, items); -inf for items that the model never saw."""
        net = self._model.torch_model
        device = next(net.parameters()).device
        if id(cases) not in self._padded:  # the validation cases are asked for after every epoch
            self._padded[id(cases)] = self._pad(cases)
        x, seconds = (part[start:stop].to(device) for part in self._padded[id(cases)])
        embeddings = net.item_model.get_all_embeddings()
        sessions = net.encode_sessions({"x": x, "unix_ts": seconds}, embeddings)[:, -1:, :]
        found = net.similarity_module(sessions, embeddings)[:, 0, 1:].float()  # the first item is the padding
        scores = torch.full((stop - start, len(self._items)), -torch.inf, device=device)
        scores[:, torch.from_numpy(self._places()).to(device)] = found
        return scores

    def _places(self) -> npt.NDArray[np.int64]:
        external = self._model.data_preparator.item_id_map.external_ids[1:].astype(object)
        places: npt.NDArray[np.int64] = np.searchsorted(self._items, external)
        return places

    def _pad(self, cases: Cases) -> tuple[torch.Tensor, torch.Tensor]:
        """Histories as the model wants them, the last events at the right: items (cases, length) and times in
        seconds (cases, length + 1), of which the last is the moment that the list is asked for."""
        numbers = np.zeros(len(self._items), dtype=np.int64)
        places = self._places()
        numbers[places] = np.arange(1, len(places) + 1)
        x = np.zeros((len(cases), self._length), dtype=np.int64)
        seconds = np.repeat(cases.asked_ms[:, None] // 1000, self._length + 1, axis=1)
        for row, history in enumerate(cases.histories):
            used = numbers[history] > 0
            if self._targets_only:
                used &= cases.weights[row] >= 1
            last = numbers[history[used]][-self._length :]
            if len(last):
                times = cases.times_ms[row][used][-self._length :] // 1000
                x[row, -len(last) :] = last
                seconds[row, : -len(last) - 1] = times[0]
                seconds[row, -len(last) - 1 : -1] = times
        return torch.from_numpy(x), torch.from_numpy(seconds)


class KeepBest(lightning.Callback):  # type: ignore[misc]
    """Scores every epoch, keeps the best weights, and stops when `PATIENCE` epochs or the time have passed."""

    def __init__(
        self, measure: Callable[[], dict[str, float]], report: Callable[..., None], seconds: float
    ) -> None:
        self._measure = measure
        self._report = report
        self._deadline = time.monotonic() + seconds
        self.best: dict[str, float] = {}
        self.epoch = 0
        self.ending = "epochs"  # what ends the training: epochs, patience or time
        self.weights: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeepBest:
        return self  # RecTools trains with a copy of its trainer; what is kept here must be found again

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Score the weights as they are now."""
        pl_module.eval()
        found = self._measure()
        pl_module.train()
        epoch = trainer.current_epoch + 1
        self._report(epoch=epoch, loss=round(float(trainer.callback_metrics["train_loss"]), 4), **found)
        key = f"ndcg@{SELECT_AT}"
        if found[key] > self.best.get(key, -1.0):
            self.best, self.epoch = found, epoch
            state = pl_module.torch_model.state_dict()
            self.weights = {name: value.detach().clone() for name, value in state.items()}
        if epoch - self.epoch >= PATIENCE:
            self.ending = "patience"
        elif time.monotonic() > self._deadline:
            self.ending = "time"
        trainer.should_stop = self.ending != "epochs"


def fit_transformer(
    name: str,
    task: Task,
    frame: pd.DataFrame,
    settings: dict[str, Any],
    *,
    device: str,
    measure: Callable[[Transformer], dict[str, float]],
    report: Callable[..., None],
    epochs: int | None = None,
    seconds: float = float("inf"),
) -> tuple[Transformer, dict[str, float], int, str]:
    """Train `sasrec` or `hstu` on a frame: the model, its validation score, its epochs and what ended it.

    With `epochs`, for exactly so many and unscored; else until `measure` finds it no better, with the best
    epoch's weights.
    """
    model = _make(name, task, settings)
    fitted = Transformer(model, task.items, settings)
    keep = KeepBest(lambda: measure(fitted), report, seconds)
    model._trainer = lightning.Trainer(
        max_epochs=epochs or MAX_EPOCHS,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if epochs else [keep],
    )
    model.fit(dataset_of(frame, settings["events"]))
    if not epochs:
        model.torch_model.load_state_dict(keep.weights)
    model.torch_model.to(device).eval()
    return fitted, keep.best, epochs or keep.epoch, keep.ending


def _make(name: str, task: Task, settings: dict[str, Any]) -> Any:
    common: dict[str, Any] = {
        "n_blocks": settings.get("n_blocks", _BLOCKS),
        "n_heads": settings["n_factors"] // _HEAD_WIDTH,
        "n_factors": settings["n_factors"],
        "dropout_rate": settings["dropout_rate"],
        "session_max_len": settings["session_max_len"],
        "lr": 1e-3,
        "batch_size": BATCH_USERS,
        "lightning_module_type": PackedSoftmax,
    }
    if name == "sasrec":
        return SASRecModel(**common)
    return HSTUModel(
        **common,
        relative_time_attention=task.times and settings["relative_time_attention"],
        lightning_module_kwargs={"logits_t": settings["logits_t"]},
    )
