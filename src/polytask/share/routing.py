"""Routing: rows go to few experts each, and only the experts chosen for a row compute it.

The rows of every expert are laid into blocks of one size, a block for one expert: about four
blocks per expert, and no more than one of them partly empty for each. So the cost is that of the
rows chosen and at most a quarter more, however unevenly they fall, in a number of operators that
depends neither on experts nor on readers; nothing waits for numbers on the device. Where an expert
has few rows its blocks are fewer, and more of their places may be empty.

Shapes: R = rows, G = readers (gates), K = experts chosen for a row by a reader, E = experts,
X = G * K, P = R * X, choices, N = blocks, D = width of the rows, W = width of an expert's output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.share.experts import Activation, Stacked, run
from polytask.share.mixture import mixed

PARTS = 4
"""Most blocks per expert. More waste fewer places on rows that are not there, and copy weights
once each: worth it for blocks of `ROWS` rows or more, and of an eighth of the width (measured on
experts of two products, 64 x 64 and 256 x 256)."""

ROWS = 8


def routed(
    stacked: Stacked,
    name: str,
    rows: Tensor,
    weights_RGK: Tensor,
    chosen_RGK: Tensor,
    activate: Activation = torch.relu_,
) -> Tensor:
    """Return (G, R, W): of each row the weighted sum of its chosen experts' outputs.

    stacked: holds the experts' layers as `name`. rows: (R, D) that all readers share, or of each
    its own (G, R, D). activate: see `run`. Where a row has as many choices as there are experts,
    as with many readers, every expert computes it once for all readers.
    """
    if rows.ndim == 3:
        weights_X1K, chosen_X1K = (
            part.transpose(0, 1).flatten(0, 1)[:, None] for part in (weights_RGK, chosen_RGK)
        )
        given_1XW = routed(stacked, name, rows.flatten(0, 1), weights_X1K, chosen_X1K, activate)
        return given_1XW.view(rows.shape[0], -1, given_1XW.shape[2])
    experts = stacked[f"{name}_0_weight"].shape[0]
    width, (_, readers, k) = rows.shape[1], chosen_RGK.shape
    if readers * k >= experts:
        every_ERW = run(stacked, name, rows, activate)
        return mixed(spread(weights_RGK, chosen_RGK, experts), every_ERW)
    slot_P, expert_N, block = _laid(chosen_RGK.flatten(), experts, max(ROWS, width // 8))
    choice_PD = rows[:, None].expand(-1, readers * k, -1).flatten(0, 1)
    # Not a gather: its gradient would add up in an order that differs from run to run on a GPU.
    blocks_XD = rows.new_zeros(len(expert_N) * block, width)
    blocks_XD.index_copy_(0, slot_P, choice_PD)
    # Not index_select, for the same reason: many blocks are one expert's.
    taken = {n: v[expert_N] for n, v in stacked.items() if n.startswith(f"{name}_")}
    given_NXW = run(taken, name, blocks_XD.view(len(expert_N), block, width), activate)
    given_PW = given_NXW.flatten(0, 1).index_select(0, slot_P)
    weights_X1K = weights_RGK.reshape(-1, 1, k)
    given_X1W = torch.bmm(weights_X1K, given_PW.view(-1, k, given_PW.shape[1]))
    return given_X1W.view(-1, readers, given_PW.shape[1]).transpose(0, 1)


def spread(weights_RGK: Tensor, chosen_RGK: Tensor, experts: int) -> Tensor:
    """Return the weights of all experts, (R, G, E): 0 for those not chosen."""
    none_RGE = weights_RGK.new_zeros(*weights_RGK.shape[:2], experts)
    return none_RGE.scatter(2, chosen_RGK, weights_RGK)


def within(chosen_RGK: Tensor, experts: int, capacity: Tensor) -> Tensor:
    """Return which choices find room, bool (R, G, K): an expert takes `capacity` times its even
    share of all choices, first choices before second ones, then in the order of the rows."""
    expert_P = chosen_RGK.permute(2, 0, 1).flatten()
    room = (capacity * (len(expert_P) / experts)).ceil()
    there_P = _turns(expert_P, experts)[0] < room
    rows, readers, k = chosen_RGK.shape
    return there_P.view(k, rows, readers).permute(1, 2, 0)


def counted(chosen: Tensor, experts: int) -> Tensor:
    """Return how often each expert was chosen, int64 (E,)."""
    return _marks(chosen.flatten(), experts).sum(0)


def imbalance(probabilities_RGE: Tensor, counts_E: Tensor) -> Tensor:
    """Return E * sum_i f_i p_i of each reader, (G,): 1 where all is even, E where one has all.

    f_i: the part of the choices that fell on expert i, no gradient. p_i: the reader's mean
    probability of it.
    """
    mean_GE = probabilities_RGE.sum(0) / max(len(probabilities_RGE), 1)
    part_E = counts_E.to(mean_GE) / counts_E.sum().clamp(min=1)
    return len(counts_E) * mean_GE @ part_E


def _laid(expert_P: Tensor, experts: int, few: int) -> tuple[Tensor, Tensor, int]:
    """Return the place of every choice, the expert of every block, and the rows of a block.

    few: rows that are worth a block.
    """
    turn_P, counts_E = _turns(expert_P, experts)
    choices = expert_P.shape[0]  # and not len, which under export is a number
    if torch.compiler.is_compiling():  # the number of rows is a symbol: no size may depend on it
        parts, least, most = PARTS, 2, (PARTS + 1) * experts
    else:
        parts, least = max(1, min(PARTS, choices // (few * experts))), 1
        most = min((parts + 1) * experts, choices)  # few choices begin a block each
    # More than a 1 / parts of an even share, so that no more blocks are begun than there are.
    block = choices // (parts * experts) + least
    blocks_E = (counts_E + (block - 1)) // block
    ends_E = blocks_E.cumsum(0)
    slot_P = (ends_E - blocks_E)[expert_P] * block + turn_P
    at_N = torch.arange(most, device=expert_P.device)
    expert_N = (at_N[:, None] >= ends_E).sum(1).clamp(max=experts - 1)
    return slot_P, expert_N, block


def _turns(expert_P: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return how many choices of the same expert come before each, and each expert's choices."""
    marks_PE = _marks(expert_P, experts)
    # Counted and not sorted: ONNX knows no sort that keeps the order of equals.
    counted_PE = marks_PE.cumsum(0, dtype=torch.int32)
    turn_P = counted_PE.gather(1, expert_P[:, None])[:, 0].long() - 1
    return turn_P, marks_PE.sum(0)


def _marks(expert_P: Tensor, experts: int) -> Tensor:
    """Return int32 (P, E): 1 at the expert chosen."""
    every_E = torch.arange(experts, device=expert_P.device)
    return (expert_P[:, None] == every_E).int()
