"""On a CUDA device: every architecture's outputs and gradients are those of the CPU."""

import contextlib
import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from polytask.share import SharedModel

from .conftest import make, rows
from .pictures import RECIPES as OF_PICTURES
from .pictures import make as make_of_pictures
from .pictures import pictures

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


UNSETTLED = ("mtan",)
"""Adaptive max pooling: torch has no gradient of it there that comes to the same bits twice."""


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """As torch can be set: without, sums over rows taken more than once come in any order."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    yield
    torch.use_deterministic_algorithms(False)


def same_on_both(model: SharedModel, inputs: Tensor, bits: bool) -> None:
    """Check outputs, gradients and what is extracted, float64; bits: twice the same on the GPU."""
    task = model.tasks[0]
    there = copy.deepcopy(model).cuda()
    outputs, found = model(inputs), there(inputs.cuda())
    for name, output in outputs.items():
        torch.testing.assert_close(found[name].cpu(), output, rtol=1e-8, atol=1e-10)
    for given in (outputs, found):
        sum(output.square().sum() for output in given.values()).backward()
    for (name, one), other in zip(model.named_parameters(), there.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-7, atol=1e-9, msg=name)
    first = [p.grad.clone() for p in there.parameters() if p.grad is not None]
    there.zero_grad()
    sum(output.square().sum() for output in there(inputs.cuda()).values()).backward()
    again = [p.grad for p in there.parameters() if p.grad is not None]
    assert not bits or all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone = there.eval().extract(task)
    torch.testing.assert_close(alone(inputs.cuda()), there(inputs.cuda(), tasks=(task,))[task])


def check(recipe: str, model: SharedModel, inputs: Tensor) -> None:
    settled = not recipe.startswith(UNSETTLED)
    with deterministic(settled):
        same_on_both(model, inputs, settled)


def test_rows(recipe):
    if recipe.startswith("learning-to-branch"):
        pytest.skip("draws its nodes, other ones on each device")
    check(recipe, make(recipe), rows())


@pytest.mark.parametrize("recipe", OF_PICTURES)
def test_pictures(recipe):
    check(recipe, make_of_pictures(recipe).double(), pictures().double())
