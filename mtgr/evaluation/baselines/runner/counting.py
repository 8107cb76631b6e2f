"""The models that only count: popularity, recent popularity and item-to-item neighbours."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from rectools.models import ImplicitItemKNNWrapperModel, PopularModel
from scipy import sparse

from .task import Cases, dataset_of

_SIMILARITIES: Final = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}


class Popularity:
    """How many users each item had: of all time, or in the last `days` of the frame."""

    def __init__(self, items: npt.NDArray[Any], frame: pd.DataFrame, settings: dict[str, Any]) -> None:
        period = pd.Timedelta(days=settings["days"]) if "days" in settings else None
        model = PopularModel(period=period)
        dataset = dataset_of(frame, settings["events"])
        model.fit(dataset)
        numbers, counts = model.popularity_list
        external = dataset.item_id_map.convert_to_external(numbers).astype(object)
        self.counts = torch.full((len(items),), -torch.inf)
        self.counts[torch.from_numpy(np.searchsorted(items, external))] = torch.from_numpy(counts).float()

    def scores(self, cases: Cases, start: int, stop: int) -> torch.Tensor:
        """The same for everybody: (stop - start, items)."""
        return self.counts.repeat(stop - start, 1)


class Neighbours:
    """An item scores the sum of its similarities to the user's items (Deshpande & Karypis, 2004)."""

    def __init__(self, items: npt.NDArray[Any], frame: pd.DataFrame, settings: dict[str, Any]) -> None:
        dataset = dataset_of(frame, settings["events"])
        similar = _SIMILARITIES[settings["similarity"]](K=settings["neighbours"], num_threads=1)
        model = ImplicitItemKNNWrapperModel(similar)
        model.fit(dataset)
        self._targets_only = settings["events"] == "targets"
        external = dataset.item_id_map.external_ids.astype(object)
        order = np.argsort(external)
        self._known = np.searchsorted(items, external[order])  # item numbers of the model's columns
        self._columns = np.full(len(items), -1)
        self._columns[self._known] = np.arange(len(order))
        self._similarity = model.model.similarity.tocsr()[order][:, order]

    def scores(self, cases: Cases, start: int, stop: int) -> torch.Tensor:
        """(stop - start, items); -inf for what is similar to nothing in the history."""
        watched = sparse.lil_matrix((stop - start, len(self._known)))
        for row in range(stop - start):
            history = cases.histories[start + row]
            if self._targets_only:
                history = history[cases.weights[start + row] >= 1]
            columns = self._columns[history]
            numbers, counts = np.unique(columns[columns >= 0], return_counts=True)
            watched[row, numbers] = counts
        found = torch.from_numpy((watched.tocsr() @ self._similarity).toarray()).float()
        scores = torch.full((stop - start, len(self._columns)), -torch.inf)
        scores[:, torch.from_numpy(self._known)] = found.masked_fill_(found <= 0, -torch.inf)
        return scores
