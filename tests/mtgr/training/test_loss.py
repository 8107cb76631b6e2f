"""Promises of mtgr.training.loss and negatives: the cross entropy that is meant, exactly or on average."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from training import CONFIG, PLAIN, batch_of, histories

from mtgr.catalog import Catalog
from mtgr.model.mtgr import MTGR
from mtgr.training import loss as loss_module
from mtgr.training.batches import Batch, _draws
from mtgr.training.conditions import FeedbackConditions
from mtgr.training.loss import NextVideoLoss, OutcomeLoss
from mtgr.training.negatives import NOBODY, NegativeSampler
from mtgr.training.options import TrainingOptions, WindowNegatives

NAMES = [chr(ord("a") + number) for number in range(26)]
ALPHABET = Catalog(NAMES, 4)
LEARNT = histories("abcAdef", "mnbopa", "xyzzy")


def _model(**changes: Any) -> MTGR:
    torch.manual_seed(0)
    model = MTGR(CONFIG.replace(n_items=26, temperature=1.0, **changes))
    if model.head.bias is not None:
        torch.nn.init.normal_(model.head.bias)
    return model


def _batch(model: MTGR, **changes: Any) -> Batch:
    options = msgspec.structs.replace(PLAIN, **{"negatives": "all", **changes})
    return batch_of(LEARNT, model.config, options, ALPHABET)[0]


def _by_hand(model: MTGR, hidden: Tensor, batch: Batch, own: WindowNegatives) -> float:
    """-log softmax of each target among those it competes with, weighted, one by one."""
    logits = model.logits(hidden)
    if batch.cold_videos is not None:
        cold = batch.cold_videos
        video, bias = model.embeddings.video, model.head.bias
        keys = model.head.key(video(torch.arange(26), cold))
        logits = model.head.query(hidden) @ keys.T
        if bias is not None:
            logits = logits + bias[torch.where(cold, video.bucket_of[:26], torch.arange(26))]
    total = 0.0
    for place, owner, target, weight in zip(
        batch.places, batch.owners, batch.targets, batch.weights, strict=True
    ):
        others = torch.ones(26, dtype=torch.bool)
        held = batch.windows == owner
        if own == "later":
            held &= torch.arange(len(held)) <= place
        ids = batch.token_ids[held]
        if own != "all":
            others[ids[ids < 26]] = False
        others[target] = True
        row = logits[place].masked_fill(~others, -torch.inf)
        total -= weight.item() * torch.log_softmax(row, 0)[target].item()
    return total / len(batch.targets)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("item_bias", [False, True])
@pytest.mark.parametrize("own", ["none", "later", "all"])
def test_the_full_loss_is_the_cross_entropy_over_the_catalog(
    similarity: str, item_bias: bool, own: WindowNegatives
) -> None:
    """Weighted, with the head as the config has it, and with or without other videos of its window."""
    model = _model(similarity=similarity, item_bias=item_bias)
    batch = _batch(model, weights={"like": 4.0, "watch": 0.5})
    with torch.no_grad():
        hidden = model(batch.rows, batch.layout)
        found = NextVideoLoss(own)(model, hidden, batch)
    assert found.item() == pytest.approx(_by_hand(model, hidden, batch, own), rel=1e-5)


def test_videos_shown_as_new_compete_as_new() -> None:
    """A cold video has its bucket's vector and bias, as target and as negative."""
    model = _model(item_bias=True, spare_items=2)
    catalog = Catalog(NAMES, 4, 2)
    model.embeddings.video.describe(catalog, {}, model.config)
    options = msgspec.structs.replace(PLAIN, negatives="all", cold_share=0.5)
    batch, _ = batch_of(LEARNT, model.config, options, catalog)
    assert batch.cold_videos is not None
    assert 0 < batch.cold_videos[batch.targets].sum() < len(batch.targets)
    with torch.no_grad():
        hidden = model(batch.rows, batch.layout, batch.roles, batch.cold)
        found = NextVideoLoss("later")(model, hidden, batch)
    assert found.item() == pytest.approx(_by_hand(model, hidden, batch, "later"), rel=1e-5)


