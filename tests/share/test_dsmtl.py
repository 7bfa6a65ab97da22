"""DSMTL: the mixture by hand, own models that train as if alone, and the choice of one of two."""

import copy

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, Equal
from polytask.errors import UsageError
from polytask.fit import Feed, train_step
from polytask.mix import Proportional, Schedule
from polytask.share import DSMTL, HardSharing, Trace, expert_use
from polytask.suites import About, Stream
from polytask.suites.check import make_suite
from polytask.tasks import Multiclass, Task

from .conftest import INPUTS, WIDTH, Encoder, binary, make, rows


def moved(scheme, tasks=3):
    model = make(f"dsmtl:scheme={scheme}", tasks)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(outputs, parameters):
    loss = sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values()))
    return torch.autograd.grad(loss, parameters, materialize_grads=True, retain_graph=True)


@pytest.mark.parametrize("scheme", ["joint", "individual"])
@pytest.mark.parametrize("asked", [("t0", "t1", "t2"), ("t2",), ("t2", "t0")])
def test_outputs_and_gradients_are_those_of_the_loop(scheme, asked):
    model, x, trace = moved(scheme), rows(), Trace()
    ours, plain = model(x, tasks=asked, trace=trace), {}
    for t in asked:
        a = 1 / (1 + (-model.gating[f"task_{t}"]).exp())
        own = model.private[f"task_{t}"]
        of_own = own.head(t)((x @ own.encoder.layer.weight.T + own.encoder.layer.bias).tanh())
        layer = model.public.encoder.layer
        of_shared = model.public.head(t)((x @ layer.weight.T + layer.bias).tanh())
        mine = of_own.detach() if scheme == "individual" else of_own
        plain[t] = a * of_shared + (1 - a) * mine
        if scheme == "individual":
            torch.testing.assert_close(trace.further[0][t], of_own, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    for t in asked:
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(ours, parameters), gradients(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert model.penalises == (scheme == "individual") == bool(trace.further)


def suite():
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(INPUTS, 2, generator=draw, dtype=torch.float64)

    def stream(number):
        inputs = torch.randn(number, INPUTS, generator=draw, dtype=torch.float64)
        target = (inputs @ truth > 0).double()
        target[torch.rand(number, 2, generator=draw) < 0.3] = torch.nan
        return Stream("s", inputs, {"t0": target[:, 0], "t1": target[:, 1]})

    return make_suite(
        name="two",
        tasks=binary(2),
        train=[stream(64)],
        val=[stream(16)],
        test=[stream(16)],
        encoder=Encoder,
        width=WIDTH,
        about=About("", "", "", "", ""),
    )


def train(model, accumulate=1):
    """Three updates; of a model of fewer tasks, on the same rows."""
    made = suite()
    balancer = Balancer(Equal(), model.shared_parameters(), model.tasks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    schedule = Schedule(Proportional(), [64], 20, 0)
    feed, cursors = (
        Feed(made.train, made.tasks.only(model.tasks), schedule, accumulate),
        schedule.start(),
    )
    for step in range(3):
        fed, cursors = feed.step(step, cursors)
        train_step(model, balancer, optimiser, fed)
    return model


@pytest.mark.parametrize("accumulate", [1, 3])
def test_individual_own_models_train_as_if_alone_and_joint_ones_do_not(accumulate):
    for scheme in ("individual", "joint"):
        model = moved(scheme, 2)
        alone = {t: copy.deepcopy(model.private[f"task_{t}"]) for t in model.tasks}
        train(model, accumulate)
        for t, single in alone.items():
            train(single)
            far = max(
                (a - b).abs().max().item()
                for a, b in zip(
                    single.parameters(), model.private[f"task_{t}"].parameters(), strict=True
                )
            )
            assert far < 1e-10 if scheme == "individual" else far > 1e-4


def test_the_light_scheme_draws_in_training_and_runs_the_likelier_model_afterwards():
    model, x = moved("light"), rows()
    with torch.no_grad():
        for t, logit in {"t0": 2.0, "t1": -1.0, "t2": 0.5}.items():
            model.gating[f"task_{t}"].fill_(logit)
    with pytest.raises(UsageError, match=r"DSMTL draws its choices .* call model.at"):
        model(x)
    model.at(1.0)
    shared = {t: model.public(x, tasks=[t])[t] for t in model.tasks}
    own = {t: model.private[f"task_{t}"](x)[t] for t in model.tasks}
    torch.manual_seed(0)
    took = []
    for _ in range(400):
        output = model(x, tasks=["t2"])["t2"]
        took.append(torch.equal(output, shared["t2"]))
        assert took[-1] or torch.equal(output, own["t2"])
    assert sum(took) / 400 == pytest.approx(torch.tensor(0.5).sigmoid().item(), abs=0.08)
    assert all(g.any() for g in gradients({"t2": output}, [model.gating["task_t2"]]))
    model.eval()
    calls = []
    for name, part in (("shared", model.public), *((t, model.private[f"task_{t}"]) for t in own)):
        part.encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    outputs = model(x)
    assert sorted(calls) == ["shared", "t1"]
    assert torch.equal(outputs["t1"], own["t1"])
    torch.testing.assert_close(outputs["t0"], shared["t0"])
    assert torch.equal(model.extract("t1")(x), outputs["t1"])
    assert sum(p.numel() for p in model.extract("t0").parameters()) == 5 * 6 + 6 + 7


@pytest.mark.parametrize("scheme", ["joint", "individual"])
def test_parameters_are_shared_or_one_tasks_own(scheme):
    model = moved(scheme)
    names = {id(p): n for n, p in model.named_parameters()}
    shared = [names[id(p)] for p in model.shared_parameters()]
    own = {t: [names[id(p)] for p in model.task_parameters(t)] for t in model.tasks}
    assert sorted([*shared, *(n for t in own for n in own[t])]) == sorted(names.values())
    for t in model.tasks:
        trace = Trace()
        output = model(rows(), trace=trace)[t]
        total = output.sum() + sum(f[t].sum() for f in trace.further)
        model.zero_grad(set_to_none=True)
        total.backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {*shared, *own[t]}


@pytest.mark.parametrize("scheme", ["joint", "individual"])
def test_a_task_added_leaves_the_others_and_what_is_extracted_is_the_task(scheme):
    model, x = moved(scheme), rows()
    before = model(x)
    model.add_task(Task("new", Multiclass(4)))
    assert all(torch.equal(before[t], o) for t, o in model(x, tasks=tuple(before)).items())
    assert model(x, tasks=["new"])["new"].shape == (9, 4)
    alone = model.extract("t1")
    assert torch.equal(alone(x), model(x, tasks=["t1"])["t1"])
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(alone.eval(), (rows(4),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(rows(17)), alone(rows(17)), rtol=1e-12, atol=1e-12)
    gate = next(g for g in expert_use(model, [x]).gates if g.reader == "t1")
    a = model.gating["task_t1"].sigmoid().item()
    assert gate.mean == pytest.approx((a, 1 - a))
    assert gate.own == pytest.approx(1 - a)


def test_what_does_not_fit_is_answered():
    public = HardSharing(nn.Linear(5, 6), {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
    private = HardSharing(nn.Linear(5, 6), {"a": nn.Linear(6, 1)})
    with pytest.raises(UsageError, match="tasks are a, b, but own models came for a; give each"):
        DSMTL(public, {"a": private})
    with pytest.raises(UsageError, match=r"DSMTL: temperature is -1\.0; give a number > 0"):
        make("dsmtl:temperature=-1")
    with pytest.raises(UsageError, match="Unknown task 'x'"):
        make("dsmtl")(rows(), tasks=["x"])
    assert make("dsmtl")(rows(), tasks=()) == {}
