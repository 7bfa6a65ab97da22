"""Families: what is shared and what is each task's own, on plain and shared models; bad input."""

import copy

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.batches import Draw, some
from polytask.merge.coefficients import Coefficients, pull
from polytask.merge.family import Family, Merged
from polytask.share import HardSharing
from polytask.tasks import Multiclass, Task, TaskSet

from .families import CNN, FAMILIES, OUTPUTS, TASKS, cnn, inputs, moved, vit


@pytest.mark.parametrize("kind", FAMILIES)
def test_heads_stay_own_and_the_rest_is_shared(kind):
    family = FAMILIES[kind]()
    assert family.names
    assert not any("head" in name for name in family.names)
    for task in TASKS.names:
        assert all("head" in name for name in family.own(task))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_built_from_a_tasks_own_tensors_answers_as_it_was_tuned(kind):
    family, data = FAMILIES[kind](), inputs(kind)
    for task in TASKS.names:
        merged = Merged(family.shared(task))
        expected = family.output(task, merged.shared, data[task])
        assert expected.shape == (len(data[task]), OUTPUTS[task])
        if kind != "cnn":  # there the averaged running statistics differ
            assert torch.equal(expected, family.tuned_output(task, data[task]))
        net = family.build(task, merged)
        built = net(data[task])
        built = built[task] if isinstance(built, dict) else built
        torch.testing.assert_close(built, expected, rtol=1e-12, atol=1e-12)
        assert all(p.requires_grad for p in net.parameters())


def test_running_statistics_are_averaged_and_counts_are_the_bases():
    family = cnn()
    stats = [dict(family.hooked(t).named_buffers()) for t in TASKS.names]
    for name in ("body.1.running_mean", "body.1.running_var"):
        mean = sum(s[name] for s in stats) / 3
        torch.testing.assert_close(family.buffers[name], mean)
    assert family.buffers["body.1.num_batches_tracked"].dtype == torch.int64


def test_nothing_is_copied_and_nothing_of_the_users_is_changed():
    base = CNN(2)
    tuned = {task: moved(base, i).train() for i, task in enumerate(TASKS.names)}
    before = {t: copy.deepcopy(m.state_dict()) for t, m in tuned.items()}
    family = Family(base, tuned, TASKS, own=["head"])
    for task in TASKS.names:
        shared = family.shared(task)["body.0.weight"]
        assert shared.data_ptr() == tuned[task].body[0].weight.data_ptr()
        family.output(task, family.base, torch.rand(2, 3, 8, 8))
        assert tuned[task].training
        assert all(p.requires_grad for p in tuned[task].parameters())
        for name, tensor in tuned[task].state_dict().items():
            assert torch.equal(tensor, before[task][name])


def test_own_names_what_would_else_be_merged():
    base = CNN(2)
    tuned = {task: moved(base, i) for i, task in enumerate(TASKS.names)}
    assert "head.weight" in Family(base, tuned, TASKS).names
    assert "head.weight" not in Family(base, tuned, TASKS, own=["head"]).names


def test_one_shared_model_with_all_heads_can_be_the_model_of_every_task():
    tasks = TaskSet([Task("x", Multiclass(2)), Task("y", Multiclass(2))])
    base = HardSharing.build(nn.Linear(3, 4), 4, tasks)
    family = Family(base, {t: moved(base, i) for i, t in enumerate(tasks.names)}, tasks)
    assert family.names == ("encoder.weight", "encoder.bias")
    assert family.output("y", family.base, torch.rand(5, 3)).shape == (5, 2)


def test_tied_weights_are_merged_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    base = Tied()
    tasks = TaskSet([Task("x", Multiclass(3)), Task("y", Multiclass(3))])
    family = Family(base, {"x": moved(base, 0), "y": moved(base, 1)}, tasks)
    assert family.names == ("first.weight",)
    x, mean = torch.rand(2, 3), family.mean()
    weight = mean["first.weight"]
    torch.testing.assert_close(family.output("x", mean, x), x @ weight.T @ weight.T)
    built = family.build("x", Merged(mean))
    assert built.first.weight is built.second.weight


def test_pull_gives_the_gradient_of_the_whole_graph():
    """Against one graph over all tasks, differentiated at once."""
    family, data = vit(), inputs("vit")
    coefficients = Coefficients(family.base, family.deltas, 0.3, "layer", parts=3)
    lam = coefficients.values.double().requires_grad_()

    def losses(shared):
        for task in TASKS.names:
            yield family.output(task, shared, data[task]).square().sum()

    total = pull(coefficients.merge(lam), losses)
    again = coefficients.values.double().requires_grad_()
    whole = sum(losses(coefficients.merge(again)))
    (expected,) = torch.autograd.grad(whole, again)
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(lam.grad, expected)


def test_coefficients_of_parts_that_are_equal_are_one_coefficient():
    family = cnn()
    whole = Coefficients(family.base, family.deltas, 0.2, "layer")
    parts = Coefficients(family.base, family.deltas, 0.2, "layer", parts=4, seed=5)
    one, split = whole.merge(whole.values), parts.merge(parts.values)
    for name in family.names:
        torch.testing.assert_close(one[name], split[name])
    values = parts.values.double()
    values[0, :, 1] = 0.9
    changed = parts.merge(values)
    first, *others = family.names
    kept = changed[first] == parts.merge(parts.values.double())[first]
    assert 0 < int(kept.sum()) < kept.numel()  # some entries of the tensor, not all
    for name in others:
        torch.testing.assert_close(changed[name], split[name], rtol=1e-6, atol=1e-7)


def test_rows_of_a_round_are_a_shuffle_that_depends_on_the_round_alone():
    draw = Draw(4, seed=7)
    rounds = [draw.rows(r, 1, 10) for r in range(5)]
    assert sorted(torch.cat(rounds).tolist()) == sorted(list(range(10)) * 2)
    assert torch.equal(draw.rows(3, 1, 10), rounds[3])
    assert not torch.equal(draw.rows(0, 2, 10), rounds[0])
    assert sorted(draw.rows(0, 0, 3).tolist()) == [0, 1, 2]
    assert len(some(torch.arange(9), 4, 0, 0).unique()) == 4


def test_families_that_cannot_be_are_refused():
    base = CNN(2)
    tuned = {task: moved(base, 0) for task in TASKS.names}
    with pytest.raises(UsageError, match=r"without a model: \['c'\]"):
        Family(base, {t: m for t, m in tuned.items() if t != "c"}, TASKS)
    with pytest.raises(UsageError, match=r"of no task: \['d'\]"):
        Family(base, tuned | {"d": base}, TASKS)
    with pytest.raises(UsageError, match="share no parameter"):
        Family(nn.Linear(2, 2), tuned, TASKS)
    with pytest.raises(UsageError, match="share no parameter"):
        Family(base, tuned, TASKS, own=["body", "head"])


def test_a_model_that_does_not_answer_its_task_is_named():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

        def forward(self, x):
            return {"other": self.body(x)}

    tasks = TaskSet([Task("x", Multiclass(2))])
    family = Family(Wrong(), {"x": Wrong()}, tasks)
    with pytest.raises(UsageError, match=r"'x' answers with \['other'\]"):
        family.output("x", family.base, torch.rand(1, 2))
    with pytest.raises(UsageError, match="no module 'neck'"):
        family.seen("x", "neck", None, torch.rand(1, 2))
