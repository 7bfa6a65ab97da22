"""Architectures for pictures against plain loops over tasks, stages and experts.

Forward and every gradient, in float64 to 1e-10. The loops take single weights out of the model
and use none of its functions.
"""

import pytest
import torch
from torch.nn import functional

from .pictures import RECIPES, make, pictures


def key(task):
    return f"task_{task}"


def norm(x, gain, shift):
    """Mean 0 and variance 1 in groups of 8 channels, or of all: sums written out."""
    channels = x.shape[1]
    size = 8 if channels % 8 == 0 else channels
    parts = []
    for first in range(0, channels, size):
        group = x[:, first : first + size]
        mean = group.mean((1, 2, 3), keepdim=True)
        variance = (group - mean).square().mean((1, 2, 3), keepdim=True)
        parts.append((group - mean) / (variance + 1e-5).sqrt())
    return torch.cat(parts, 1) * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def conv1(x, weight_IO):
    """A 1x1 convolution."""
    return functional.conv2d(x, weight_IO.T[:, :, None, None])


def mask_of(one, x):
    hidden = norm(conv1(x, one.weight_0), one.gain_0, one.shift_0).clamp(min=0)
    return 1 / (1 + (-norm(conv1(hidden, one.weight_1), one.gain_1, one.shift_1)).exp())


def to_size(x, like):
    if x.shape[-1] > like.shape[-1]:
        return functional.adaptive_max_pool2d(x, like.shape[-2:])
    size = like.shape[-2:]
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def mtan(model, inputs, task):
    stages, given = model.encoder.stages(inputs), None
    for s, (u, p) in enumerate(stages):
        if s > 0:
            block = model.trunk.blocks[s - 1]
            layers = [getattr(block, n) for n in ("narrow", "around", "widen", "beside")]
            norms = [getattr(block, f"{n}_norm") for n in ("narrow", "around", "widen", "beside")]
            part = [
                lambda x, c=c, n=n: norm(c(x), n.weight, n.bias)
                for c, n in zip(layers, norms, strict=True)
            ]
            inner = part[1](part[0](given).clamp(min=0)).clamp(min=0)
            given = (part[2](inner) + part[3](given)).clamp(min=0)
            u = torch.cat([u, to_size(given, u)], 1)
        given = mask_of(model.trunk.masks[s].each[key(task)], u) * p
    return model.encoder.finish(given, inputs.shape[-2:])


LOOPS = {"mtan": mtan}


def unsettled(model):
    """Move every parameter: what starts at 0 or even must not hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(outputs, parameters):
    loss = sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values()))
    return torch.autograd.grad(loss, parameters, materialize_grads=True)


def test_every_architecture_has_its_loop():
    assert set(LOOPS) == {recipe.partition(":")[0] for recipe in RECIPES}


@pytest.mark.parametrize("asked", [("t0", "t1", "t2", "t3"), ("t2",), ("t3", "t1")])
@pytest.mark.parametrize("recipe", RECIPES)
def test_outputs_and_gradients_are_those_of_the_loop(recipe, asked):
    model, inputs = unsettled(make(recipe)), pictures()
    loop = LOOPS[recipe.partition(":")[0]]
    parameters = list(model.parameters())
    ours, plain = model(inputs, tasks=asked), {}
    for t in asked:
        features = loop(model, inputs, t)
        plain[t] = model.head(t)(features[model._reads[t]])
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-10, atol=1e-10)
    found = gradients(ours, parameters)
    for a, b in zip(found, gradients(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert any(g.any() for g in found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_in_single_precision_too(recipe):
    model, inputs = unsettled(make(recipe)).float(), pictures().float()
    loop = LOOPS[recipe.partition(":")[0]]
    for t, output in model(inputs).items():
        plain = model.head(t)(loop(model, inputs, t)[model._reads[t]])
        torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)
