"""Batches of windows by a budget of tokens, joined so that nothing is padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import candidate_rows, write_video
from mtgr.model.jagged import Group, Layout
from mtgr.model.masks import Roles
from mtgr.training.negatives import Negatives, NegativeSampler
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, Windows

_PLAN: Final = 0  # streams of random numbers: the order of an epoch,
_BATCH: Final = 1  # and what is shown how in one batch


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a batch: their rows in the windows, window, place in it, and what they are shown as; all (T,)."""

    taken: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    bare: npt.NDArray[np.bool_]
    candidate: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Draws:
    """The negatives of a batch as `mtgr.training.negatives.Negatives` has them; first: (C,) int64, for each the
    first equal one in `ordered`, which holds the items in order.
    """

    items: Tensor
    owners: Tensor
    corrections: Tensor
    ordered: Tensor
    first: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the ranking heads learn from: (R,) int64 places of candidate tokens, (R, heads) float32 labels."""

    places: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Joined windows.

    rows: (T, lanes) float32; token_ids, windows: (T,) int64, the item and the window of each token; layout: how
    they are taken apart; roles: of the tokens, None where each sees its past alone; cold: (T,) bool, None where
    none is; places: (M,) int64, the tokens from which something is predicted; owners, targets: (M,) int64, their
    windows and the videos; weights: (M,) float32; conditions: (M,) int64, as `mtgr.training.conditions` has them;
    cold_videos: (n_items,) bool, those shown as new ones.
    """

    rows: Tensor
    token_ids: Tensor
    windows: Tensor
    layout: Layout
    roles: Roles | None
    cold: Tensor | None
    places: Tensor
    owners: Tensor
    targets: Tensor
    weights: Tensor
    conditions: Tensor
    cold_videos: Tensor | None
    draws: Draws | None
    candidates: Candidates | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""

        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        roles, draws, candidates = self.roles, self.draws, self.candidates
        return Batch(
            rows=change(self.rows),
            token_ids=change(self.token_ids),
            windows=change(self.windows),
            layout=replace(
                self.layout,
                positions=change(self.layout.positions),
                last=change(self.layout.last),
                groups=[
                    Group(change(group.places), maybe(group.inside), change(group.rows))
                    for group in self.layout.groups
                ],
            ),
            roles=roles and Roles(change(roles.static), change(roles.candidate), change(roles.order)),
            cold=maybe(self.cold),
            places=change(self.places),
            owners=change(self.owners),
            targets=change(self.targets),
            weights=change(self.weights),
            conditions=change(self.conditions),
            cold_videos=maybe(self.cold_videos),
            draws=draws
            and Draws(
                change(draws.items),
                change(draws.owners),
                change(draws.corrections),
                change(draws.ordered),
                change(draws.first),
            ),
            candidates=candidates and Candidates(change(candidates.places), change(candidates.labels)),
        )


