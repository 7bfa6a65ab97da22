"""One row by the compiled kernel is torch's up to rounding, and only where nobody could tell.

Without kernels, as where polytask was installed without a C compiler, these tests are skipped.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from polytask.kernels import library, missing
from polytask.share import MMoE, one_row
from polytask.share.experts import product
from polytask.share.one_row import MOST, product_of_one
from polytask.tasks import Binary, Regression, Task, TaskSet

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no kernels: {missing()}")

SIZES = [  # S, I, O: around vectors of 4, 8 and 16, blocks of 8 of them, and lines read whole
    (1, 1, 1), (3, 5, 1), (2, 7, 3), (4, 9, 16), (2, 33, 31), (5, 16, 128), (3, 20, 129),
    (8, 256, 256), (2, 17, 257), (3, 8, 400), (2, 100, 700), (1, 3, 1024),
]  # fmt: skip


def layer(networks: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return weights (S, I, O) and biases (S, O)."""
    generator = torch.Generator().manual_seed(seed)
    weight_SIO = torch.randn(networks, inputs, outputs, generator=generator)
    return weight_SIO / inputs**0.5, torch.randn(networks, outputs, generator=generator)


def row_of(networks: int | None, inputs: int) -> Tensor:
    """Return one row for all networks, (1, I), or for each its own, (S, 1, I)."""
    generator = torch.Generator().manual_seed(inputs)
    shape = (1, inputs) if networks is None else (networks, 1, inputs)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_output_is_the_exact_one_but_for_rounding(size, relu, own):
    weight_SIO, bias_SO = layer(*size)
    row = row_of(size[0] if own else None, size[1])
    for bias in (bias_SO, None):
        with torch.no_grad():
            made = product_of_one(row, weight_SIO, bias, relu=relu)
        assert made is not None
        exact = row.double().expand(size[0], 1, -1) @ weight_SIO.double()
        exact = exact if bias is None else exact + bias[:, None]
        wanted = exact.relu() if relu else exact
        # n sums of products, each rounded: at most about n units of the sum of their sizes.
        sizes = row.double().abs().expand(size[0], 1, -1) @ weight_SIO.double().abs()
        room = (size[1] + 2) * 2.0**-24 * (sizes + (0 if bias is None else bias.abs()[:, None]))
        assert made.dtype == torch.float32
        assert bool(((made - wanted).abs() <= room).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_level_of_the_machines_vectors_and_no_sibling_changes_a_bit(size, monkeypatch):
    best = library()
    assert best is not None
    weight_SIO, bias_SO = layer(*size)
    row = row_of(None, size[1])
    found = []
    with torch.no_grad():
        for level in {0, 3, best.level} if best.level >= 3 else {0}:
            one = replace(best, level=level)
            monkeypatch.setattr(one_row, "library", lambda one=one: one)
            one_row._kernel.cache_clear()
            found.append(product_of_one(row, weight_SIO, bias_SO, relu=True))
        last = product_of_one(row, weight_SIO[-1:], bias_SO[-1:], relu=True)
    monkeypatch.undo()
    one_row._kernel.cache_clear()
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.equal(last[0], found[0][-1])


def test_what_is_no_number_stays_none():
    weight_SIO, bias_SO = layer(2, 4, 40)
    row = row_of(None, 4)
    weight_SIO[1, 2, 5], bias_SO[0, 39], row[0, 3] = torch.nan, torch.nan, torch.inf
    with torch.no_grad():
        made = product_of_one(row, weight_SIO, bias_SO, relu=True)
        wanted = torch.baddbmm(bias_SO[:, None], row.expand(2, -1, -1), weight_SIO).relu()
    torch.testing.assert_close(made, wanted, equal_nan=True)
    assert made.isnan().any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # vmap's own rules
def test_where_torch_is_to_compute_it_does(monkeypatch):
    """Gradients, types, devices' layouts, subclasses, size, and whatever watches the operators."""
    weight_SIO, bias_SO = layer(3, 6, 20)
    row = row_of(None, 6)

    def left(row: Tensor = row, weight: Tensor = weight_SIO, bias: Tensor = bias_SO) -> bool:
        return product_of_one(row, weight, bias, relu=True) is None

    assert left()  # gradients are on
    with torch.no_grad():
        assert not left()
        assert not left(weight=nn.Parameter(weight_SIO))
        assert left(row=row.expand(2, -1))
        assert left(row.double(), weight_SIO.double(), bias_SO.double())
        assert left(row, weight_SIO.bfloat16(), bias_SO)
        assert left(weight=weight_SIO.transpose(1, 2).contiguous().mT)
        assert left(row=row_of(None, 12)[:, ::2])
        assert left(row=torch._neg_view(row))
        assert left(bias=bias_SO.to("meta"))
        assert left(bias=type("Mine", (Tensor,), {})(bias_SO))
        large = torch.zeros(1, 2, MOST // 2 + 1)
        assert left(torch.zeros(1, 2), large, torch.zeros(1, large.shape[2]))
        with torch.autocast("cpu"):
            assert left()
        with FlopCounterMode(display=False) as counter:
            product(row, weight_SIO, bias_SO)
        assert counter.get_total_flops() == 2 * 3 * 6 * 20
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(row, torch.ones_like(row))
            tangent = forward_ad.unpack_dual(product(dual, weight_SIO, bias_SO)).tangent
        torch.testing.assert_close(tangent[:, 0], weight_SIO.sum(1))
        rows = torch.stack([row, 2 * row])
        many = torch.vmap(lambda one: product(one, weight_SIO, bias_SO))(rows)
        torch.testing.assert_close(many[1], product(2 * row, weight_SIO, bias_SO))
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(one_row, "library", lambda: None)
        one_row._kernel.cache_clear()
        assert left()
    one_row._kernel.cache_clear()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    tasks = TaskSet([Task("click", Binary()), Task("price", Regression())])
    return MMoE.build(nn.Linear(5, 8), 8, tasks, experts=3, widths=(16, 4)).eval()


def test_a_models_row_alone_is_its_row_among_others(model, monkeypatch):
    calls: list[int] = []
    kernel = one_row._kernel()
    monkeypatch.setattr(
        one_row, "_kernel", lambda: lambda *given: calls.append(1) or kernel(*given)
    )
    rows = torch.randn(7, 5)
    with torch.inference_mode():
        every = model(rows)
        assert not calls
        for r in range(7):
            for task, output in model(rows[r : r + 1]).items():
                torch.testing.assert_close(output, every[task][r : r + 1])
    assert len(calls) == 14  # two layers of a row, for all tasks at once


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_traced_compiled_and_exported_it_is_torch_that_is_recorded(model):
    """A kernel's output would be recorded as a constant."""
    alone, one, other = model.extract("click"), torch.randn(1, 5), torch.randn(1, 5)
    weight_SIO, bias_SO = layer(3, 5, 20)

    def plain(row: Tensor) -> Tensor:
        return product(row, weight_SIO, bias_SO, relu=True)

    with torch.no_grad():
        traced = torch.jit.trace(plain, (one,))
        torch.testing.assert_close(traced(other), plain(other))
        exported = torch.export.export(alone, (one,)).module()
        compiled = torch.compile(alone, backend="eager", fullgraph=True)
        for program in (exported, compiled):
            torch.testing.assert_close(program(other), alone(other))
