"""Who sees whom: the dynamic mixed mask of MTGR (arXiv 2505.18654, section 3.3) over the tokens of a sequence.

1. A static token sees the static tokens: all of them, in both directions, where the mask is mixed; its past where
   it is causal. It sees nothing else.
2. An event sees the static tokens and the events up to itself.
3. A candidate sees the static tokens, the events before its place, and itself; no other candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtgr.model.jagged import Layout


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """(length, length) bool: a token sees itself and its past, so what is cached stays exact.

    It is the mixed mask of a sequence whose profile is its only static token and which has no candidates.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


@dataclass(frozen=True, slots=True)
class Roles:
    """What each token is to the mask; all of one shape (..., L).

    static, candidate: bool, never both; order: int64, the place in the sequence, which of a candidate is the place
    of the event that it might become.
    """

    static: Tensor
    candidate: Tensor
    order: Tensor

    def at(self, places: Tensor) -> Roles:
        """The roles of the tokens at these places; of joined tokens those of padded sequences, for one."""
        return Roles(self.static[places], self.candidate[places], self.order[places])


def history_roles(layout: Layout, recent_events: int | None) -> Roles:
    """The roles of whole histories: static are the profile and the events before the newest `recent_events`.

    None for all events recent.
    """
    static = layout.positions == 0
    if recent_events is not None:
        last = torch.repeat_interleave(layout.last, torch.as_tensor(layout.lengths).to(layout.last.device))
        from_end = last - torch.arange(len(last), device=last.device)
        static = static | (from_end >= recent_events)
    return Roles(static, torch.zeros_like(static), layout.positions)


def mixed_mask(roles: Roles, *, both_ways: bool) -> Tensor:
    """(..., L, L) bool: whether the token of a row sees the token of a column; `both_ways` as in rule 1."""
    length = roles.order.shape[-1]
    itself = torch.eye(length, dtype=torch.bool, device=roles.order.device)
    of_row, of_column = roles.order.unsqueeze(-1), roles.order.unsqueeze(-2)
    row_static, column_static = roles.static.unsqueeze(-1), roles.static.unsqueeze(-2)
    row_candidate = roles.candidate.unsqueeze(-1)
    column_event = ~(roles.static | roles.candidate).unsqueeze(-2)
    past = of_column <= of_row
    sees_static = column_static if both_ways else column_static & (~row_static | past)
    sees_event = column_event & ~row_static & torch.where(row_candidate, of_column < of_row, past)
    return sees_static | sees_event | itself
