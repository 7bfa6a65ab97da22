"""The per-layer Gramian over two processes equals autograd's of the whole batch in one.

This file is also the program of each process.
"""

import json
import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask.balance import Balancer, Signal, State, Update, sum_gradients

TASKS = ("a", "b", "c", "d")
ROWS = 14
SHARES = (slice(0, 9), slice(9, 14))


class Keeps:
    """Weights 1, -2, 3, ... by position on axis T; keeps the Gramian it saw."""

    needs = "gramian"
    foresees = False
    by_epoch = False

    def start(self, tasks: int) -> State:
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        self.seen_KK = signal.gram_KK
        signs = (-1.0) ** signal.index_K
        return Update(state, signs * (1 + signal.index_K))


# -- encoders: (B, ...) -> (B, 8) -----------------------------------------------------------------


class Tagger(nn.Module):
    """A table of which little is looked up, used also as a layer; a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(900, 10, padding_idx=0)
        self.cell = nn.GRU(10, 6, batch_first=True)
        self.top = nn.Linear(6, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.top(self.cell(self.words(tokens))[0].mean(1))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.GELU(), nn.Flatten(), nn.Linear(96, 8)
        )
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.body(pictures) * self.scale


def mlp() -> tuple[nn.Module, Tensor]:
    layers = nn.Linear(40, 120), nn.ReLU(), nn.LayerNorm(120), nn.Linear(120, 90), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(90, 8)), torch.randn(ROWS, 40)


def twice() -> tuple[nn.Module, Tensor]:
    """One wide layer, used three times."""
    layer = nn.Linear(60, 60)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer, nn.Linear(60, 8)), torch.randn(
        ROWS, 60
    )


def conv() -> tuple[nn.Module, Tensor]:
    return Conv(), torch.randn(ROWS, 3, 6, 6)


def tagger() -> tuple[nn.Module, Tensor]:
    return Tagger(), torch.randint(0, 60, (ROWS, 5))


class Stack(nn.Module):
    """Two wide layers side by side, of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 60, 60) / 8)
        self.bias = nn.Parameter(torch.randn(2, 1, 60))
        self.top = nn.Linear(60, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.baddbmm(self.bias, x.expand(2, -1, -1), self.weight).tanh().sum(0))


def stack() -> tuple[nn.Module, Tensor]:
    return Stack(), torch.randn(ROWS, 60)


ENCODERS = {build.__name__: build for build in (mlp, twice, conv, tagger, stack)}


# -- who has labels -------------------------------------------------------------------------------


def everybody(tasks: Tensor, rows: Tensor) -> Tensor:
    return torch.ones(len(rows), len(tasks), dtype=torch.bool)


def sparse(tasks: Tensor, rows: Tensor) -> Tensor:
    """Each row for one task, which its inputs do not tell."""
    return (rows * 5 % 7 % 4)[:, None] == tasks


def alone(tasks: Tensor, rows: Tensor) -> Tensor:
    """Task "b" in the first process alone, "d" in the second alone, "c" nowhere."""
    here = torch.ones(len(rows), len(tasks), dtype=torch.bool)
    here[9:, 1] = here[:9, 3] = here[:, 2] = False
    return here


def unlike(tasks: Tensor, rows: Tensor) -> Tensor:
    """Sparse in the first process, everybody in the second."""
    return torch.where(rows[:, None] < 9, rows[:, None] % 4 == tasks, True)


def one_sided(tasks: Tensor, rows: Tensor) -> Tensor:
    """The second process has no label at all."""
    return (rows[:, None] < 9).expand(-1, len(tasks))


LABELS = {rule.__name__: rule for rule in (everybody, sparse, alone, unlike, one_sided)}
RUNS = [(encoder, labels, parts) for encoder in ENCODERS for labels in LABELS for parts in (1, 2)]
ODD = ("separate", "refused", "cancels", "empty")
"""A forward pass per task; a graph that one process cannot read; rows that cancel; a
process without rows, whose losses are sums over nothing."""


