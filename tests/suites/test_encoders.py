"""Encoders keep their shapes, treat every row alone, and standardise with fixed statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.suites.encoders import MLP, ConvNet, Standardise, TableEncoder

Inputs = Tensor | dict[str, Tensor]


def table(rows: int) -> dict[str, Tensor]:
    codes = torch.stack([torch.arange(rows) % 3, torch.arange(rows) % 50], 1)
    return {"numeric": torch.randn(rows, 4), "categorical": codes}


CASES = {
    "mlp": (lambda: MLP(6, (8, 5)), lambda n: torch.randn(n, 6), 5),
    "mlp with dropout": (
        lambda: MLP(6, (8,), dropout=0.5, input_dropout=0.2), lambda n: torch.randn(n, 6), 8,
    ),
    "plain mlp": (lambda: MLP(6, (8,), norm=False), lambda n: torch.randn(n, 6), 8),
    "convnet": (
        lambda: ConvNet(1, 10, 14, maps=(8, 12), features=7, dropout=0.1),
        lambda n: torch.randn(n, 1, 10, 14), 7,
    ),
    "odd picture": (lambda: ConvNet(3, 9, 7), lambda n: torch.randn(n, 3, 9, 7), 128),
    "table": (
        lambda: TableEncoder(Standardise(torch.ones(4), torch.ones(4)), (3, 50), (9, 6)), table, 6,
    ),
    "numeric table": (
        lambda: TableEncoder(Standardise(torch.zeros(4), torch.ones(4)), (), (9,)), table, 9,
    ),
    "categorical table": (lambda: TableEncoder(None, (3, 50), (9,)), table, 9),
}  # fmt: skip
EVERY = pytest.mark.parametrize(("build", "draw", "width"), CASES.values(), ids=CASES.keys())
Build, Draw = Callable[[], nn.Module], Callable[[int], Inputs]


def part(inputs: Inputs, rows: slice) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {name: value[rows] for name, value in inputs.items()}


@EVERY
def test_a_row_gives_the_same_features_in_any_batch(build: Build, draw: Draw, width: int) -> None:
    torch.manual_seed(0)
    encoder, inputs = build().eval(), draw(8)
    whole = encoder(inputs)
    assert whole.shape == (8, width)
    assert encoder.width == width
    halves = torch.cat([encoder(part(inputs, slice(0, 3))), encoder(part(inputs, slice(3, 8)))])
    torch.testing.assert_close(halves, whole)


@EVERY
def test_every_parameter_is_reached(build: Build, draw: Draw, width: int) -> None:
    torch.manual_seed(0)
    encoder = build()
    encoder(draw(64)).square().sum().backward()
    unreached = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@EVERY
def test_the_seed_decides_the_weights(build: Build, draw: Draw, width: int) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in build().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_standardise_gives_mean_0_and_deviation_1_and_leaves_constants_at_0() -> None:
    torch.manual_seed(0)
    rows_ND = torch.randn(500, 3) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -1e5])
    rows_ND = torch.cat([rows_ND, torch.full((500, 1), 0.1)], 1)
    module = Standardise.of(rows_ND)
    out_ND = module(rows_ND)
    torch.testing.assert_close(out_ND.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(out_ND[:, :3].std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)
    assert out_ND[:, 3].abs().max() < 1e-6
    assert list(module.parameters()) == []
    assert set(module.state_dict()) == {"mean_D", "scale_D"}


def test_an_unseen_category_has_an_embedding_of_its_own() -> None:
    torch.manual_seed(0)
    encoder = TableEncoder(None, (3,), (4,)).eval()
    features = encoder({"categorical": torch.tensor([[0], [1], [2]])})
    assert len(torch.unique(features, dim=0)) == 3


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: MLP(0), "got 0"),
        (lambda: MLP(3, ()), "hidden width"),
        (lambda: MLP(3, (4, 0)), "hidden width"),
        (lambda: TableEncoder(None, ()), "got neither"),
        (lambda: Standardise(torch.zeros(2), torch.zeros(2)), "smallest scale 0.0"),
        (lambda: Standardise(torch.zeros(2), torch.ones(3)), r"\(2,\) and \(3,\)"),
    ],
)
def test_what_cannot_work_is_refused(build: Build, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build()


def test_the_stages_of_a_convnet_are_as_told_and_end_as_its_features() -> None:
    encoder, picture = ConvNet(1, 10, 14, maps=(8, 12, 16)).eval(), torch.randn(2, 1, 10, 14)
    stages = encoder.stages(picture)
    assert [(u.shape[1], p.shape[1]) for u, p in stages] == [*encoder.stage_channels]
    assert [tuple(p.shape[2:]) for _, p in stages] == [(10, 14), (5, 7), (3, 4)]
    assert torch.equal(encoder.finish(stages[-1][1], (10, 14)), encoder(picture))
