"""The steps of a training: batch, loss, gradient, update, until the epochs are through or nothing is gained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mtgr.catalog import Catalog
from mtgr.errors import InputError
from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batch, Batcher
from mtgr.training.conditions import FeedbackConditions
from mtgr.training.figures import Figures
from mtgr.training.hooks import Ending, Hooks, Progress, TrainingStopped
from mtgr.training.loss import NextVideoLoss, OutcomeLoss
from mtgr.training.metrics import EvaluationMetrics, MetricsFile, StepMetrics
from mtgr.training.optimizer import AveragedWeights, adamw, learning_rate
from mtgr.training.options import TrainingOptions, WindowNegatives
from mtgr.training.prefetch import prepared
from mtgr.training.run import Best, Kept, TrainingState
from mtgr.training.validation import Accuracy

_LOSS_MEMORY: Final = 0.98  # of the running mean shown
_METRICS_SECONDS: Final = 1.0  # between two lines of figures, at least
_NAMED_USERS: Final = 3


class TrainingLoop:
    """Trains one model in place."""

    def __init__(
        self,
        model: MTGR,
        batcher: Batcher,
        catalog: Catalog,
        options: TrainingOptions,
        device: torch.device,
        *,
        fingerprint: str,
        evaluate: Callable[[], Accuracy] | None = None,
        window_negatives: WindowNegatives,
        hooks: Hooks | None = None,
    ) -> None:
        """The model lies on the device. evaluate: judges it as it is, and is what decides which weights are kept."""
        self.state = TrainingState(fingerprint=fingerprint, options=options)
        self.best: dict[str, Tensor] | None = None
        self._model: Final = model
        self._batcher: Final = batcher
        self._catalog: Final = catalog
        self._options: Final = options
        self._device: Final = device
        self._evaluate: Final = evaluate
        self._hooks: Final = hooks or Hooks()
        self._conditions: Final = (
            FeedbackConditions(len(options.conditioned_on), model.config.d_model, model.config.n_indices).to(
                device
            )
            if options.conditioned_on
            else None
        )
        self._next_video: Final = NextVideoLoss(window_negatives, self._conditions)
        self._outcome: Final = OutcomeLoss()
        self._rate: Final = options.peak_rate(model.config.d_model)
        self._learnt: Final = nn.ModuleDict({"model": model})
        if self._conditions is not None:
            self._learnt["conditions"] = self._conditions
        self._optimizer: Final = adamw(self._learnt, options, self._rate)
        decay = options.average_decay
        self._averages: Final = AveragedWeights(model, decay) if decay is not None else None
        self._bfloat16: Final = options.precision == "bfloat16" or (
            options.precision == "auto" and device.type == "cuda"
        )
        self._figures: Final = Figures(device)
        self._last: Batch | None = None
        self._last_windows: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._current_rate = 0.0
        self._saved = 0.0
        run = self._hooks.run
        if run is not None and self._hooks.resume:
            self.state, tensors = run.load(fingerprint, options)
            self._restore(tensors)
        if run is not None:
            run.make()
        self._metrics: Final = (
            None
            if run is None
            else MetricsFile(run.metrics, after_step=self.state.step if self._hooks.resume else None)
        )

    @property
    def epochs(self) -> float:
        """Epochs done, the part of the last one included."""
        return self.state.epoch + self._part

    def run(self, max_seconds: float) -> Ending:
        """Train to the end, but no longer than so many seconds (one step at least), and leave the best weights
        in the model.

        Raises InputError if the loss, its gradient, the weights or their scores are no longer numbers, naming the
        step, the users of its batch and what is kept; TrainingStopped if the hooks ask for it.
        """
        self._began = time.monotonic() - self.state.seconds
        self._saved = time.monotonic()
        self._part = 0.0
        self._figures.means(self.state.seconds)
        ending = self._train(max_seconds)
        self._look()
        if self.state.evaluated < self.state.step:
            self._judge()
        self._model.load_state_dict(self._weights() if self.best is None else self.best)
        return ending

    def _train(self, max_seconds: float) -> Ending:
        state, options = self.state, self._options
        epochs = options.epochs_of(len(self._batcher.plan(0)))
        while state.epoch < epochs:
            plan = self._batcher.plan(state.epoch)
            steps = state.step - state.place + len(plan) * (epochs - state.epoch)
            batches = (
                self._batcher.batch(windows, state.epoch, number)
                for number, windows in islice(enumerate(plan), state.place, None)
            )
            with prepared(batches, self._device) as ready:
                for batch in ready:
                    done = max(state.step / steps, self._seconds / max_seconds)
                    self._take_step(batch, plan[state.place], done, steps)
                    state.place += 1
                    self._part = state.place / len(plan)
                    done = min(1.0, max(state.step / steps, self._seconds / max_seconds))
                    if self._figures.due or done == 1.0:
                        self._look()
                        self._show(done)
                    if self._seconds >= max_seconds:
                        return "time"
                    self._between_steps()
            state.epoch, state.place, self._part = state.epoch + 1, 0, 0.0
            if state.epoch % options.evaluate_every == 0:
                self._look()
                self._judge()
                if options.patience is not None and state.waited >= options.patience:
                    return "patience"
        return "epochs"

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _take_step(self, batch: Batch, windows: npt.NDArray[np.int64], done: float, steps: int) -> None:
        state, options = self.state, self._options
        self._current_rate = learning_rate(options, self._rate, state.step, steps, done)
        for group in self._optimizer.param_groups:
            group["lr"] = self._current_rate
        if options.dropout:
            # by the step, so that a training that is resumed drops what it would have dropped
            torch.manual_seed((options.seed << 32) + state.step)
        loss, ranking = self._losses(batch)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss + options.ranking_weight * ranking)
        norm = nn.utils.clip_grad_norm_(self._learnt.parameters(), options.gradient_norm)
        self._optimizer.step()
        state.step += 1
        if self._averages is not None:
            self._averages.update(state.step)
        state.tokens += len(batch.rows)
        state.padded_tokens += batch.layout.padded_tokens
        self._figures.add(windows, len(batch.rows), loss, ranking, norm)
        self._last, self._last_windows = batch, windows

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            hidden = self._model(batch.rows, batch.layout, batch.roles, batch.cold)
            loss = self._next_video(self._model, hidden, batch)
            ranking = torch.zeros_like(loss)
            if batch.candidates is not None:
                ranking = self._outcome(self._model, hidden, batch)
        return loss, ranking

    def _look(self) -> None:
        state = self.state
        for step in self._figures.look(state.step):
            loss, norm = step.loss + step.ranking_loss, step.gradient_norm
            if not (math.isfinite(loss) and math.isfinite(norm)):
                wrong = f"its gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
                users = self._named(step.windows)
                raise self._diverged(f"{wrong} at step {step.step}, in a batch of the users {users}")
            before = step.loss if state.loss is None else state.loss
            state.loss = _LOSS_MEMORY * before + (1 - _LOSS_MEMORY) * step.loss
        if self._figures.seconds_since(self._seconds) >= _METRICS_SECONDS:
            self._write_metrics()

    def _write_metrics(self) -> None:
        seconds = self._seconds
        means = self._figures.means(seconds)
        if self._metrics is not None and means is not None:
            self._metrics.write(
                StepMetrics(
                    step=self.state.step,
                    epoch=self.epochs,
                    seconds=seconds,
                    loss=means.loss,
                    ranking_loss=means.ranking_loss if self._model.ranking is not None else None,
                    learning_rate=self._current_rate,
                    gradient_norm=means.gradient_norm,
                    tokens_per_second=means.tokens_per_second,
                )
            )

    def _show(self, done: float) -> None:
        spent = self._seconds
        self._hooks.on_step(
            Progress(
                step=self.state.step,
                epoch=self.epochs,
                done=done,
                loss=math.nan if self.state.loss is None else self.state.loss,
                tokens_per_second=self.state.tokens / spent,
                seconds_left=max(0.0, spent / done - spent),
                best=None if self.state.best is None else self.state.best.accuracy,
            )
        )

    def _between_steps(self) -> None:
        due = time.monotonic() - self._saved >= 60 * self._options.save_minutes
        stop = self._hooks.stop()
        if due or stop:
            self._look()
            if self._evaluate is None and due:
                self._check()
                self._keep(self._weights())
            where = self._save()
            if stop:
                raise TrainingStopped(
                    f"stopped at step {self.state.step}"
                    + (f"; --resume goes on from the state in {where}" if where else "")
                )

    def _judge(self) -> None:
        """Evaluate the model, and keep its weights if they are better than those kept."""
        state = self.state
        state.evaluated = state.step
        self._write_metrics()
        self._check()
        if self._evaluate is None:
            return
        with self._as_kept():
            accuracy = self.measured(self._evaluate)
        self._figures.means(self._seconds)  # the time of an evaluation slows no step
        if self._metrics is not None:
            self._metrics.write(
                EvaluationMetrics(
                    step=state.step,
                    epoch=self.epochs,
                    seconds=self._seconds,
                    cases=accuracy.cases,
                    hit_rate=accuracy.hit_rate,
                    ndcg=accuracy.ndcg,
                )
            )
        if state.best is not None and accuracy.ndcg <= state.best.accuracy.ndcg:
            state.waited += state.step >= self._options.min_steps
            return
        state.best, state.waited = Best(state.step, self.epochs, accuracy), 0
        self.best = self._weights()
        self._keep(self.best)

    def measured(self, evaluate: Callable[[], Accuracy]) -> Accuracy:
        """What a measure finds of the model; InputError, as of `run`, if it meets scores that are no numbers."""
        try:
            return evaluate()
        except FloatingPointError as error:
            raise self._diverged_after_step(str(error)) from None

    def _check(self) -> None:
        """Raise if the last step has spoilt the weights: its loss was computed before them. Where nothing is
        evaluated its batch is asked again, for weights may be numbers and their scores none.
        """
        if not all(parameter.isfinite().all() for parameter in self._model.parameters()):
            raise self._diverged_after_step("weights are no numbers any more")
        if self._evaluate is None and self._last is not None:
            with torch.no_grad():
                loss, ranking = self._losses(self._last)
            if not (loss + ranking).isfinite():
                raise self._diverged_after_step("the loss is no number any more")

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """The model is meanwhile what is to be judged and kept: the averages, where there are any, and videos that
        no event shows have what training has shown them as, the vector of their bucket.
        """
        with nullcontext() if self._averages is None else self._averages.applied(), torch.no_grad():
            video, unseen = self._model.embeddings.video, torch.from_numpy(self._batcher.unseen)
            places = torch.nonzero(unseen).squeeze(-1).to(self._device)
            buckets = video.bucket_of[places]
            video.ids.weight[places] = video.ids.weight[buckets]
            if self._model.head.bias is not None:
                self._model.head.bias[places] = self._model.head.bias[buckets]
            yield

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what is to be kept."""
        with self._as_kept():
            return {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}

    def _keep(self, weights: dict[str, Tensor]) -> None:
        where = self._hooks.keep(self._model.config, self._catalog, weights)
        if where is not None:
            self.state.kept = Kept(self.state.step, where)

    def _named(self, windows: npt.NDArray[np.int64]) -> str:
        users = self._batcher.users(windows)
        named = ", ".join(repr(user) for user in users[:_NAMED_USERS])
        return named if len(users) <= _NAMED_USERS else f"{named} and {len(users) - _NAMED_USERS} more"

    def _diverged_after_step(self, what: str) -> InputError:
        users = self._named(self._last_windows)
        return self._diverged(f"{what} after step {self.state.step}, which learnt from the users {users}")

    def _diverged(self, what: str) -> InputError:
        kept = self.state.kept
        good = (
            "there is no good checkpoint before it"
            if kept is None
            else f"the last good checkpoint, of step {kept.step}, is kept in {kept.where}"
        )
        return InputError(
            f"training diverged: {what}, with learning rate {self._rate:g}; {good}; a smaller rate would do"
        )

    def _save(self) -> str | None:
        self._write_metrics()
        self._saved = time.monotonic()
        self.state.seconds = self._seconds
        if self._hooks.run is None:
            return None
        tensors = dict(self._learnt.state_dict())
        for name, parameter in self._learnt.named_parameters():
            for moment, tensor in self._optimizer.state[parameter].items():
                tensors[f"optimizer.{moment}.{name}"] = tensor
        if self._averages is not None:
            tensors |= {f"averages.{name}": tensor for name, tensor in self._averages.values().items()}
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        self._hooks.run.save(self.state, tensors)
        return str(self._hooks.run.path)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(name): tensor.to(self._device)
                for key, tensor in tensors.items()
                if key.startswith(name)
            }

        self._model.load_state_dict(part("model."))
        if self._conditions is not None:
            self._conditions.load_state_dict(part("conditions."))
        parameters = dict(self._learnt.named_parameters())
        for key, tensor in part("optimizer.").items():
            moment, _, name = key.partition(".")
            self._optimizer.state[parameters[name]][moment] = tensor
        if self._averages is not None:
            self._averages.restore(part("averages."))
        self.best = part("best.") or None
        self._last_windows = self._batcher.plan(self.state.epoch)[self.state.place - 1]
