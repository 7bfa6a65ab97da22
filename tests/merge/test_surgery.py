"""Surgery and Model Tinting: what they start as, what they leave alone, what they reach."""

import copy

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.coefficients import named
from polytask.merge.family import Family, Merged
from polytask.merge.surgery import Operation, Surgery
from polytask.merge.tinting import Tinting
from polytask.tasks import Multiclass, Task, TaskSet

from .families import CNN, FAMILIES, TASKS, cnn, inputs, mlp, moved, vit


def test_the_module_is_the_identity_at_the_start():
    x = torch.randn(4, 3, 7)
    assert torch.equal(Operation(7, 3)(x), x)


@pytest.mark.parametrize("kind", FAMILIES)
def test_before_the_first_step_the_model_is_the_merged_one(kind):
    family, data = FAMILIES[kind](), inputs(kind)
    merged = Merged(family.mean())
    still = Surgery(rounds=1, learning_rate=1e-30)(family, data, merged)
    for task in TASKS.names:
        plain, operated = (family.build(task, m)(data[task]) for m in (merged, still))
        if isinstance(plain, dict):
            plain, operated = plain[task], operated[task]
        torch.testing.assert_close(operated, plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_come_nearer_to_the_tuned_ones_and_outputs_with_them(kind):
    family, data = FAMILIES[kind](), inputs(kind)
    on = Merged(family.mean())
    done = Surgery(rank=4, rounds=300, learning_rate=1e-2)(family, data, on)
    assert done.losses[-1] < 0.8 * done.losses[0]
    assert all(torch.equal(done.shared[n], on.shared[n]) for n in on.shared)
    for task in TASKS.names:
        place, operation = done.before[task]
        z = family.seen(task, place, on.shared, data[task])
        tuned = family.seen(task, place, None, data[task])
        with torch.no_grad():
            before, after = (z - tuned).abs().mean(), (operation(z) - tuned).abs().mean()
        assert float(after) < float(before)


def test_its_first_gradient_is_that_of_the_stated_loss():
    family, data = mlp(), inputs("mlp")
    on = Merged(family.mean())
    rate = 1e-3
    done = Surgery(rank=2, rounds=1, learning_rate=rate, batch_size=100)(family, data, on)
    for task in TASKS.names:
        z = family.seen(task, "head", on.shared, data[task])
        tuned = family.seen(task, "head", None, data[task])
        operation = Operation(5, 2).double()
        drawn = torch.rand(2, 5, generator=named(0, task)).double()
        operation.down.weight.data = (2 * drawn - 1) / 5**0.5
        (operation(z) - tuned).abs().mean().backward()
        # Adam's first step is the rate against the sign of the gradient.
        expected = -rate * operation.up.weight.grad.sign()
        torch.testing.assert_close(done.learned[f"up/{task}"], expected, rtol=1e-3, atol=1e-9)


def test_where_a_head_is_not_known_it_is_asked_for():
    class Unnamed(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.body, self.last = nn.Linear(4, 5), nn.Linear(5, outputs)

        def forward(self, x):
            return self.last(torch.tanh(self.body(x)))

    base = Unnamed(9)
    tasks = TaskSet([Task("x", Multiclass(2)), Task("y", Multiclass(3))])
    tuned = {"x": Unnamed(2), "y": Unnamed(3)}
    family = Family(base, tuned, tasks)
    data = {t: torch.rand(6, 4) for t in tasks.names}
    with pytest.raises(UsageError, match=r"which module is the head of task 'x'; name it in at="):
        Surgery()(family, data, Merged(family.mean()))
    done = Surgery(rounds=3)(family, data, Merged(family.mean()), at={"x": "last", "y": "last"})
    assert isinstance(family.build("y", done).last, nn.Sequential)
    with pytest.raises(UsageError, match="no module 'neck'"):
        Surgery()(family, data, Merged(family.mean()), at={"x": "neck", "y": "last"})


def test_tinting_moves_heads_and_coefficients_towards_the_tuned_models_answers():
    family, data = vit(), inputs("vit")
    merged = Tinting(rounds=150)(family, data)
    assert merged.losses[-1] < 0.7 * merged.losses[0]
    plain = Merged(family.mean())
    for task in ("a",):
        teacher = family.tuned_output(task, data[task]).argmax(1)
        tinted = family.build(task, merged)(data[task], tasks=(task,))[task].argmax(1)
        before = family.build(task, plain)(data[task], tasks=(task,))[task].argmax(1)
        assert int((tinted == teacher).sum()) >= int((before == teacher).sum())
    assert set(merged.own["a"]) == set(family.own("a"))
    assert merged.learned["coefficients"].shape == (len(family.names), 3)


def test_tinting_on_another_merge_leaves_its_tensors_and_its_corrections():
    family, data = cnn(), inputs("cnn")
    on = Surgery(rounds=3)(family, data, Merged(family.mean()))
    tinted = Tinting(rounds=5)(family, data, on)
    assert all(torch.equal(tinted.shared[n], on.shared[n]) for n in on.shared)
    assert tinted.before == on.before
    changed = tinted.own["b"]["head.weight"]
    assert not torch.equal(changed, family.own("b")["head.weight"])
    torch.testing.assert_close(family.build("b", tinted).head[1].weight.data, changed)


def test_tinting_needs_something_of_the_tasks_own():
    base = CNN(2)
    tasks = TaskSet([Task("x", Multiclass(2))])
    family = Family(base, {"x": moved(copy.deepcopy(base), 0)}, tasks)
    with pytest.raises(UsageError, match="task 'x' shares all of its model"):
        Tinting()(family, {"x": torch.rand(2, 3, 8, 8)})
