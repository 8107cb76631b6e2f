"""How good the lists are on cases that were not learnt: the full ranking of the catalog, where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.evaluation.metrics import gains, hits
from mtgr.evaluation.protocol import Case
from mtgr.evaluation.served import held_history
from mtgr.features import RowEncoder
from mtgr.model.jagged import Layout, length_batches
from mtgr.model.mtgr import MTGR

LIST_LENGTH: Final = 10


class Accuracy(Struct, frozen=True):
    """Over the cases, with seen videos left out of the ranking where lists leave them out."""

    cases: int
    hit_rate: float
    """HR@10: the share of cases whose video is among the best 10."""
    ndcg: float
    """NDCG@10: the same, with 1 / log2(1 + rank) in place of 1."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Like-long cases: rows (T, lanes); users, items: (S,) what each has seen; targets: (B,)."""

    rows: Tensor
    layout: Layout
    users: Tensor
    items: Tensor
    targets: Tensor


class HeldOutCases:
    """The same cases for every scorer, encoded once, on the device where they are scored.

    The sequence of a case is what a daemon would hold, the videos left out are all those of its history: as in
    `mtgr.evaluation`. A case whose video is not in the catalog is a miss.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        config: ModelConfig,
        catalog: Catalog,
        device: torch.device,
        *,
        exclude_seen: bool = True,
        profile: Callable[[Case], Mapping[str, Any]] = lambda case: {},
    ) -> None:
        """profile: the user's attributes at a case."""
        self._config: Final = config
        self._missing = 0
        self._batches: Final[list[_Batch]] = []
        encoder = RowEncoder(config, catalog)
        known = [case for case in cases if case.video_id in catalog]
        self._missing = len(cases) - len(known)
        held = [held_history(case.history, config) for case in known]
        for places in length_batches([len(history) + 1 for history in held], config):
            batch = [known[place] for place in places]
            encoded = encoder.encode_batch(
                [held[place] for place in places], [profile(case) for case in batch]
            )
            seen = [catalog.indices(case.history.video_ids) if exclude_seen else _NOTHING for case in batch]
            users = np.repeat(np.arange(len(batch)), [len(items) for items in seen])
            items = np.concatenate(seen)
            in_catalog = items < config.n_items
            self._batches.append(
                _Batch(
                    rows=torch.from_numpy(encoded.rows).to(device),
                    layout=Layout.of(encoded.lengths, device),
                    users=torch.from_numpy(users[in_catalog]).to(device),
                    items=torch.from_numpy(items[in_catalog]).to(device),
                    targets=torch.from_numpy(catalog.indices([case.video_id for case in batch])).to(device),
                )
            )

    @torch.no_grad()
    def of_model(self, model: MTGR) -> Accuracy:
        """The accuracy of a model that lies on the device; FloatingPointError if its scores are no numbers."""

        def logits(batch: _Batch) -> Tensor:
            return model.logits(model(batch.rows, batch.layout)[batch.layout.last]).float()

        was_training = model.training
        model.eval()
        try:
            return self._accuracy(logits)
        finally:
            model.train(was_training)

    def of_popularity(self, counts: npt.NDArray[np.int64]) -> Accuracy:
        """The accuracy of recommending to everybody what most know; counts: (n_items,)."""
        scores = torch.from_numpy(counts).float()
        return self._accuracy(lambda batch: scores.to(batch.targets.device).repeat(len(batch.targets), 1))

    def _accuracy(self, score: Callable[[_Batch], Tensor]) -> Accuracy:
        found, finite = [], []
        for batch in self._batches:
            scores = score(batch)
            finite.append(scores.isfinite().all())
            found.append(_ranks(scores, batch))
        if not all(finite):  # looked at in the end, since each look waits for the device
            raise FloatingPointError("scores are no numbers")
        ranks = np.concatenate([*(rank.cpu().numpy() for rank in found), np.full(self._missing, np.inf)])
        if not len(ranks):
            return Accuracy(0, 0.0, 0.0)
        return Accuracy(
            len(ranks), float(hits(ranks, LIST_LENGTH).mean()), float(gains(ranks, LIST_LENGTH).mean())
        )


_NOTHING: Final = np.empty(0, np.int64)


def _ranks(scores: Tensor, batch: _Batch) -> Tensor:
    """(B,) float64 rank of the target, 1 for the best; of equals the first comes first. The scores are changed."""
    scores[batch.users, batch.items] = -torch.inf
    places = batch.targets.unsqueeze(1)
    target = scores.gather(1, places)
    better = (scores > target).sum(1, dtype=torch.int32)
    as_good = (scores >= target).sum(1, dtype=torch.int32)
    ranks = (better + 1).double()
    tied = torch.nonzero(as_good > better + 1).squeeze(1)
    before = torch.arange(scores.shape[1], device=scores.device) < places[tied]
    ranks[tied] += ((scores[tied] == target[tied]) & before).sum(1)
    return ranks