@pytest.mark.parametrize("cold_share", [0.0, 0.5])
def test_a_condition_moves_the_query_and_the_bias_of_every_video(cold_share: float) -> None:
    """The loss is the cross entropy of a head whose hidden state and biases are those of the target's feedback."""
    model = _model(item_bias=True, spare_items=2)
    catalog = Catalog(NAMES, 4, 2)
    model.embeddings.video.describe(catalog, {}, model.config)
    options = msgspec.structs.replace(
        PLAIN, negatives="all", cold_share=cold_share, conditioned_on=("watch", "like")
    )
    batch, _ = batch_of(LEARNT, model.config, options, catalog)
    assert set(batch.conditions.tolist()) == {1, 2}
    batch = replace(batch, conditions=batch.conditions - 1)  # the targets of the first kind have none now
    conditions = FeedbackConditions(1, model.config.d_model, model.config.n_indices)
    with torch.no_grad():
        for parameter in conditions.parameters():
            torch.nn.init.normal_(parameter)
        hidden = model(batch.rows, batch.layout, batch.roles, batch.cold)
        found = NextVideoLoss("all", conditions)(model, hidden, batch)
        cold, video = batch.cold_videos, model.embeddings.video
        everything = torch.arange(26)
        indices = everything if cold is None else torch.where(cold, video.bucket_of[:26], everything)
        keys = torch.nn.functional.normalize(video(everything, cold), dim=-1)
        expected = 0.0
        for place, target, weight, told in zip(
            batch.places, batch.targets, batch.weights, batch.conditions, strict=True
        ):
            query, bias = model.head.norm(hidden[place]), model.head.bias[indices]  # type: ignore[index]
            if told:
                query, bias = query + conditions.offsets[0], bias + conditions.biases[0][indices]
            logits = functional.normalize(query, dim=-1) @ keys.T / model.head.temperature + bias
            expected -= weight.item() * torch.log_softmax(logits, 0)[target].item()
    assert found.item() == pytest.approx(expected / len(batch.targets), rel=1e-4)


