"""The relative biases of a layer, as one tensor-parallel rank serves them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

from mtgr.config import ModelConfig
from mtgr.kernels.paged import BiasTables
from mtgr.kernels.time_buckets import TIME_BUCKETS


class BiasTable(nn.Module):
    """A learnt number for each distance, for the heads of this rank.

    weight: (heads of the rank, distances); a checkpoint's is (distances, n_heads).
    """

    def __init__(self, distances: int, n_heads: int) -> None:
        super().__init__()
        heads = n_heads // get_tensor_model_parallel_world_size()
        self.weight = nn.Parameter(torch.empty(heads, distances), requires_grad=False)
        self.weight.weight_loader = self._load_heads  # type: ignore[attr-defined]

    def _load_heads(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        heads = len(parameter)
        first = heads * get_tensor_model_parallel_rank()
        parameter.data.copy_(loaded[:, first : first + heads].T)


class ServedBias(nn.Module):
    """`mtgr.model.bias.RelativeBias` as the attention over the paged cache takes it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.by_position = BiasTable(config.max_length, config.n_heads) if config.position_bias else None
        self.by_time = BiasTable(TIME_BUCKETS, config.n_heads) if config.time_bias else None

    @property
    def tables(self) -> BiasTables:
        """Those of the two that the config asks for."""
        return BiasTables(
            None if self.by_position is None else self.by_position.weight,
            None if self.by_time is None else self.by_time.weight,
        )
