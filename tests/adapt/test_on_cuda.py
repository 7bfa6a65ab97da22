"""On a CUDA device: outputs, gradients and folding are those of the CPU, for every method."""

import copy

import pytest
import torch

from polytask.adapt import LoRA, adapt
from polytask.errors import UsageError
from polytask.testing.adapters import models

from .catalogued import ROWS, given_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

INDEX_B = torch.tensor([0, 2, 1, 1, 2, 0])


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_mixed_batch_is_that_of_the_cpu(row):
    for _, model, inputs in models():
        try:
            here = adapt(copy.deepcopy(model), row.load()(), ("a", "b", "c"))
        except UsageError:
            continue
        for p in here.parts.parameters():
            p.data += 0.3 * torch.randn_like(p)
        there = copy.deepcopy(here).cuda()
        outputs = []
        for adapted, x in ((here, inputs), (there, inputs.cuda())):
            given = {n: v.to(x.device) for n, v in (given_for(row.name) or {}).items()}
            with adapted.tasks(INDEX_B, given=given):  # on the CPU, as indices come from loaders
                outputs.append(adapted.base(x))
            outputs[-1].square().sum().backward()
        assert torch.allclose(outputs[1].cpu(), outputs[0], atol=1e-9)
        for mine, theirs in zip(here.parts.parameters(), there.parts.parameters(), strict=True):
            assert torch.allclose(theirs.grad.cpu(), mine.grad, atol=1e-9)


def test_building_draws_the_same_on_every_device():
    for _, model, _ in models():
        here = adapt(copy.deepcopy(model), LoRA(), ("a",), seed=3)
        there = adapt(copy.deepcopy(model).cuda(), LoRA(), ("a",), seed=3)
        for mine, theirs in zip(here.parts.parameters(), there.parts.parameters(), strict=True):
            assert theirs.is_cuda
            assert torch.equal(mine, theirs.cpu())
