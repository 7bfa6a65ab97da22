"""On a CUDA device: every method's updates are those of the CPU.

What draws random numbers draws others there, so that it is held to finite gradients alone.
"""

import pytest
import torch

from polytask.balance import Balancer
from polytask.catalog import METHODS
from polytask.parsing import parse

from .test_gramian import cnn, gru_tagger, mlp, vit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PLAIN = [row.name for row in METHODS if row.room == "balance" and not row.wraps]
WRAPPED = [
    "mgda+feature-level",
    "pcgrad+every-n:n=2",
    "cagrad+sampled-rows:fraction=1.0",
    "pcgrad+flat-regions",
    "uncertainty+look-ahead",
    "igb-v1+cagrad",
]
DRAWN = {"rlw", "graddrop", "igb-v2", "sdmgrad", "pcgrad"}
"""They draw random numbers: weights, signs, actions, batches, the order of projections."""


def updates(toy, name: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the gradients of three updates, on the CPU."""
    model, inputs, targets = toy(rows=24, dtype=dtype)
    model.to(device)
    inputs, targets = inputs.to(device), {t: target.to(device) for t, target in targets.items()}
    balancer = Balancer(
        parse(name).build_balance(0), model.shared(), model.heads, steps_per_epoch=1
    )
    if isinstance(balancer.method, torch.nn.Module):
        balancer.method.to(device)

    def again(rows, tasks):
        return model.losses(rows(inputs), {t: rows(targets[t]) for t in tasks})

    found = []
    for _ in range(3):
        if balancer.observes == "validation":
            balancer.observe(model.losses(inputs, targets))
        balancer.backward(model.losses(inputs, targets), again=again)
        grads = model.grads()
        found.append(torch.cat([g.flatten().cpu() for g in grads.values() if g is not None]))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads.values(), strict=True):
                if grad is not None:
                    parameter -= 0.01 * grad / (1 + grad.norm())
        if balancer.observes == "after":
            balancer.observe(model.losses(inputs, targets))
    return found


@pytest.mark.parametrize("name", PLAIN + WRAPPED)
def test_updates_are_those_of_the_cpu(toy, name):
    there = updates(toy, name, "cuda", torch.float64)
    for one, other in zip(there, updates(toy, name, "cpu", torch.float64), strict=True):
        assert one.isfinite().all()
        if not DRAWN & {*name.split("+")}:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [mlp, cnn, vit, gru_tagger])
@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_the_gramian_by_layers_is_that_of_rows(make, precision):
    torch.manual_seed(0)
    encoder, inputs = make()
    dtype = torch.float64 if precision == "float64" else torch.float32
    encoder.to("cuda", dtype).train()
    inputs = inputs.cuda().to(dtype) if inputs.is_floating_point() else inputs.cuda()
    heads = torch.nn.Linear(16, 3).to("cuda", dtype)
    target = torch.randn(12, 3, device="cuda", dtype=dtype)
    grads = {}
    for gramian in ("auto", "rows"):
        balancer = Balancer(parse("mgda").build_balance(0), encoder.parameters(), gramian=gramian)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            features = encoder(inputs)
            features = features.mean(1) if features.ndim == 3 else features
            error = (heads(features) - target).square().mean(0)
        balancer.backward({f"t{i}": loss for i, loss in enumerate(error)})
        grads[gramian] = torch.cat(
            [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        )
        encoder.zero_grad()
    # bf16 rounds each way's own intermediate results.
    rtol, atol = (1e-8, 1e-10) if precision == "float64" else (0.1, 0.05)
    torch.testing.assert_close(grads["auto"], grads["rows"], rtol=rtol, atol=atol)
