"""The layers that are compared."""

from __future__ import annotations

import torch
from torch.nn import functional

from mtgr.bench.layers import PagedCache, PagedHSTU, TransformerLayer
from mtgr.config import GROUPS
from mtgr.features import EVENT
from mtgr.model.jagged import Layout
from mtgr.model.layer import Sight
from mtgr.model.masks import causal_mask
from mtgr.presets import PRESETS

CONFIG = PRESETS["tiny"].replace(d_ff=0)
LENGTH, SEQUENCES = 21, 3
CPU = torch.device("cpu")


@torch.inference_mode()
def test_the_layer_on_the_kernels_is_the_models_own() -> None:
    """What is timed is the layer that the model has, however its parts are fused."""
    torch.manual_seed(0)
    paged = PagedHSTU(CONFIG, CPU)
    x, delta = (torch.randn(LENGTH * SEQUENCES, CONFIG.d_model) for _ in range(2))
    group = torch.full((len(x),), EVENT, dtype=torch.int32)
    found = paged(x, delta, group, PagedCache(CONFIG, x, LENGTH))
    layout = Layout.of(torch.full((SEQUENCES,), LENGTH).numpy())
    sights = [Sight(one, causal_mask(LENGTH), None, None) for one in layout.groups]
    wanted = paged.layer(x + delta, functional.one_hot(group.long(), GROUPS).float(), sights)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_sequence_of_the_transformer_sees_no_other_and_no_future() -> None:
    """Its attention is causal within each of the joined sequences, as ours is."""
    torch.manual_seed(0)
    layer = TransformerLayer(CONFIG)
    x, delta = (torch.randn(LENGTH * SEQUENCES, CONFIG.d_model) for _ in range(2))
    starts = torch.arange(SEQUENCES + 1, dtype=torch.int32) * LENGTH
    before = layer(x, delta, starts, LENGTH)
    place = LENGTH + 5
    x[place] += 1
    changed = (layer(x, delta, starts, LENGTH) - before).abs().sum(-1) > 0
    assert changed.nonzero().squeeze(1).tolist() == list(range(place, 2 * LENGTH))
