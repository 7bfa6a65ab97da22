"""Methods on bottlenecks of source tasks: ScaLearn, AdapterFusion, ALTER."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

from polytask.adapt import (
    ALTER,
    AdapterFusion,
    Bottleneck,
    LoRA,
    Rows,
    ScaLearn,
    Trace,
    adapt,
    load_adapted,
    save_adapted,
)
from polytask.errors import UsageError
from polytask.testing import check_adapter
from polytask.testing.adapters import models

from .rowwise import INDEX_B, TASKS, check_rowwise, model, moved


def trained(base=None, where=None, form="gelu", many=4):
    base = model() if base is None else base
    names = [f"source {e}" for e in range(many)]
    adapted = moved(adapt(base, Bottleneck(3, form, scale=0.7), names, where), seed=8)
    adapted.detach()
    return adapted


def changes(sources, y_NO):
    """Return what every bottleneck adds to a row, one after another: E of (N, O)."""
    made = []
    for e in range(len(sources.up_ERO)):
        small = functional.gelu(y_NO @ sources.down_ERO[e].T + sources.down_bias_ER[e])
        made.append(small @ sources.up_ERO[e] + sources.up_bias_EO[e])
    return made


def scalearn(adapter, x, y, task):
    w_GE = adapter.selection.scores.scores_TGE[task]
    return y + sum(w_GE[:, e] * z for e, z in enumerate(changes(adapter.sources, y)))


def fusion(adapter, x, y, task):
    z = changes(adapter.sources, y)
    query = y @ adapter.query_TCO[task] + adapter.query_bias_TO[task]
    scores = [(query * (one @ adapter.key_TOC[task].T)).sum(-1) for one in z]
    weights = torch.softmax(torch.stack(scores), 0)
    values = [one @ adapter.value_TCO[task] for one in z]
    return y + sum(w[:, None] * v for w, v in zip(weights, values, strict=True))


def alter(adapter, x, y, task):
    weights = torch.softmax(y @ adapter.gate_TOE[task] + adapter.gate_bias_TE[task], -1)
    return y + sum(weights[:, e, None] * z for e, z in enumerate(changes(adapter.sources, y)))


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_scalearn_is_its_loop(uniform, shared):
    check_rowwise(ScaLearn(trained(), uniform=uniform, shared=shared, dropout=0.0), scalearn)


def test_fusion_is_its_loop():
    check_rowwise(AdapterFusion(trained()), fusion)


@pytest.mark.parametrize("trains", [False, True])
def test_alter_is_its_loop(trains):
    check_rowwise(ALTER(trained(), trains_adapters=trains), alter)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: ScaLearn(t, dropout=0.0),
        lambda t: ScaLearn(t, uniform=True, shared=True, dropout=0.0),
        lambda t: ScaLearn(t, shared=True, dropout=0.0),
        AdapterFusion,
        ALTER,
    ],
)
def test_they_keep_the_contract(make):
    _, text, _ = models()[0]
    where = ("mlp.2", "attention.out_proj")
    check_adapter(make(trained(copy.deepcopy(text), where)))


def test_a_source_taken_whole_is_the_source_itself():
    sources = trained()
    target = adapt(model(), ScaLearn(sources, dropout=0.0), TASKS)
    for adapter in target.parts[0].adapters.values():
        scores = adapter.selection.scores.scores_TGE
        scores.data = (
            functional.one_hot(torch.tensor([2, 0, 3]), 4)
            .double()[:, None, :]
            .repeat(1, scores.shape[1], 1)
        )
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    with torch.no_grad(), target.tasks(torch.arange(3)):
        ours = target(x)
    again = adapt(model(), Bottleneck(3, "gelu", scale=0.7), sources.names)
    again.parts.load_state_dict(sources.parts.state_dict())
    with torch.no_grad(), again.tasks(torch.tensor([2, 0, 3])):
        torch.testing.assert_close(ours, again(x), rtol=1e-12, atol=1e-12)


def test_the_sources_are_frozen_and_travel_in_the_file(tmp_path):
    for method in (ScaLearn(trained()), AdapterFusion(trained()), ALTER(trained())):
        target = moved(adapt(model(), method, TASKS)).eval()
        assert not any("sources" in name for name, _ in target.parts.named_parameters())
        path = tmp_path / f"{type(method).__name__}.safetensors"
        save_adapted(path, target)
        loaded = load_adapted(path, model()).eval()
        x = torch.randn(5, 4, 6, dtype=torch.float64)
        with torch.no_grad(), target.tasks(INDEX_B), loaded.tasks(INDEX_B):
            assert torch.equal(target(x), loaded(x))


def test_the_start_of_scalearn_is_that_of_the_source():
    target = adapt(model(), ScaLearn(trained()), TASKS)
    for adapter in target.parts[0].adapters.values():
        scores = adapter.selection.scores.scores_TGE.detach()
        assert scores.shape == (3, 8, 4)
        assert abs(float(scores.mean()) - 0.5) < 1e-3
        assert 5e-4 < float(scores.std()) < 2e-3
    shared = adapt(model(), ScaLearn(trained(), shared=True, uniform=True), TASKS)
    assert sum(p.numel() for p in shared.parts.parameters()) == 3 * 4


def test_dropout_of_w_acts_in_training_alone():
    target = adapt(model(), ScaLearn(trained(), dropout=0.5), TASKS)
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    with torch.no_grad(), target.tasks(INDEX_B):
        assert not torch.equal(target(x), target(x))
        target.eval()
        assert torch.equal(target(x), target(x))


def test_the_penalty_of_fusion_is_that_of_the_tasks_in_the_batch():
    target = moved(adapt(model(), AdapterFusion(trained(), penalty=0.05), TASKS))
    assert target.penalises
    assert not adapt(model(), AdapterFusion(trained(), penalty=0.0), TASKS).penalises
    trace = Trace()
    index_B = torch.tensor([0, 2, -1, 0, 2])
    with target.tasks(index_B, trace=trace):
        target(torch.randn(5, 4, 6, dtype=torch.float64))
    assert set(trace.penalties) == set(trace.weights) == {"blocks.0", "blocks.1"}
    for path, penalty in trace.penalties.items():
        values = target.parts[0].at(path).value_TCO
        wanted = sum(0.05 * (values[t] - torch.eye(8)).square().sum() for t in (0, 2))
        torch.testing.assert_close(penalty, wanted)
        torch.autograd.backward(penalty, retain_graph=True)
        assert not values.grad[1].any()


def test_fusion_starts_at_about_the_mean_of_its_sources():
    target = adapt(model(), AdapterFusion(trained(), std=0.0), TASKS, "blocks.1")
    adapter = target.parts[0].at("blocks.1")
    y = torch.randn(1, 4, 8, dtype=torch.float64)
    came = adapter(y, y, Rows(torch.tensor([1])))
    mean = sum(changes(adapter.sources, y[0])) / 4
    torch.testing.assert_close(came[0], y[0] + mean, rtol=1e-4, atol=1e-4)


def test_what_is_no_source_is_refused():
    with pytest.raises(UsageError, match=r"give a model with trained bottlenecks, ScaLearn\(trai"):
        ScaLearn()
    with pytest.raises(UsageError, match="0 widths or forms"):
        AdapterFusion(adapt(model(), LoRA(), TASKS))
    with pytest.raises(UsageError, match="is parallel"):
        ALTER(adapt(model(), Bottleneck(3, source="parallel"), TASKS))
    with pytest.raises(UsageError, match="leave sources, width"):
        ALTER(trained(), sources=3)
    with pytest.raises(UsageError, match="the source tasks have no bottleneck there"):
        adapt(model(), ALTER(trained(where="blocks.0")), TASKS, "blocks.1")
    with pytest.raises(UsageError, match="give the model they were trained on"):
        adapt(model(wide=10), ALTER(trained()), TASKS)
    settings = ALTER(trained())
    kept = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    empty = adapt(model(), ALTER(**kept), TASKS)
    with pytest.raises(UsageError, match="has no source bottlenecks"), empty.task("a"):
        empty(torch.randn(2, 4, 6, dtype=torch.float64))
    layers = [la for wide in (8, 5) for la in adapt(model(wide=wide), LoRA(), TASKS).layers()]
    with pytest.raises(UsageError, match="cannot share a number per channel"):
        ScaLearn(trained(), shared=True).common(layers, 1, torch.Generator())
