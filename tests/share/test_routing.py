"""Routing to few experts: by loops, at the extremes, with counted work, and over whole updates.

This file is also the program of each of two processes.
"""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from polytask.balance import Balancer
from polytask.errors import UsageError
from polytask.fit import Feed, train_step, update_loads
from polytask.mix import Proportional, Schedule
from polytask.parsing import parse
from polytask.recipes.train import build
from polytask.share import Experts, Loads, Trace
from polytask.share.experts import stack
from polytask.share.routing import counted, imbalance, routed, within
from polytask.suites import About, Stream
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP
from polytask.tasks import Binary, Task, TaskSet

EXPERTS, WIDTH = 8, 16

CHOICES = {
    "even": lambda rows: torch.arange(rows) % EXPERTS,
    "all one": lambda rows: torch.full((rows,), 5),
    "half one": lambda rows: torch.where(torch.arange(rows) % 2 == 0, 3, torch.arange(rows) % 8),
    "at random": lambda rows: torch.randint(
        EXPERTS, (rows,), generator=torch.Generator().manual_seed(0)
    ),
}


def experts() -> Experts:
    torch.manual_seed(0)
    return Experts(EXPERTS, WIDTH, (12,), out=10).double()


def feed_forward(made, e, x):
    (w1, w2), (b1, b2) = made.weights, made.biases
    return torch.relu(x @ w1[e] + b1[e]) @ w2[e] + b2[e]


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 64, 200])
@pytest.mark.parametrize("how", list(CHOICES))
def test_rows_reach_their_experts_and_gradients_come_back(how, rows):
    made = experts()
    x = torch.randn(rows, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(rows, 1, 2, dtype=torch.float64, requires_grad=True)
    first = CHOICES[how](rows)
    chosen = torch.stack([first, (first + 3) % EXPERTS], 1)[:, None]
    (ours,) = routed(stack("e", [made]), "e", x, weights, chosen)
    plain = [
        sum(
            weights[r, 0, k] * feed_forward(made, int(chosen[r, 0, k]), x[r : r + 1])[0]
            for k in range(2)
        )
        for r in range(rows)
    ]
    assert ours.shape == (rows, 10)
    inputs = [x, weights, *made.parameters()]
    if not rows:
        gradients = torch.autograd.grad(ours.sum(), inputs, materialize_grads=True)
        assert not any(g.any() for g in gradients)
        return
    torch.testing.assert_close(ours, torch.stack(plain), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(ours.square().sum(), inputs)
    expected = torch.autograd.grad(torch.stack(plain).square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    unused = [e for e in range(EXPERTS) if not (chosen == e).any()]
    assert not any(g[unused].any() for g in found[2:])


@pytest.mark.parametrize("how", list(CHOICES))
def test_the_work_is_that_of_the_experts_chosen(how):
    """Multiply-adds: at most 1.3 of one expert per row, where all experts for all would be 8."""
    made, rows = experts(), 1024
    one = 2 * rows * (WIDTH * 12 + 12 * 10)
    weights = torch.ones(rows, 1, 1, dtype=torch.float64)
    x = torch.randn(rows, WIDTH, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        routed(stack("e", [made]), "e", x, weights, CHOICES[how](rows)[:, None, None])
    weighing = 2 * rows * 10
    assert one <= counter.get_total_flops() - weighing <= 1.3 * one


@pytest.mark.parametrize(("rows", "most"), [(192, 1.4), (1536, 1.3)])
def test_narrow_experts_with_few_rows_get_small_blocks(rows, most):
    """The tokens of one picture and of eight, 4 of 16 experts each: places not filled are few."""
    made, chosen = Experts(16, 64, (64,), out=64), torch.rand(rows, 1, 16).topk(4).indices
    weights, x = torch.rand(rows, 1, 4), torch.randn(rows, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        routed(stack("e", [made]), "e", x, weights, chosen)
    asked = 4 * 2 * rows * (2 * 64 * 64)
    assert asked <= counter.get_total_flops() - 4 * 2 * rows * 64 <= most * asked


@pytest.mark.parametrize("k", [1, 2, 5])
def test_rows_of_each_reader_and_another_activation(k):
    """Two readers with rows of their own; with k = 5 all experts run. `gelu` is not in place."""
    made, rows = experts(), 40
    x = torch.randn(2, rows, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(rows, 2, k, dtype=torch.float64, requires_grad=True)
    chosen = torch.rand(rows, 2, EXPERTS).topk(k).indices
    ours = routed(stack("e", [made]), "e", x, weights, chosen, functional.gelu)
    (w1, w2), (b1, b2) = made.weights, made.biases
    plain = torch.zeros(2, rows, 10, dtype=torch.float64)
    for g in range(2):
        for j in range(k):
            e = chosen[:, g, j]
            hidden = functional.gelu(torch.einsum("ri,rio->ro", x[g], w1[e]) + b1[e])
            given = torch.einsum("ri,rio->ro", hidden, w2[e]) + b2[e]
            plain[g] = plain[g] + weights[:, g, j, None] * given
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    inputs = [x, weights, *made.parameters()]
    found = torch.autograd.grad(ours.square().sum(), inputs)
    for a, b in zip(found, torch.autograd.grad(plain.square().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_with_as_many_choices_as_experts_every_expert_computes_a_row_once():
    made, rows = experts(), 64
    x = torch.randn(rows, WIDTH, dtype=torch.float64)
    weights = torch.rand(rows, 6, 2, dtype=torch.float64)  # 6 readers, 12 choices, 8 experts
    chosen = torch.rand(rows, 6, EXPERTS).topk(2).indices
    with FlopCounterMode(display=False) as counter:
        ours = routed(stack("e", [made]), "e", x, weights, chosen)
    every = torch.stack([feed_forward(made, e, x) for e in range(EXPERTS)])
    for g in range(6):
        plain = sum(
            weights[:, g, k, None] * every[chosen[:, g, k], torch.arange(rows)] for k in range(2)
        )
        torch.testing.assert_close(ours[g], plain, rtol=1e-12, atol=1e-12)
    experts_alone = 2 * rows * EXPERTS * (WIDTH * 12 + 12 * 10)
    assert counter.get_total_flops() < 1.5 * experts_alone  # 12 choices each alone would be 1.5


def test_capacity_takes_first_choices_first_and_rows_in_order():
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(10, 2, 4, generator=generator).topk(2).indices  # 40 choices, even share 10
    there = within(chosen, 4, torch.tensor(0.75))
    room, expected = math.ceil(0.75 * 10), torch.zeros(10, 2, 2, dtype=torch.bool)
    taken = [0] * 4
    for k in range(2):
        for r in range(10):
            for g in range(2):
                e = int(chosen[r, g, k])
                expected[r, g, k] = taken[e] < room
                taken[e] += 1
    assert torch.equal(there, expected)
    assert not there.all()


def test_the_loss_is_1_where_all_is_even_and_the_experts_number_where_one_has_all():
    even = torch.full((6, 1, 4), 0.25)
    assert imbalance(even, torch.tensor([3, 3, 3, 3])).tolist() == [1.0]
    one = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(6, 2, 4)
    assert imbalance(one, torch.tensor([0, 6, 0, 0])).tolist() == [4.0, 4.0]
    assert imbalance(even[:0], torch.zeros(4, dtype=torch.int64)).tolist() == [0.0]
    assert counted(torch.tensor([[1, 3], [1, 0]]), 4).tolist() == [1, 2, 0, 1]


def suite():
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(5, 2, generator=draw)

    def stream(rows):
        inputs = torch.randn(rows, 5, generator=draw)
        target = (inputs @ truth > 0).double()
        return Stream("s", inputs.double(), {"a": target[:, 0], "b": target[:, 1]})

    return make_suite(
        name="two",
        tasks=TaskSet([Task("a", Binary()), Task("b", Binary())]),
        train=[stream(96)],
        val=[stream(32)],
        test=[stream(32)],
        encoder=lambda: MLP(5, (8,)),
        width=8,
        about=About("", "", "", "", ""),
    )


def train(recipe: str, accumulate: int) -> list[float]:
    """Return the weights after three updates of 31 rows each, whoever has them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # targets too
    try:
        return _train(recipe, accumulate)
    finally:
        torch.set_default_dtype(before)


def _train(recipe: str, accumulate: int) -> list[float]:
    made = suite()
    model, balance, _ = build(made, parse(recipe), 0)
    balancer = Balancer(balance, model.shared_parameters(), model.tasks)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    schedule = Schedule(Proportional(), [96], 31, 0)
    feed, cursors = Feed(made.train, made.tasks, schedule, accumulate), schedule.start()
    for step in range(3):
        fed, cursors = feed.step(step, cursors)
        train_step(model, balancer, optimiser, fed)
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


GLOBAL = "sparse-moe:experts=4,k=2,balance=global,weight=2"
BATCH = "sparse-moe:experts=4,k=2,balance=batch,weight=2"


def far(a, b) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_parts_of_an_update_are_the_whole_with_global_counts_and_not_without():
    whole, parts = train(GLOBAL, 1), train(GLOBAL, 4)
    assert far(whole, parts) < 1e-12
    # The loss itself is the same where the update is one pass, and steers.
    assert far(whole, train(BATCH, 1)) < 1e-12
    assert far(whole, train(BATCH, 4)) > 1e-4
    assert far(whole, train(f"{BATCH[:-1]}0", 1)) > 1e-3


@pytest.fixture(scope="module")
def pair(run_pair) -> list[dict]:
    return run_pair(__file__)


@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_are_one_with_global_counts_and_not_without(pair, parts):
    whole = train(GLOBAL, 1)
    for result in pair:
        assert far(result[f"global {parts}"], whole) < 1e-12
        assert far(result[f"batch {parts}"], whole) > 1e-4


def test_the_penalty_is_the_loss_of_the_counts_handed_in_without_their_gradient():
    made = suite()
    model = build(made, parse(GLOBAL), 0)[0].double()
    inputs = made.train[0].inputs[:20]
    (router,) = model.trunk.routers
    (gate,) = router.gate.linears.values()
    p_RE = (model.encoder(inputs) @ gate.weight.T).softmax(-1)
    counts_E = torch.zeros(4)
    for row in p_RE.tolist():
        for e in sorted(range(4), key=lambda e: -row[e])[:2]:
            counts_E[e] += 1
    elsewhere = torch.tensor([5.0, 1.0, 0.0, 9.0])
    for others in (torch.zeros(4), elsewhere):
        loads = Loads()
        loads.add("row counts_LE", others.long()[None])
        trace = Trace(loads=loads)
        model(inputs, trace=trace)
        part_E = (counts_E + others) / (counts_E + others).sum()
        expected = 2 * 4 * (part_E * p_RE.mean(0)).sum()
        assert list(trace.penalties) == ["a", "b"]
        for penalty in trace.penalties.values():
            torch.testing.assert_close(penalty, expected)
            a, b = (
                torch.autograd.grad(v, gate.weight, retain_graph=True) for v in (penalty, expected)
            )
            torch.testing.assert_close(a, b)


def test_a_first_round_moves_no_random_number_and_is_made_only_where_needed():
    made = suite()
    model = build(made, parse(GLOBAL), 0)[0].double()
    schedule = Schedule(Proportional(), [96], 31, 0)
    fed = Feed(made.train, made.tasks, schedule, 4).step(0, schedule.start())[0]
    calls, state = [], torch.get_rng_state()
    model.encoder.register_forward_hook(lambda *_: calls.append(torch.rand(1)))
    loads = update_loads(model, fed, "float32")
    assert len(calls) == 4
    assert torch.equal(state, torch.get_rng_state())
    assert loads.add("row counts_LE", torch.zeros(1, 4)).sum() == 31 * 2
    one = Feed(made.train, made.tasks, schedule, 1).step(0, schedule.start())[0]
    update_loads(model, one, "float32")
    assert len(calls) == 4
    assert update_loads(build(made, parse(BATCH), 0)[0], fed, "float32") is None


def test_a_row_without_room_passes_by_in_training_and_is_served_afterwards():
    made = suite()
    model = build(made, parse("sparse-moe:experts=4,capacity=0.25"), 0)[0].double()
    inputs = made.train[0].inputs[:32]
    trace = Trace()
    x = model.encoder(inputs)
    model(inputs, trace=trace)
    weights_RE = trace.gates[0].weights_RGE[:, 0]
    assert (weights_RE > 0).sum(0).tolist() == [min(2, n) for n in (weights_RE > 0).sum(0).tolist()]
    by = weights_RE.sum(1) == 0
    assert by.sum() >= 24
    (h_RD, _) = model.trunk(x)
    assert torch.equal(h_RD[by], x[by])
    assert not torch.equal(h_RD[~by], x[~by])
    model.eval()
    trace = Trace()
    model(inputs, trace=trace)
    assert (trace.gates[0].weights_RGE[:, 0] > 0).sum().item() == 32


def test_settings_that_cannot_be_are_answered():
    made = suite()
    for text, said in {
        "experts=4,k=5": "Sparse MoE: k is 5; give 1 to 4, the number of experts.",
        "k=0": "Sparse MoE: k is 0; give 1 to 8, the number of experts.",
        "capacity=0": "Sparse MoE: capacity is 0.0; give a number > 0, 1 for an even share, or "
        "none to take every row.",
        "weight=-1": "Sparse MoE: weight is -1.0; give a number >= 0 (default 0.01).",
        "layers=0": "Sparse experts: layers is 0; give at least 1.",
    }.items():
        with pytest.raises(UsageError) as caught:
            build(made, parse(f"sparse-moe:{text}"), 0)
        assert str(caught.value) == said


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    made = {"global": GLOBAL, "batch": BATCH}
    result = {f"{n} {parts}": train(r, parts) for n, r in made.items() for parts in (1, 2)}
    print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
