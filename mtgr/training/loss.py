"""What training makes small: the cross entropy of the next video, and that of the ranking heads."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batch, Draws
from mtgr.training.conditions import FeedbackConditions
from mtgr.training.options import WindowNegatives

_MAX_LOGITS: Final = (
    1 << 28
)  # kept for the gradient: 1 GiB of float32; beyond, they are computed a second time
_ANYWHERE: Final = 1 << 30  # a place in a window beyond all there are
_NEVER: Final = -1e9  # e to this is 0; unlike infinity it has a gradient where all of a row is masked


class NextVideoLoss:
    """Cross entropy of the next video against the catalog, or against the negatives that a batch has drawn.

    From draws the sum over the catalog is estimated, see `mtgr.training.negatives`. A target is never a negative
    of its own; which other videos of its window are, the training options say. Logits are computed in float32,
    whatever the layers are computed in.
    """

    def __init__(
        self, window_negatives: WindowNegatives, conditions: FeedbackConditions | None = None
    ) -> None:
        """conditions: what learns of the batches' conditions; without it nothing does."""
        self._window_negatives: Final = window_negatives
        self._conditions: Final = conditions

    def __call__(self, model: MTGR, hidden: Tensor, batch: Batch) -> Tensor:
        """The sum of weight * loss over the batch's targets by their number; hidden: (T, d) of all tokens."""
        videos, draws = model.embeddings.video, batch.draws
        if draws is None:
            negatives = torch.arange(videos.n_items, device=hidden.device)
            embedded = videos.catalog() if batch.cold_videos is None else videos(negatives, batch.cold_videos)
            keys, offsets = model.head.key(embedded), _biases(model, negatives, batch)
            targets, of_targets = keys[batch.targets], None if offsets is None else offsets[batch.targets]
        else:
            negatives, cold = draws.items, batch.cold_videos
            keys = model.head.key(videos(negatives, None if cold is None else cold[negatives]))
            offsets = _biases(model, negatives, batch)
            targets = model.head.key(videos(batch.targets, None if cold is None else cold[batch.targets]))
            of_targets = _biases(model, batch.targets, batch)
        conditions = self._conditions
        if conditions is None:
            queries = model.head.query(hidden[batch.places])
        else:
            kinds = conditions.chosen(batch.conditions)
            queries = model.head.query(hidden[batch.places], conditions.added(kinds))
        order = (batch.layout.positions if batch.roles is None else batch.roles.order)[batch.places]
        order = order.to(torch.int32)  # as `_first_shown` has it: mixed types would be compared in a copy
        shown = None if self._window_negatives == "all" else _first_shown(batch, videos.n_items)
        if self._window_negatives == "none":
            order = torch.full_like(order, _ANYWHERE)
        with torch.autocast(hidden.device.type, enabled=False):
            queries, keys, targets = queries.float(), keys.float(), targets.float()
            if conditions is not None:
                queries = torch.cat([queries, kinds], dim=-1)
                keys = conditions.widened(keys, _indices(model, negatives, batch))
                targets = conditions.widened(targets, _indices(model, batch.targets, batch))
            positives = (queries * targets).sum(-1)  # (M,)
            if of_targets is not None:
                positives = positives + of_targets
            step = max(1, _MAX_LOGITS // len(keys))
            chunks = []
            for begin in range(0, len(queries), step):
                chosen = slice(begin, begin + step)
                arguments = (
                    queries[chosen], keys, offsets, batch.targets[chosen], batch.owners[chosen], order[chosen],
                    shown, draws,
                )  # fmt: skip
                chunks.append(
                    _log_sum(*arguments)
                    if len(queries) <= step
                    else checkpoint(_log_sum, *arguments, use_reentrant=False)
                )
            # -log(e^p / (e^p + sum of e^negatives))
            losses = functional.softplus(torch.cat(chunks) - positives)
        return (losses * batch.weights).sum() / max(1, len(losses))


class OutcomeLoss:
    """Binary cross entropy of the ranking heads on the candidates of a batch."""

    def __call__(self, model: MTGR, hidden: Tensor, batch: Batch) -> Tensor:
        """The mean over candidates and heads; 0 where the batch has none."""
        assert batch.candidates is not None
        assert model.ranking is not None
        logits = model.ranking(hidden[batch.candidates.places]).float()
        total = functional.binary_cross_entropy_with_logits(logits, batch.candidates.labels, reduction="sum")
        return total / max(1, batch.candidates.labels.numel())


def _indices(model: MTGR, items: Tensor, batch: Batch) -> Tensor:
    """(n,) where what is learnt of these videos stands: a new one is shown as its bucket."""
    if batch.cold_videos is None:
        return items
    return torch.where(batch.cold_videos[items], model.embeddings.video.bucket_of[items], items)


def _biases(model: MTGR, items: Tensor, batch: Batch) -> Tensor | None:
    """(n,) what is added to the logits of these videos."""
    return None if model.head.bias is None else model.head.bias[_indices(model, items, batch)]


def _first_shown(batch: Batch, n_items: int) -> Tensor:
    """(B, n) int32: at which place each window first shows each negative, beyond _ANYWHERE where it never does.
    The negatives are all n videos, or the draws in their order.
    """
    draws, ids = batch.draws, batch.token_ids
    order = batch.layout.positions if batch.roles is None else batch.roles.order
    if draws is None:
        width, columns = n_items, ids.clamp(max=n_items)  # a column more, for what is no negative
    else:
        width = len(draws.items)
        # of equal draws the first one, which the others then look at
        places = torch.searchsorted(draws.ordered, ids).clamp(max=width - 1)
        columns = torch.where(draws.ordered[places] == ids, places, width)
    shape = (len(batch.layout.lengths), width + 1)
    first = torch.full(shape, _ANYWHERE + 1, dtype=torch.int32, device=ids.device)
    cells = batch.windows * shape[1] + columns
    first.view(-1).scatter_reduce_(0, cells, order.to(torch.int32), "amin")
    return first[:, :width] if draws is None else first[:, draws.first]


def _log_sum(
    queries: Tensor,
    keys: Tensor,
    offsets: Tensor | None,
    targets: Tensor,
    owners: Tensor,
    order: Tensor,
    shown: Tensor | None,
    draws: Draws | None,
) -> Tensor:
    """(m,) log of the sum of e^logit over the negatives; queries: (m, d), targets, owners, order: (m,)."""
    if draws is not None and len(draws.corrections) == 1:
        corrections = draws.corrections.squeeze(0)
        offsets = corrections if offsets is None else offsets + corrections
    logits = queries @ keys.T if offsets is None else torch.addmm(offsets, queries, keys.T)  # (m, n)
    if draws is not None and len(draws.corrections) > 1:
        logits = logits + draws.corrections[owners]
    out = torch.zeros_like(logits, dtype=torch.bool)
    if shown is not None:
        out = shown[owners] <= order.unsqueeze(-1)
    if draws is None:
        out.scatter_(1, targets.unsqueeze(-1), True)
    else:
        out |= draws.items == targets.unsqueeze(-1)
        if len(draws.corrections) > 1:
            out |= draws.owners == owners.unsqueeze(-1)
    with torch.no_grad():  # the gradient of what is masked is 0 as it is: e^logit is
        logits.masked_fill_(out, _NEVER)
    total: Tensor = _LogSumExp.apply(logits)  # type: ignore[no-untyped-call]
    return total


class _LogSumExp(torch.autograd.Function):
    """torch.logsumexp over the last dimension, in the memory of its input, which nobody may want afterwards.

    What it keeps are the exponentials, so that the gradient is one product in place. torch.logsumexp would make
    three more tensors as large as the logits, the largest of a training.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """(m, n) to (m,)."""
        highest = logits.amax(-1, keepdim=True)
        exponentials = logits.detach().sub_(highest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, total)
        return (highest + total.log()).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """(m,) to (m, n): the gradient times the softmax."""
        exponentials, total = ctx.saved_tensors
        scaled: Tensor = exponentials.mul_(gradient.unsqueeze(-1) / total)
        return scaled
