"""Sparse experts: each row goes to the few experts its gate chose, and no other is run for it.

Rows are brought into order by expert, each expert's filled up to whole blocks, and the blocks of
all experts run as one batched product. Neither a loop over experts (one product per expert, and
their sizes must be known to the host) nor every expert on every row (E / k times the work). Only
where every expert is chosen for every row that is what happens.

The number of blocks follows from the number of rows alone, so no size depends on the data: it
exports, and an accelerator is never waited for.

Shapes: X = rows, J = experts chosen per row, E = experts, D = width of a row, H = width inside an
expert, Y = X * J chosen pairs, N = blocks, S = rows of a block, G = gates, R = rows of a gate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.experts import Stacked, own, product


class SparseExperts(nn.Module):
    """E networks of one form: linear, GELU, linear, from D over ratio * D back to D.

    k: how many a gate chooses for a row, from 1 to E.
    """

    def __init__(self, number: int, width: int, k: int, ratio: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= number:
            raise UsageError(
                f"Sparse experts: k is {k}; give from 1 to the number of experts, {number}."
            )
        if width < 1 or ratio < 1:
            raise UsageError(
                f"Sparse experts: width and ratio must be at least 1; got {width} and {ratio}."
            )
        self.number, self.width, self.k = number, width, k
        for layer, i, o in ((0, width, ratio * width), (1, ratio * width, width)):
            bound = 1 / math.sqrt(i)
            weight = torch.empty(number, i, o).uniform_(-bound, bound)
            bias = torch.empty(number, o).uniform_(-bound, bound)
            self.register_parameter(f"weight_{layer}", nn.Parameter(weight))
            self.register_parameter(f"bias_{layer}", nn.Parameter(bias))

    def stack(self, name: str) -> Stacked:
        """Return the experts' weights."""
        return {f"{name}_{n}": own(self, n) for n, _ in self.named_parameters(recurse=False)}


def top(weights_RGE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest weights of each row and gate (R, G, k), and whose they are."""
    weights_RGK, chosen_RGK = weights_RGE.topk(k, dim=-1, sorted=False)
    return weights_RGK, chosen_RGK


def run_chosen(stacked: Stacked, name: str, rows_XD: Tensor, chosen_XJ: Tensor) -> Tensor:
    """Return what each chosen expert makes of the row, (X, J, D)."""
    experts = stacked[f"{name}_weight_0"].shape[0]
    block = block_of(chosen_XJ.numel(), experts)
    slot_Y, expert_N = slots(chosen_XJ.flatten(), experts, block)
    row_Y = torch.arange(chosen_XJ.numel(), device=rows_XD.device) // chosen_XJ.shape[1]
    # Blocks are a dimension from the start, and their number is not taken by len: while a model
    # is exported neither splitting a dimension nor len would leave the number of rows open.
    place = (slot_Y // block, slot_Y % block)
    empty_NSD = rows_XD.new_zeros(expert_N.shape[0], block, rows_XD.shape[1])
    filled_NSD = empty_NSD.index_put(place, rows_XD[row_Y])
    parts = [stacked[f"{name}_{part}"][expert_N] for part in ("weight_0", "bias_0")]
    hidden_NSH = functional.gelu(product(filled_NSD, *parts))
    parts = [stacked[f"{name}_{part}"][expert_N] for part in ("weight_1", "bias_1")]
    given_NSD = product(hidden_NSH, *parts)
    return given_NSD[place].view(*chosen_XJ.shape, -1)


def run_all(stacked: Stacked, name: str, rows_XD: Tensor) -> Tensor:
    """Return what every expert makes of every row, (X, E, D)."""
    weights = [(stacked[f"{name}_weight_{n}"], stacked[f"{name}_bias_{n}"]) for n in (0, 1)]
    hidden_EXH = functional.gelu(product(rows_XD, *weights[0]))
    return product(hidden_EXH, *weights[1]).transpose(0, 1)


def slots(expert_Y: Tensor, experts: int, block: int) -> tuple[Tensor, Tensor]:
    """Return where each pair goes among the blocks' rows, and each block's expert (N,).

    N = Y // block + E, which is enough however the pairs spread over the experts.
    """
    pairs = expert_Y.shape[0]
    every_E = torch.arange(experts, device=expert_Y.device)
    # Counted and not sorted: ONNX knows no sort that keeps the order of equals.
    marks_EY = (every_E[:, None] == expert_Y).int()
    turn_Y = marks_EY.cumsum(1, dtype=torch.int32).gather(0, expert_Y[None])[0].long() - 1
    blocks_E = (marks_EY.sum(1) + block - 1) // block
    ends_E = blocks_E.cumsum(0)
    slot_Y = (ends_E - blocks_E)[expert_Y] * block + turn_Y
    number_N = torch.arange(pairs // block + experts, device=expert_Y.device)
    # The last blocks may be nobody's; they hold zeros, and nothing reads what comes of them.
    expert_N = (number_N[:, None] >= ends_E).sum(1).clamp(max=experts - 1)
    return slot_Y, expert_N


def block_of(pairs: int, experts: int) -> int:
    """Return the rows of a block, a power of 2 from 8 to 64.

    At most a quarter of the pairs is filled up, where there are 8 rows for each expert or more.
    Larger blocks read an expert's weights less often. While a model is exported the number is not
    known, and it is 16.
    """
    if torch.compiler.is_exporting():
        return 16
    return min(64, max(8, 1 << max(1, pairs // (4 * experts)).bit_length() - 1))


def cv_squared(x_E: Tensor) -> Tensor:
    """Return the squared coefficient of variation, variance over squared mean; 0 for one number."""
    if len(x_E) == 1:
        return x_E.sum() * 0
    return x_E.var() / (x_E.mean().square() + 1e-10)
