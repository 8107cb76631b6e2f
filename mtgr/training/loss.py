"""Sampled softmax over shared negatives, corrected for how likely each video was to be drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batch


class SampledSoftmax:
    """Cross entropy of the next video against negatives that the whole batch shares.

    Half of the negatives are drawn by how often a video is a target, half uniformly. The sum over the catalog
    is estimated from them, each weighted by one over its expected number of draws (logQ correction, Bengio &
    Senecal 2008). Videos of the same window are no negatives: lists exclude those before the target, and the
    target and those after it are liked.
    """

    def __init__(self, target_counts: Tensor, n_negatives: int) -> None:
        """target_counts: (n_items,) how often each video is a target; n_negatives: draws a batch."""
        counts = target_counts.double()
        self._chances = 0.5 * counts / counts.sum() + 0.5 / len(counts)
        self._correction = -(self._chances * n_negatives).log().float()
        self._n_negatives = n_negatives

    def __call__(self, model: MTGR, batch: Batch, generator: torch.Generator) -> Tensor:
        """The mean loss over the batch's targets; the draws come from the generator, which is on the CPU."""
        queries = model.head.query(model(batch.rows, batch.layout)[batch.places])  # (M, d)
        targets = model.head.key(model.embeddings.video(batch.targets))  # (M, d)
        positives = (queries * targets).sum(-1)  # (M,)

        drawn = torch.multinomial(self._chances, self._n_negatives, replacement=True, generator=generator)
        correction = self._correction[drawn].to(queries.device)
        drawn = drawn.to(queries.device)  # (C,)
        if model.head.bias is not None:
            positives = positives + model.head.bias[batch.targets]
            correction = correction + model.head.bias[drawn]
        videos = model.head.key(model.embeddings.video(drawn))
        logits = torch.addmm(correction, queries, videos.T)  # (M, C)
        in_window = _in_window(batch, drawn, model.config.vocab_size)
        logits = logits.masked_fill_(in_window[batch.owners], -torch.inf)
        # -log(e^p / (e^p + sum of e^negatives))
        return functional.softplus(logits.logsumexp(-1) - positives).mean()


def _in_window(batch: Batch, drawn: Tensor, n_ids: int) -> Tensor:
    """(B, C) whether a drawn video stands in a window; drawn: (C,)."""
    distinct, column = torch.unique(drawn, return_inverse=True)
    column_of = torch.full((n_ids,), len(distinct), device=drawn.device)
    column_of[distinct] = torch.arange(len(distinct), device=drawn.device)
    windows = torch.arange(len(batch.layout.lengths), device=drawn.device)
    lengths = torch.from_numpy(batch.layout.lengths).to(drawn.device)
    held = torch.zeros(len(windows), len(distinct) + 1, dtype=torch.bool, device=drawn.device)
    held[torch.repeat_interleave(windows, lengths), column_of[batch.token_ids]] = True
    return held[:, column]
