"""Architectures for pictures against plain loops over tasks, stages and experts.

Forward and every gradient, in float64 to 1e-10. The loops take single weights out of the model
and use none of its functions.
"""

import math

import pytest
import torch
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share import M3ViT, Trace
from polytask.share.m3vit import cv_squared

from .pictures import RECIPES, Patches, make, pictures


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


def expert(experts, e, row):
    hidden = row @ experts.weight_0[e] + experts.bias_0[e]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ experts.weight_out[e] + experts.bias_out[e]


def chosen(trunk, level, task, rows):
    """Per row: expert -> weight, of the k largest."""
    logits = rows @ trunk.gating[level].linears[key(task)].weight.T
    found = []
    for powers in logits.exp():
        weights = powers / powers.sum()
        best = weights.detach().sort(descending=True).indices.tolist()
        found.append({e: weights[e] for e in best[: trunk.k]})
    return found


def m3vit_levels(model, inputs, task):
    """Yield the normed tokens that each odd block's experts read; return the features."""
    x = model.encoder.embed(inputs)
    for at, block in enumerate(model.encoder.blocks):
        x = block.attend(x)
        normed = block.norm(x)
        if at % 2 == 0:
            x = x + block.mlp(normed)
            continue
        level, given = at // 2, []
        rows = normed.reshape(-1, normed.shape[-1])
        yield level, rows
        for row, weights in zip(rows, chosen(model.trunk, level, task, rows), strict=True):
            parts = [w * expert(model.trunk.experts[level], e, row) for e, w in weights.items()]
            given.append(sum(parts))
        x = x + torch.stack(given).view(x.shape)
    yield None, model.encoder.end(x, inputs.shape[-2:])


def m3vit(model, inputs, task):
    *_, (_, features) = m3vit_levels(model, inputs, task)
    return features


def medusa(model, inputs, task):
    trunk, stages = model.trunk, model.encoder.stages(inputs)
    last, given, powers = stages[-1][1], [], []
    for s, at in enumerate(model.encoder.scales):
        features, own = stages[at][1], trunk.scales[s][key(task)]
        masked = mask_of(trunk.masks[s].each[key(task)], features) * features
        scale = to_size(conv1(masked, own.weight) + own.bias.view(1, -1, 1, 1), last)
        given.append(scale)
        powers.append((scale * own.score.view(1, -1, 1, 1)).sum(1, keepdim=True).exp())
    total = sum(powers)
    mixed = sum(power / total * scale for power, scale in zip(powers, given, strict=True))
    return model.encoder.finish(mixed, inputs.shape[-2:])


def task_expert(model, inputs, task):
    trunk, stages = model.trunk, model.encoder.stages(inputs)
    end, memory = trunk.ends[key(task)], None
    for level, at in enumerate(model.encoder.scales):
        features, own, experts = stages[at][1], trunk.layers[level][key(task)], trunk.experts[level]
        if memory is None:
            memory = end.first.view(1, -1, 1, 1).expand(len(inputs), -1, *features.shape[2:])
        else:
            memory = to_size(memory, features)
        every = [
            (conv1(features, w) + b.view(1, -1, 1, 1)).clamp(min=0)
            for w, b in zip(experts.weights[0], experts.biases[0], strict=True)
        ]
        powers = (conv1(features, own.gate) + conv1(memory, own.recall)).exp()
        parts = powers / powers.sum(1, keepdim=True)
        every.append(memory)
        given = sum(parts[:, e : e + 1] * every[e] for e in range(len(every)))
        memory = memory + conv1(given, own.write)
    given = conv1(memory, end.weight) + end.bias.view(1, -1, 1, 1)
    return model.encoder.finish(given, inputs.shape[-2:])


LOOPS = {"mtan": mtan, "m3vit": m3vit, "medusa": medusa, "task-expert": task_expert}


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


@pytest.mark.parametrize("recipe", ["m3vit", "m3vit:experts=5,k=2,balance=0.3"])
def test_the_penalty_of_m3vit_is_the_unevenness_of_its_gates_and_of_their_choices(recipe):
    model, inputs = unsettled(make(recipe)), pictures()
    trace = Trace()
    model(inputs, tasks=("t2", "t0"), trace=trace)
    assert list(trace.penalties) == ["t2", "t0"]
    assert [gate.level for gate in trace.gates] == [0, 1]
    for a, task in enumerate(("t2", "t0")):
        expected = 0.0
        for level, rows in list(m3vit_levels(model, inputs, task))[:-1]:
            number = model.trunk.experts[level].number
            importance, load = [0.0] * number, [0.0] * number
            for r, weights in enumerate(chosen(model.trunk, level, task, rows)):
                for e in range(number):
                    weight = weights.get(e, torch.zeros(()).double())
                    importance[e], load[e] = importance[e] + weight, load[e] + (e in weights)
                    assert torch.isclose(trace.gates[level].weights_RGE[r, a, e], weight)
            for of_experts in (importance, load):
                mean = sum(of_experts) / number
                variance = sum((x - mean) ** 2 for x in of_experts) / (number - 1)
                expected = expected + variance / mean**2
        torch.testing.assert_close(trace.penalties[task], model.trunk.balance * expected)
        assert expected > 0.01


def test_an_expert_that_was_not_chosen_gets_exactly_no_gradient():
    model, trace = make("m3vit"), Trace()
    outputs = model(pictures(1), tasks=["t1"], trace=trace)
    outputs["t1"].sum().backward()
    for gate, experts in zip(trace.gates, model.trunk.experts, strict=True):
        used_E = gate.weights_RGE[:, 0].detach().any(0)
        assert ((gate.weights_RGE[:, 0] > 0).sum(1) == 4).all()
        for parameter in experts.parameters():
            assert parameter.grad.flatten(1).any(1).tolist() == used_E.tolist()


def test_unevenness():
    assert cv_squared(torch.tensor([2.0, 2.0, 2.0])) == 0
    assert cv_squared(torch.tensor([5.0])) == 0
    assert float(cv_squared(torch.tensor([1.0, 3.0]))) == pytest.approx(2 / 4)


def test_blocks_before_the_first_experts_run_once_for_all_tasks():
    model, rows = make("m3vit"), []
    for block in model.encoder.blocks:
        block.attention_norm.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    model(pictures(3))
    assert rows == [3, 3, 12, 12, 12]


def test_m3vit_takes_the_encoder_over_and_refuses_what_does_not_fit():
    model = make("m3vit")
    assert [hasattr(b, "mlp") for b in model.encoder.blocks] == [True, False, True, False, True]
    assert make("m3vit:balance=0").penalises is False
    assert model.penalises
    with pytest.raises(UsageError, match="k is 5; give from 1 to the number of experts, 4"):
        make("m3vit:experts=4,k=5")
    with pytest.raises(UsageError, match="ratio is 0; give at least 1"):
        M3ViT(["a"], 4, 12, ratio=0)
    with pytest.raises(UsageError, match="two blocks or more, and a balance of at least 0"):
        M3ViT(["a"], 1, 8)
    with pytest.raises(UsageError, match=r"made for 4 blocks .* width 12, but Patches has 5 of"):
        M3ViT(["a"], 4, 12).fit_to(Patches())
