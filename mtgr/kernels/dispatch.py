"""Which kernels compute on a device."""

from __future__ import annotations

import functools
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mtgr.kernels.paged import BiasTables, PagedStep


class PagedKernels(Protocol):
    """What there is for every device; `mtgr.kernels.paged_reference` says what it computes."""

    def attend(
        self,
        query: Tensor,
        kv_cache: Tensor,
        output: Tensor,
        step: PagedStep,
        *,
        scale: float,
        normalizer: float,
        bias: BiasTables | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        """Write what a step's queries attend to."""

    def store(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slots: Tensor,
        *,
        timed: bool = False,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        """Write a step's keys and values to the cache."""


def kernels_for(device: torch.device) -> PagedKernels:
    """The kernels over the paged cache of a device; on a CPU they are compiled when this returns."""
    return _kernels_for(device.type)


@functools.cache
def _kernels_for(kind: str) -> PagedKernels:
    kernels: Any
    if kind == "cpu":
        from mtgr.kernels import paged_cpu as kernels

        kernels.warm_up()
    elif kind == "cuda":
        from mtgr.kernels import paged_triton as kernels
    else:
        from mtgr.kernels import paged_reference as kernels
    return cast(PagedKernels, kernels)