class Batcher:
    """Draws the windows of an epoch in random batches of at most `batch_tokens` tokens.

    Every epoch and every batch has random numbers of its own, by the seed and its number: a training that is
    resumed draws what it would have drawn.
    """

    def __init__(
        self,
        windows: Windows,
        catalog: Catalog,
        config: ModelConfig,
        options: TrainingOptions,
    ) -> None:
        self._windows: Final = windows
        self._config: Final = config
        self._options: Final = options
        self._batch_tokens: Final = options.tokens_a_batch(config.max_length, int(windows.lengths.sum()))
        self._buckets: Final = np.array([catalog.bucket(video) for video in catalog.video_ids], np.int64)
        known = windows.token_ids[windows.token_ids < config.n_items]
        self.unseen: Final = np.bincount(known, minlength=config.n_items) == 0
        """(n_items,) bool, the videos that no window holds: they are always shown as new ones."""
        counts = np.bincount(windows.targets[windows.targets != NO_TARGET], minlength=config.n_items)
        self._sampler: Final = NegativeSampler(counts, options)
        described = bool(config.video_categories or config.video_numbers)
        self._cold_share: Final = options.cold_share if described or config.spare_items else 0.0
        self._shows_cold: Final = bool(self._cold_share or self.unseen.any())

    def plan(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The window numbers of each batch of one epoch, in random order."""
        random = np.random.default_rng((self._options.seed, _PLAN, epoch))
        lengths = self._windows.lengths
        order = random.permutation(len(lengths))
        batches = []
        begin, tokens = 0, 0
        for place, length in enumerate(lengths[order].tolist()):
            if place > begin and tokens + length > self._batch_tokens:
                batches.append(order[begin:place])
                begin, tokens = place, 0
            tokens += length
        return [*batches, order[begin:]]

    def users(self, chosen: npt.NDArray[np.int64]) -> list[str]:
        """The users whose windows these are, each once."""
        return [self._windows.user_ids[user] for user in dict.fromkeys(self._windows.users[chosen].tolist())]

    def batch(self, chosen: npt.NDArray[np.int64], epoch: int, number: int) -> Batch:
        """The windows of one batch, joined, on the CPU."""
        random = np.random.default_rng((self._options.seed, _BATCH, epoch, number))
        windows, config = self._windows, self._config
        tokens = self._tokens(chosen, random)
        rows, token_ids = windows.rows[tokens.taken], windows.token_ids[tokens.taken]
        known = token_ids < config.n_items
        unknown = known & (random.random(len(rows)) < self._options.unknown_share)
        shown = rows[unknown]
        write_video(shown, self._buckets[token_ids[unknown]])
        rows[unknown] = shown
        alone = tokens.bare | tokens.candidate
        if alone.any():
            items = token_ids[alone]
            items[unknown[alone]] = self._buckets[items[unknown[alone]]]
            rows[alone] = candidate_rows(items, config)
        cold = None
        if self._cold_share:
            cold = torch.from_numpy(known & ~unknown & (random.random(len(rows)) < self._cold_share))
        places = np.flatnonzero((windows.targets[tokens.taken] != NO_TARGET) & ~tokens.candidate)
        learnt = tokens.taken[places]
        targets, owners = windows.targets[learnt], tokens.owners[places]
        return Batch(
            rows=torch.from_numpy(rows),
            token_ids=torch.from_numpy(token_ids),
            windows=torch.from_numpy(tokens.owners),
            layout=Layout.of(np.bincount(tokens.owners, minlength=len(chosen))),
            roles=self._roles(tokens),
            cold=cold,
            places=torch.from_numpy(places),
            owners=torch.from_numpy(owners),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(windows.weights[learnt]),
            conditions=torch.from_numpy(windows.conditions[learnt].astype(np.int64)),
            cold_videos=self._cold_videos(random),
            draws=_draws(self._sampler.draw(targets, owners, len(chosen), random)),
            candidates=self._candidates(tokens),
        )

    def _tokens(self, chosen: npt.NDArray[np.int64], random: np.random.Generator) -> _Tokens:
        lengths = self._windows.lengths[chosen]
        ends = np.cumsum(lengths)
        tokens = _Tokens(
            taken=np.arange(ends[-1]) + np.repeat(self._windows.starts[chosen] - ends + lengths, lengths),
            owners=np.repeat(np.arange(len(chosen)), lengths),
            order=np.arange(ends[-1]) - np.repeat(ends - lengths, lengths),
            bare=np.zeros(ends[-1], np.bool_),
            candidate=np.zeros(ends[-1], np.bool_),
        )
        if self._options.bare_share:
            tokens = self._with_bare_ends(tokens, ends - lengths, ends, random)
        if self._config.ranking:
            tokens = self._with_candidates(tokens, random)
        return tokens

    def _with_bare_ends(
        self,
        tokens: _Tokens,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> _Tokens:
        """Some windows end as a slate does: in videos by themselves, all of them targets."""
        bare, kept = tokens.bare.copy(), np.ones(len(tokens.taken), np.bool_)
        aims = self._windows.aims[tokens.taken]
        for window in np.flatnonzero(random.random(len(ends)) < self._options.bare_share).tolist():
            begin, end = starts[window], ends[window]
            # without the last target, after which there is nothing to learn
            aimed = np.flatnonzero(aims[begin:end])[:-1] + begin
            slate = aimed[-int(random.integers(1, self._options.max_bare + 1)) :]
            if len(slate):
                kept[slate[0] : end] = False
                kept[slate] = bare[slate] = True
        if kept.all():
            return tokens
        owners = tokens.owners[kept]
        return _Tokens(
            taken=tokens.taken[kept],
            owners=owners,
            order=np.arange(len(owners)) - np.searchsorted(owners, owners),
            bare=bare[kept],
            candidate=tokens.candidate[kept],
        )

    def _with_candidates(self, tokens: _Tokens, random: np.random.Generator) -> _Tokens:
        """Some watched videos of each window stand behind it once more, to be told how they will be met."""
        ids = self._windows.token_ids[tokens.taken]
        able = self._windows.watches[tokens.taken] & (ids < self._config.n_items) & ~tokens.bare
        places = np.flatnonzero(able)
        places = places[np.lexsort((random.random(len(places)), tokens.owners[places]))]
        owners = tokens.owners[places]
        rank = np.arange(len(places)) - np.searchsorted(owners, owners)
        picked = np.sort(places[rank < self._options.ranking_candidates])
        merged = np.argsort(np.concatenate([tokens.owners, tokens.owners[picked]]), kind="stable")
        return _Tokens(
            taken=np.concatenate([tokens.taken, tokens.taken[picked]])[merged],
            owners=np.concatenate([tokens.owners, tokens.owners[picked]])[merged],
            order=np.concatenate([tokens.order, tokens.order[picked]])[merged],
            bare=np.concatenate([tokens.bare, tokens.bare[picked]])[merged],
            candidate=np.concatenate([tokens.candidate, np.ones(len(picked), np.bool_)])[merged],
        )

    def _roles(self, tokens: _Tokens) -> Roles | None:
        config = self._config
        if not config.ranking and config.mask == "causal":
            return None
        static = tokens.order == 0
        if config.mask == "mixed":
            last = np.bincount(tokens.owners, ~tokens.candidate)[tokens.owners] - 1
            static = (static | (last - tokens.order >= config.recent_events)) & ~tokens.candidate
        return Roles(*(torch.from_numpy(array) for array in (static, tokens.candidate, tokens.order)))

    def _candidates(self, tokens: _Tokens) -> Candidates | None:
        if not self._config.ranking:
            return None
        places = np.flatnonzero(tokens.candidate)
        labels = self._windows.outcomes[tokens.taken[places]]
        return Candidates(torch.from_numpy(places), torch.from_numpy(labels.astype(np.float32)))

    def _cold_videos(self, random: np.random.Generator) -> Tensor | None:
        if not self._shows_cold:
            return None
        return torch.from_numpy(self.unseen | (random.random(self._config.n_items) < self._cold_share))


def _draws(negatives: Negatives | None) -> Draws | None:
    if negatives is None:
        return None
    ordered = np.sort(negatives.items)
    return Draws(
        items=torch.from_numpy(negatives.items),
        owners=torch.from_numpy(negatives.owners),
        corrections=torch.from_numpy(negatives.corrections),
        ordered=torch.from_numpy(ordered),
        first=torch.from_numpy(np.searchsorted(ordered, negatives.items)),
    )