@pytest.mark.parametrize("cold_share", [0.0, 0.5])
def test_drawn_negatives_have_the_biases_of_the_condition(cold_share: float) -> None:
    """Where every target has the condition, its biases are as good as those of the head."""
    model = _model(item_bias=True, spare_items=2)
    catalog = Catalog(NAMES, 4, 2)
    model.embeddings.video.describe(catalog, {}, model.config)
    options = msgspec.structs.replace(PLAIN, negatives=10, cold_share=cold_share, conditioned_on=("watch",))
    batch, _ = batch_of(histories("abcdef", "mnbopa"), model.config, options, catalog)
    assert batch.draws is not None
    assert batch.conditions.all()
    conditions = FeedbackConditions(1, model.config.d_model, model.config.n_indices)
    with torch.no_grad():
        torch.nn.init.normal_(conditions.biases)
        hidden = model(batch.rows, batch.layout, batch.roles, batch.cold)
        found = NextVideoLoss("later", conditions)(model, hidden, batch)
        assert model.head.bias is not None
        model.head.bias += conditions.biases[0]
        expected = NextVideoLoss("later")(model, hidden, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_logits_beyond_memory_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and its gradient are the same, part by part."""
    losses, gradients = [], []
    for limit in (1 << 28, 26 * 3):
        monkeypatch.setattr(loss_module, "_MAX_LOGITS", limit)
        model = _model()
        batch = _batch(model)
        loss = NextVideoLoss("later")(model, model(batch.rows, batch.layout), batch)
        torch.autograd.backward(loss)
        losses.append(loss.item())
        gradients.append(model.embeddings.video.ids.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    """To every weight, as by PyTorch's own softmax of the same logits, where seen videos are left out."""
    gradients = []
    for plain in (False, True):
        model = _model(item_bias=True)
        batch = _batch(model, weights={"like": 4.0, "watch": 0.5})
        hidden = model(batch.rows, batch.layout)
        if plain:
            held = (batch.windows == batch.owners.unsqueeze(-1)) & (batch.token_ids < 26)
            held &= torch.arange(len(batch.token_ids)) <= batch.places.unsqueeze(-1)
            seen = torch.zeros(len(batch.targets), 26)
            seen.scatter_add_(1, batch.token_ids.clamp(max=25).expand(len(seen), -1), held.float())
            seen.scatter_(1, batch.targets.unsqueeze(-1), 0.0)
            logits = model.logits(hidden)[batch.places].masked_fill(seen > 0, -torch.inf)
            losses = functional.cross_entropy(logits, batch.targets, reduction="none")
            loss = (losses * batch.weights).mean()
        else:
            loss = NextVideoLoss("later")(model, hidden, batch)
        torch.autograd.backward(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_user_who_has_seen_everything_breaks_nothing() -> None:
    """Where nothing is left to be told apart from, the loss is 0 and its gradient a number."""
    catalog = Catalog("abc", 4)
    config = CONFIG.replace(n_items=3)
    for negatives in ("all", 2):
        options = msgspec.structs.replace(PLAIN, negatives=negatives)
        batch, _ = batch_of(histories("abc"), config, options, catalog)
        model = MTGR(config)
        loss = NextVideoLoss("none")(model, model(batch.rows, batch.layout), batch)
        torch.autograd.backward(loss)
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_corrected_draws_estimate_the_sum_over_the_catalog(share: float) -> None:
    """Whatever the shares, the expectation of the corrected sum is the sum over all videos that can be drawn."""
    chance = np.random.default_rng(1)
    logits, counts = chance.normal(0, 1, 40), chance.integers(1, 50, 40)
    sampler = NegativeSampler(counts, TrainingOptions(negatives=39, uniform_share=share))
    sums = []
    for _ in range(2_000):
        drawn = sampler.draw(np.zeros(1, np.int64), np.zeros(1, np.int64), 1, chance)
        assert drawn is not None
        sums.append(np.exp(logits[drawn.items] + drawn.corrections[0]).sum())
    assert np.mean(sums) == pytest.approx(np.exp(logits).sum(), rel=0.02)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_sampled_loss_is_the_full_one_on_average(share: float) -> None:
    """With the logQ correction the mean over many draws comes to the cross entropy over the whole catalog, which
    only videos of which none is ever drawn would be missing from.
    """
    model = _model(item_bias=True)
    full = _batch(model)
    counts = np.array([1 + number % 7 for number in range(26)])
    sampler = NegativeSampler(counts, TrainingOptions(negatives=25, uniform_share=share))
    random = np.random.default_rng(0)
    with torch.no_grad():
        hidden = model(full.rows, full.layout)
        expected = NextVideoLoss("later")(model, hidden, full).item()
        estimates = []
        for _ in range(400):
            drawn = sampler.draw(full.targets.numpy(), full.owners.numpy(), 3, random)
            batch = replace(full, draws=_draws(drawn))
            estimates.append(NextVideoLoss("later")(model, hidden, batch).item())
    # the logarithm of an unbiased sum is a little below, by half its variance
    assert np.mean(estimates) == pytest.approx(expected, abs=0.06)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(2, 9),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_in_batch_negatives_are_corrected_by_what_each_window_could_expect(
    pairs: list[tuple[int, int]], draws: int, share: float, seed: int
) -> None:
    """Each batch target is drawn at most once and belongs to its window; its correction counts the others' alone."""
    targets, owners = (np.array(column) for column in zip(*pairs, strict=True))
    counts = np.bincount(targets, minlength=10) + 1
    options = TrainingOptions(negatives=draws, uniform_share=share, in_batch=True)
    drawn = NegativeSampler(counts, options).draw(targets, owners, 4, np.random.default_rng(seed))
    assert drawn is not None
    uniform = round(draws * share)
    taken = min(draws - uniform, len(targets))
    assert len(drawn.items) == taken + uniform
    assert (drawn.owners[taken:] == NOBODY).all()
    assert not set(zip(drawn.items[:taken].tolist(), drawn.owners[:taken].tolist(), strict=True)) - set(pairs)
    assert drawn.corrections.shape == (4, len(drawn.items))
    for window in range(4):
        others = int((drawn.owners[:taken] != window).sum())
        expected = others * counts / counts.sum() + uniform / 10
        for column, item in enumerate(drawn.items.tolist()):
            if expected[item] > 0:
                assert drawn.corrections[window, column] == pytest.approx(-np.log(expected[item]), abs=1e-5)


def test_a_windows_own_targets_are_no_in_batch_negatives_of_it() -> None:
    """Even where a window's videos may be negatives, its own targets in the batch are not counted against it."""
    model = _model()
    options = {"negatives": 20, "uniform_share": 0.0, "in_batch": True}
    batch = _batch(model, **options)
    draws = batch.draws
    assert draws is not None
    with torch.no_grad():
        hidden = model(batch.rows, batch.layout)
        found = NextVideoLoss("all")(model, hidden, batch)
        logits = model.logits(hidden)
    total = 0.0
    for place, owner, target in zip(
        batch.places.tolist(), batch.owners.tolist(), batch.targets.tolist(), strict=True
    ):
        terms = [logits[place, target]]
        for column, (item, its_owner) in enumerate(
            zip(draws.items.tolist(), draws.owners.tolist(), strict=True)
        ):
            if its_owner != owner and item != target:
                terms.append(logits[place, item] + draws.corrections[owner, column])
        total += (torch.stack(terms).logsumexp(0) - logits[place, target]).item()
    assert found.item() == pytest.approx(total / len(batch.targets), rel=1e-5)


@given(st.integers(1, 40), st.integers(2, 30))
def test_no_more_is_drawn_than_there_is(negatives: int, items: int) -> None:
    """Draws as many as the catalog cost what the catalog costs and say less, so that the catalog is taken."""
    sampler = NegativeSampler(np.ones(items, np.int64), TrainingOptions(negatives=negatives))
    drawn = sampler.draw(np.zeros(1, np.int64), np.zeros(1, np.int64), 1, np.random.default_rng(0))
    if negatives >= items:
        assert drawn is None
    else:
        assert drawn is not None
        assert len(drawn.items) == negatives


def test_the_ranking_loss_is_the_cross_entropy_of_the_labels() -> None:
    """The mean over candidates and heads of -log of the chance given to what came to pass."""
    model = _model(ranking=["watch_through", "like"])
    batch = _batch(model)
    assert model.ranking is not None
    assert batch.candidates is not None
    with torch.no_grad():
        hidden = model(batch.rows, batch.layout, batch.roles)
        found = OutcomeLoss()(model, hidden, batch)
        chances = model.ranking(hidden[batch.candidates.places]).sigmoid()
    labels = batch.candidates.labels.bool()
    assert labels.any()
    assert found.item() == pytest.approx(
        -torch.where(labels, chances, 1 - chances).log().mean().item(), rel=1e-5
    )
