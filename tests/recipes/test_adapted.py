"""An adapted model with heads of several kinds, trained by `fit`, a balancer and streams apart."""

import pytest
import torch
from torch import nn

from polytask.adapt import (
    SSF,
    At,
    LoRA,
    LoRAMoE,
    MoR1E,
    Where,
    adapt,
    fit_centroids,
    load_adapted,
    save_adapted,
)
from polytask.balance import Balancer, Equal, PCGrad
from polytask.errors import UsageError
from polytask.fit import FitConfig, fit
from polytask.mix import Proportional
from polytask.recipes.adapted import AdaptedModel, with_tasks
from polytask.share import SharedModel, Trace
from polytask.suites import Stream, Suite
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


def streams_apart() -> Suite:
    def streams(seed: int) -> list[Stream]:
        return [
            with_tasks(stream(task, 120, seed + i), task, TASKS.names)
            for i, task in enumerate(TASKS.names)
        ]

    return make_suite(
        name="apart", tasks=TASKS, train=streams(1), val=streams(11), test=streams(21),
        encoder=lambda: MLP(6, (16, 8)), width=8, about="made up",
    )  # fmt: skip


def test_fit_trains_streams_of_one_task_each_in_mixed_batches(tmp_path):
    suite = streams_apart()
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


TYPE_T = torch.tensor([1, 0, 1])


def typed(beta: float, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    torch.manual_seed(0)
    method = LoRAMoE(4, 2, beta=beta, delta=0.3, dropout=0.0)
    where = Where(kinds=("linear",))
    # Tasks of the adapted model in another order than the heads.
    adapted = adapt(MLP(6, (16, 8)).to(dtype), method, ("another", "c", "b", "a"), where)
    return AdaptedModel.build(adapted, 8, TASKS, {"type": TYPE_T}).to(dtype)


@pytest.mark.parametrize("mixed", [True, False])
def test_types_of_tasks_reach_the_rows_and_the_penalty_is_that_of_a_loop(mixed):
    """Value and gradient, of rows with their tasks and of every asked task on every row."""
    made = typed(0.6, torch.float64)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    task_B, trace = torch.tensor([0, 1, 2, -1, 1]), Trace()
    if mixed:
        made({"inputs": x, "task": task_B}, trace=trace)
        rows = [(x[b], t) for b, t in enumerate(task_B.tolist()) if t >= 0]
    else:
        made(x, tasks=("a", "c"), trace=trace)
        rows = [(row, t) for t in (0, 2) for row in x]
    total, wanted, routers = sum(trace.penalties.values()), 0.0, []
    for layer in made.adapted.layers():
        seen = []  # B is 0 at the start, so what a layer reads is what the base's reads
        hook = layer.module.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        with made.adapted.without():
            made.adapted.base(torch.stack([row for row, _ in rows]))
        hook.remove()
        router = made.adapted.at(layer.path).selection.scores.weight_SC
        routers.append(router)
        counted = [
            share * (1.3 if (i >= 2) == bool(TYPE_T[t]) else 0.7)
            for row, (_, t) in zip(seen[0], rows, strict=True)
            for i, share in enumerate(torch.softmax(router @ row, 0))
        ]
        counted = torch.stack(counted)
        wanted = wanted + 0.6 * counted.var() / counted.mean() ** 2
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0, check_dtype=False)
    mine, other = (torch.autograd.grad(y, routers) for y in (total, wanted))
    for one, two in zip(mine, other, strict=True):
        assert two.abs().sum() > 0
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_fit_descends_loramoes_penalty_by_the_types_of_tasks():
    suite, left = streams_apart(), []
    for beta in (0.0, 3.0):
        made = typed(beta)
        record = fit(
            suite, made, Equal(), Proportional(), FitConfig(epochs=4, lr=2e-2, batch_size=32),
            lambda v, first: -v["c"], method="adapted loramoe",
        )  # fmt: skip
        assert all(record.points[-1].train[t] < record.points[0].train[t] for t in TASKS.names)
        judge = typed(1.0)
        judge.load_state_dict(made.state_dict())
        rows, trace = [test.inputs for test in suite.test], Trace()
        judge({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, trace=trace)
        left.append(sum(trace.penalties.values()).item())
    assert left[1] < 0.5 * left[0]


def test_embeddings_of_tasks_reach_mor1e_in_every_way_of_asking():
    torch.manual_seed(0)
    embedding_TC = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    adapted = adapt(MLP(6, (16, 8)), MoR1E(3, 5), TASKS.names, Where(kinds=("linear",)))
    fit_centroids(adapted, embedding_TC)
    for parameter in adapted.parts.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) * (parameter.dim() > 1)
    made = AdaptedModel.build(adapted, 8, TASKS, {"embedding": embedding_TC}).eval()
    x, task_B = torch.randn(6, 6), torch.tensor([0, 1, 2, 2, 0, 1])
    with adapted.tasks(task_B, given={"embedding": embedding_TC[task_B]}):
        features = adapted.base(x)
    mixed, every = made({"inputs": x, "task": task_B}), made(x)
    for t, task in enumerate(TASKS.names):
        rows = task_B == t
        wanted = made.hard.read(features, (task,))[task][rows]
        for came in (mixed[task][rows], every[task][rows], made(x[rows], (task,))[task]):
            assert torch.allclose(came, wanted, atol=1e-6)
    assert not any(name.startswith("given") for name in made.state_dict())


def test_what_is_given_of_tasks_fits_them_and_a_new_task_brings_its_own():
    made = typed(1.0)
    with pytest.raises(UsageError, match=r"given\['type'\] is \(2,\); give .* of 3 tasks: a, b, c"):
        AdaptedModel(made.adapted, made.heads, given={"type": torch.zeros(2)})
    with pytest.raises(UsageError, match="give that of 'd' too, a tensor of shape"):
        made.add_task(Task("d", Binary()))
    given = {"type": torch.tensor(0), "embedding": torch.zeros(2)}
    with pytest.raises(UsageError, match="given no 'embedding' of its tasks"):
        made.add_task(Task("d", Binary()), given=given)
    assert made.tasks == TASKS.names
    made.add_task(Task("d", Binary()), given={"type": torch.tensor(0)})
    trace = Trace()
    made(torch.randn(3, 6), trace=trace)
    assert trace.penalties.keys() == {"a", "b", "c", "d"}
