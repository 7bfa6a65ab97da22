"""ESMM: products of probabilities, by the plain formula and on a funnel whose truth is known."""

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.share import ESMM
from polytask.tasks import Binary, Multiclass, Task, TaskSet, losses

from .conftest import Encoder, binary, count, rows


def model(steps: int = 3, towers=(8,)) -> ESMM:
    torch.manual_seed(0)
    return ESMM.build(Encoder(), 6, binary(steps), towers=towers).double()


def test_outputs_are_logits_of_products_of_the_steps_probabilities():
    made, inputs = model(), rows()
    outputs, product = made(inputs), 1.0
    for task in made.tasks:
        product = product * made.conditional(inputs, task).sigmoid()
        torch.testing.assert_close(outputs[task].sigmoid(), product, rtol=1e-12, atol=1e-12)
    assert list(made(inputs, tasks=("t2", "t0"))) == ["t2", "t0"]
    assert torch.equal(made(inputs, tasks=("t1",))["t1"], outputs["t1"])


def test_gradients_are_those_of_the_plain_formula():
    made, inputs = model(), rows()
    parameters = list(made.parameters())
    row = made.encoder(inputs)
    p = torch.cat([made.heads[f"task_t{t}"](row).sigmoid() for t in range(3)], 1).cumprod(1)
    y = (inputs[:, :3] > 0).double()
    plain = -(y * p.log() + (1 - y) * (1 - p).log()).sum()
    ours = nn.functional.binary_cross_entropy_with_logits(
        torch.cat(list(made(inputs).values()), 1), y, reduction="sum"
    )
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [-200.0, -30.0, 0.0, 12.0, 200.0])
def test_certain_and_impossible_steps_stay_finite(size):
    made = model(2).float()
    with torch.no_grad():
        for task in made.tasks:
            made.heads[f"task_{task}"][-1].bias.fill_(size)
    outputs = made(rows().float())
    loss = sum(nn.functional.softplus(o).sum() for o in outputs.values())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
    if size < 50:
        logits = made.conditional(rows().float(), "t0")
        torch.testing.assert_close(outputs["t0"], logits, rtol=1e-4, atol=1e-4)


def test_which_parameters_are_shared():
    made, inputs = model(), rows()
    names = {id(p): n for n, p in made.named_parameters()}
    shared = {names[id(p)] for p in made.shared_parameters()}
    own = {t: {names[id(p)] for p in made.task_parameters(t)} for t in made.tasks}
    assert own["t0"] == own["t1"] == set()
    assert own["t2"] == {n for n in names.values() if n.startswith("heads.task_t2")}
    assert shared | own["t2"] == set(names.values())
    mine = made.task_parameters("t2")
    grads = torch.autograd.grad(made(inputs)["t1"].sum(), mine, materialize_grads=True)
    assert not any(g.any() for g in grads)


def test_a_step_added_at_the_end_changes_no_other_bit_and_one_step_is_extracted():
    made, inputs = model(), rows()
    before = made(inputs)
    alone = made.extract("t1")
    assert torch.equal(alone(inputs), made(inputs, tasks=["t1"])["t1"])
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in made.parameters())
    made.add_task(Task("paid", Binary()))
    asked = made(inputs, tasks=("t0", "t1", "t2"))
    assert all(torch.equal(asked[t], before[t]) for t in before)
    assert made(inputs)["paid"].shape == (9, 1)
    assert not torch.equal(made.heads["task_paid"][0].weight, made.heads["task_t2"][0].weight)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(alone.eval(), (inputs,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(rows(17)), alone(rows(17)))


def test_operators_do_not_grow_with_the_steps():
    few, many = model(2), model(40)
    with torch.no_grad():
        assert count(lambda: few(rows())) == count(lambda: many(rows()))


def test_it_is_unbiased_over_all_rows_where_a_head_trained_on_clicks_is_not():
    """Clicks depend on what conversions depend on; the truth over all rows is known."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=generator)
    p_click, p_conversion = (2 * x[:, 0] - 1).sigmoid(), (1.5 * x[:, 0] + x[:, 1] - 1).sigmoid()
    click = torch.rand(4000, generator=generator) < p_click
    bought = click & (torch.rand(4000, generator=generator) < p_conversion)
    torch.manual_seed(0)
    tasks = binary(2)
    made = ESMM.build(nn.Identity(), 5, tasks, towers=())
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        sum(losses(tasks, made(x), {"t0": click.float(), "t1": bought.float()}).values()).backward()
        optimiser.step()
    with torch.no_grad():
        outputs = made(x)
        conditional = made.conditional(x, "t1").sigmoid()[:, 0]
    assert float(outputs["t1"].sigmoid().mean()) == pytest.approx(
        float((p_click * p_conversion).mean()), rel=0.05
    )
    assert float((conditional - p_conversion).abs().mean()) < 0.06


def test_wrong_use_says_what_to_do():
    tasks = TaskSet([Task("a", Binary()), Task("b", Multiclass(3))])
    with pytest.raises(UsageError, match=r"ESMM: its tasks are yes or no.* 'b' is multiclass"):
        ESMM.build(Encoder(), 6, tasks)
    with pytest.raises(UsageError, match="at least one task"):
        ESMM(Encoder(), {})
    with pytest.raises(UsageError, match="has a task 't0' already"):
        model().add_task(Task("t0", Binary()))
    with pytest.raises(UsageError, match="Unknown task 't7'"):
        model()(rows(), tasks=["t7"])
