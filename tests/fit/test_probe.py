"""A probe reports the cosines autograd gives, and leaves no trace."""

from types import ModuleType

import pytest
import torch

from polytask.fit import Feed, Step, probe, task_losses
from polytask.mix import Proportional, Schedule


def first_step(suite: object, tiny: ModuleType) -> Step:
    schedule = Schedule(Proportional(), [len(suite.train[0])], 20, 0)
    return Feed(suite.train, suite.tasks, schedule).step(0, schedule.start())[0]


def test_cosines_and_norms_are_those_of_autograd(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite, dropout=0.5)
    fed = first_step(suite, tiny)
    found = probe(model, fed, 17)
    model.eval()
    names, losses_K = task_losses(model, fed.micros[0], fed.counts, "float32")
    losses = dict(zip(names, losses_K, strict=True))
    shared = model.shared_parameters()
    rows_TP = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(losses[t], shared, retain_graph=True)]
            )
            for t in model.tasks
        ]
    ).double()
    norms_T = rows_TP.norm(dim=1)
    cosines_TT = rows_TP @ rows_TP.T / norms_T.outer(norms_T)
    assert found.step == 17
    assert list(found.norms) == pytest.approx(norms_T.tolist(), rel=1e-5)
    for mine, theirs in zip(found.cosines, cosines_TT.tolist(), strict=True):
        assert list(mine) == pytest.approx(theirs, abs=1e-5)
    assert min(min(row) for row in cosines_TT.tolist()) < 0.9


def test_an_absent_task_and_a_gradient_of_zero_have_no_cosine(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite)
    fed = first_step(suite, tiny)
    with torch.no_grad():
        model.head("d").weight.zero_()
    counts = {task: n for task, n in fed.counts.items() if task != "b"}
    found = probe(model, Step(fed.micros, counts), 0)
    b, d = model.tasks.index("b"), model.tasks.index("d")
    assert found.norms[b] is None
    assert found.norms[d] == 0
    for other in range(4):
        for gone in (b, d):
            assert found.cosines[gone][other] is None
            assert found.cosines[other][gone] is None
    assert found.cosines[0][0] == pytest.approx(1)


def test_a_probe_leaves_gradients_random_numbers_and_modes_alone(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite, dropout=0.5).train()
    model.encoder[0].eval()
    grads = []
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = None if i % 3 == 0 else torch.full_like(parameter, float(i))
        grads.append((parameter, parameter.grad))
    copies = [None if grad is None else grad.clone() for _, grad in grads]
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    probe(model, first_step(suite, tiny), 0)
    for (parameter, grad), copy in zip(grads, copies, strict=True):
        assert parameter.grad is grad
        assert grad is None or grad.equal(copy)
    assert torch.get_rng_state().equal(state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_a_run_with_probes_is_the_run_without(tiny: ModuleType) -> None:
    (one, with_probes), (two, without) = (
        tiny.run(tiny.shared(), "pcgrad", dropout=0.3, probes=n) for n in (5, 0)
    )
    assert len(one.probes) == 3
    assert two.probes == ()
    for key, value in with_probes.last.items():
        assert value.equal(without.last[key])