def update(
    encoder_name: str,
    labels: str,
    parts: int,
    share: slice,
    gramian: str,
    odd: str = "",
    rank: int = 0,
) -> dict:
    torch.manual_seed(0)
    encoder, inputs = ENCODERS[encoder_name]()
    encoder, heads = encoder.double(), nn.ModuleDict({t: nn.Linear(8, 1) for t in TASKS}).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    targets = torch.randn(ROWS, len(TASKS), dtype=torch.float64)
    if odd == "cancels":
        inputs[9:] = inputs[:5]  # the second process's rows are the first's, and against them
    here = LABELS[labels](torch.arange(len(TASKS)), torch.arange(ROWS))
    method = Keeps()
    balancer = Balancer(method, encoder.parameters(), TASKS, gramian=gramian)
    rows = torch.arange(ROWS)[share]
    chunks = rows.chunk(parts)
    encode: Callable[[Tensor], Tensor] = encoder
    if odd == "refused" and rank == 1:
        inputs = inputs.requires_grad_()
        encode = lambda x: checkpoint(encoder, x, use_reentrant=True)  # noqa: E731
    for n, chunk in enumerate(chunks):
        features = encode(inputs[chunk]) if odd != "separate" else None
        losses = {}
        for k, task in enumerate(TASKS):
            own = here[chunk, k]
            if bool(own.any()) or odd == "empty":
                mine = encode(inputs[chunk][own]) if features is None else features[own]
                if odd == "cancels":
                    sign = 1 - (2 - 1e-9) * (chunk[own] >= 9).double()
                    losses[task] = (mine[:, k] * sign * (chunk[own] % 9 < 5)).sum()
                else:
                    error = heads[task](mine)[:, 0] - targets[chunk][own, k]
                    losses[task] = error.square().sum() / here[:, k].sum()
        balancer.backward(losses, accumulate=n + 1 < len(chunks))
    parameters = [*encoder.parameters(), *heads.parameters()]
    sum_gradients(parameters)
    return {
        "gram": method.seen_KK.flatten().tolist(),
        "grads": [None if p.grad is None else p.grad.flatten().tolist() for p in parameters],
        "engine": balancer.engine,
        "held": balancer.held_bytes,
    }


@pytest.fixture(scope="module")
def pair(run_pair) -> list[dict]:
    return run_pair(__file__)


def check(pair: list[dict], name: str, whole: dict, tolerance: float = 1e-10) -> None:
    for result in pair:
        got = result[name]
        for mine, expected in zip(
            [got["gram"], *got["grads"]], [whole["gram"], *whole["grads"]], strict=True
        ):
            assert (mine is None) == (expected is None)
            if mine is not None:
                mine, expected = (torch.tensor(v, dtype=torch.float64) for v in (mine, expected))
                scale = float(expected.abs().max()) or 1.0
                torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance * scale)
    assert pair[0][name]["gram"] == pair[1][name]["gram"]
    assert pair[0][name]["grads"] == pair[1][name]["grads"]


@pytest.mark.parametrize(("encoder", "labels", "parts"), RUNS)
def test_two_processes_are_one(pair, encoder, labels, parts):
    whole = update(encoder, labels, 1, slice(0, ROWS), "rows")
    assert any(abs(v) > 1e-6 for v in whole["gram"])
    check(pair, f"{encoder} {labels} {parts}", whole)
    for result in pair[: 1 if labels == "one_sided" else 2]:
        assert result[f"{encoder} {labels} {parts}"]["engine"].startswith("exact, per layer")
        assert result[f"{encoder} {labels} {parts}"]["engine"].endswith("across 2 processes")


@pytest.mark.parametrize("odd", ODD)
def test_two_processes_are_one_also_where(pair, odd):
    whole = update("mlp", "everybody", 1, slice(0, ROWS), "rows", odd)
    # What is left of rows that cancel to 1e-9 has lost 9 of 16 digits in any order of summation.
    check(pair, odd, whole, 1e-5 if odd == "cancels" else 1e-10)
    for result in pair:
        assert result[odd]["engine"].startswith("exact, per layer") == (odd != "refused")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_process_without_rows_adds_nothing(pair, encoder):
    check(pair, f"{encoder} empty", update(encoder, "sparse", 1, slice(0, ROWS), "rows"))


def test_no_process_holds_a_row_per_task_of_a_wide_layer(pair):
    encoder, _ = mlp()
    rows = len(TASKS) * 8 * sum(p.numel() for p in encoder.parameters())
    for result in pair:
        assert result["mlp everybody 1"]["held"] < rows / 5


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    result = {
        f"{encoder} {labels} {parts}": update(encoder, labels, parts, SHARES[rank], "auto")
        for encoder, labels, parts in RUNS
    }
    for odd in ODD:
        share = slice(0, ROWS * (1 - rank)) if odd == "empty" else SHARES[rank]
        result[odd] = update("mlp", "everybody", 1, share, "auto", odd, rank)
    for encoder in ENCODERS:
        share = slice(0, ROWS * (1 - rank))
        result[f"{encoder} empty"] = update(encoder, "sparse", 1, share, "auto", "empty", rank)
    print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
