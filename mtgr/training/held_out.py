"""How good the lists are: each user's last new video, predicted from what came before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import EncodedHistories, RowEncoder
from mtgr.model.jagged import Layout, length_batches
from mtgr.model.mtgr import MTGR
from mtgr.training.windows import HeldOut

LIST_LENGTH: Final = 10


class Accuracy(Struct, frozen=True):
    """Over the users tested, with seen videos left out of the ranking as lists leave them out."""

    users: int
    hit_rate: float
    """HR@10: the share of users whose video is among the best 10."""
    ndcg: float
    """NDCG@10: the same, with 1 / log2(1 + rank) in place of 1."""


class HeldOutTest:
    """The same users for every scorer, so that the figures compare."""

    def __init__(self, tests: Sequence[HeldOut], config: ModelConfig, catalog: Catalog) -> None:
        self._tests = tests
        self._config = config
        self._catalog = catalog
        self._encoder = RowEncoder(config, catalog)

    @torch.no_grad()
    def of_model(self, model: MTGR, device: torch.device) -> Accuracy:
        """The accuracy of a model that lies on the device."""

        def logits(encoded: EncodedHistories) -> Tensor:
            layout = Layout.of(encoded.lengths, device)
            hidden = model(torch.from_numpy(encoded.rows).to(device), layout)
            return model.logits(hidden[layout.last]).cpu()

        was_training = model.training
        model.eval()
        try:
            return self._accuracy(logits)
        finally:
            model.train(was_training)

    def of_popularity(self, target_counts: npt.NDArray[np.int64]) -> Accuracy:
        """The accuracy of recommending to everybody what was watched most; target_counts: (n_items,)."""
        counts = torch.from_numpy(target_counts).float()
        return self._accuracy(lambda encoded: counts.repeat(len(encoded.lengths), 1))

    def _accuracy(self, score: Callable[[EncodedHistories], Tensor]) -> Accuracy:
        ranks: list[Tensor] = []
        for numbers in length_batches([len(test.history) + 1 for test in self._tests], self._config):
            batch = [self._tests[number] for number in numbers]
            encoded = self._encoder.encode_batch([test.history for test in batch])
            targets = torch.tensor([test.target for test in batch])
            ranks.append(_ranks(score(encoded), encoded, targets))
        if not ranks:
            return Accuracy(0, 0.0, 0.0)
        all_ranks = torch.cat(ranks).double()
        hits = all_ranks <= LIST_LENGTH
        gains = torch.where(hits, 1 / torch.log2(1 + all_ranks), 0.0)
        return Accuracy(len(all_ranks), hits.double().mean().item(), gains.mean().item())


def _ranks(scores: Tensor, encoded: EncodedHistories, targets: Tensor) -> Tensor:
    """(users,) rank of the target, 1 for the best, among unseen videos; of equals the first comes first."""
    n_items = scores.shape[1]
    users = torch.from_numpy(np.repeat(np.arange(len(encoded.lengths)), encoded.lengths))
    items = torch.from_numpy(encoded.token_ids)
    known = items < n_items
    scores = scores.index_put((users[known], items[known]), torch.tensor(-torch.inf))
    target = scores.gather(1, targets.unsqueeze(1))
    equals_before = (scores == target) & (torch.arange(n_items) < targets.unsqueeze(1))
    return 1 + (scores > target).sum(1) + equals_before.sum(1)
