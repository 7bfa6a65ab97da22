"""An adapted model with heads of several kinds, trained by `fit`, a balancer and streams apart."""

import pytest
import torch
from torch import nn

from polytask.adapt import SSF, At, LoRA, Where, adapt, load_adapted, save_adapted
from polytask.balance import Balancer, Equal, PCGrad
from polytask.errors import UsageError
from polytask.fit import FitConfig, fit
from polytask.mix import Proportional
from polytask.recipes.adapted import AdaptedModel, with_tasks
from polytask.share import SharedModel, Trace
from polytask.suites import Stream
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP
from polytask.tasks import Binary, Multiclass, Regression, Task, TaskSet

TASKS = TaskSet([Task("a", Binary()), Task("b", Multiclass(3)), Task("c", Regression())])


def stream(task: str, rows: int, seed: int) -> Stream:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=draw)
    sign = {"a": 1.0, "b": -1.0, "c": 2.0}[task]
    targets = {
        "a": (sign * x[:, 0] > 0).float(), "b": (sign * x[:, :3]).argmax(1), "c": sign * x[:, 1],
    }  # fmt: skip
    return Stream(task, x, {task: targets[task]})


def model(tasks: TaskSet = TASKS, extra: tuple[str, ...] = ()) -> AdaptedModel:
    torch.manual_seed(0)
    encoder = MLP(6, (16, 8))
    linear = Where(kinds=("linear",))
    plans = [At(LoRA(4), linear), At(SSF(), linear)]
    adapted = adapt(encoder, plans, (*extra, *tasks.names))
    return AdaptedModel.build(adapted, 8, tasks)


def test_a_mixed_batch_is_its_tasks_apart_and_names_may_stand_in_another_order():
    made = model(extra=("another",))
    x, task_B = torch.randn(6, 6), torch.tensor([0, 1, 2, 2, 0, 1])
    mixed = made({"inputs": x, "task": task_B})
    assert list(mixed) == ["a", "b", "c"]
    for t, task in enumerate("abc"):
        rows = task_B == t
        alone = made(x[rows], tasks=(task,))[task]
        assert torch.allclose(mixed[task][rows], alone, atol=1e-6)
    every = made(x)
    for task, output in every.items():
        assert torch.allclose(output, made(x, tasks=(task,))[task], atol=1e-6)
    assert made(x, tasks=()) == {}
    assert isinstance(made, SharedModel)
    assert made(x, trace=Trace()).keys() == every.keys()


def test_only_heads_are_a_tasks_own_and_the_base_stands_still():
    made = model()
    shared = {id(p) for p in made.shared_parameters()}
    heads = {id(p) for t in made.tasks for p in made.task_parameters(t)}
    free = {id(p) for p in made.parameters() if p.requires_grad}
    assert shared | heads == free
    assert not shared & heads
    with pytest.raises(UsageError, match="Unknown task 'z'"):
        AdaptedModel(made.adapted, {"z": nn.Linear(8, 1)})


def test_fit_trains_streams_of_one_task_each_in_mixed_batches(tmp_path):
    def streams(seed: int) -> list[Stream]:
        return [
            with_tasks(stream(task, 120, seed + i), task, TASKS.names)
            for i, task in enumerate(TASKS.names)
        ]

    suite = make_suite(
        name="apart", tasks=TASKS, train=streams(1), val=streams(11), test=streams(21),
        encoder=lambda: MLP(6, (16, 8)), width=8, about="made up",
    )  # fmt: skip
    made = model(suite.tasks)
    base = {n: p.clone() for n, p in made.adapted.base.named_parameters()}
    config = FitConfig(epochs=12, lr=2e-2, batch_size=32)
    record = fit(
        suite,
        made,
        PCGrad(),
        Proportional(),
        config,
        lambda v, first: -v["c"],
        method="adapted pcgrad",
    )
    first, last = record.points[0], record.points[-1]
    assert all(last.train[t] < 0.6 * first.train[t] for t in TASKS.names)
    for name, parameter in made.adapted.base.named_parameters():
        assert torch.equal(parameter, base[name])
    save_adapted(tmp_path / "all", made.adapted, made.heads)
    again = model(suite.tasks)
    back = load_adapted(tmp_path / "all", again.adapted.detach(), again.heads)
    x, task_B = torch.randn(4, 6), torch.tensor([0, 2, 1, 0])
    wanted = made({"inputs": x, "task": task_B})
    came = AdaptedModel(back, again.heads)({"inputs": x, "task": task_B})
    assert all(torch.equal(came[t], wanted[t]) for t in wanted)


def test_a_balancer_in_a_loop_of_ones_own():
    made = model()
    balancer = Balancer(Equal(), made.shared_parameters(), tasks=TASKS.names)
    x, task_B = torch.randn(9, 6), torch.tensor([0, 1, 2] * 3)
    outputs = made({"inputs": x, "task": task_B})
    losses = {t: o[task_B == i].square().mean() for i, (t, o) in enumerate(outputs.items())}
    balancer.backward(losses)
    assert all(p.grad is not None for p in made.shared_parameters())


def test_a_task_is_added_with_its_head():
    made = model()
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad])
    x = torch.randn(3, 6)
    made(x)["a"].sum().backward()
    optimiser.step()
    before = made(x)
    made.add_task(Task("d", Multiclass(5)), optimiser=optimiser)
    after = made(x, tasks=("a", "b", "c"))
    assert all(torch.allclose(after[t], before[t], atol=1e-6) for t in before)
    assert made(x, tasks=("d",))["d"].shape == (3, 5)
    optimiser.zero_grad()
    made(x, tasks=("d",))["d"].sum().backward()
    optimiser.step()


def test_streams_name_their_rows_task():
    named = with_tasks(stream("b", 4, 0), "b", TASKS.names)
    assert named.inputs["task"].tolist() == [1, 1, 1, 1]
    with pytest.raises(UsageError, match="has an input 'task' already"):
        with_tasks(named, "b", TASKS.names)
    with pytest.raises(UsageError, match="Unknown task 'z'"):
        with_tasks(stream("b", 4, 0), "z", TASKS.names)
