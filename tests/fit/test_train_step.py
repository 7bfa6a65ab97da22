"""One update equals what a plain loop does, whole or in parts; absent tasks stand still."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.balance import Balancer, Equal, PCGrad, Uncertainty
from polytask.errors import RunError
from polytask.fit import Feed, FitConfig, Step, build_optimiser, task_losses, train_step
from polytask.fit.data import table
from polytask.mix import Proportional, Schedule, Uniform
from polytask.share import HardSharing
from polytask.suites import Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP, ConvNet
from polytask.tasks import Binary, Multiclass, Task, TaskSet


def feed_of(suite: Suite, batch_size: int, accumulate: int = 1, seed: int = 0) -> Feed:
    mix = Proportional() if len(suite.train) == 1 else Uniform()
    schedule = Schedule(mix, [len(s) for s in suite.train], batch_size, seed)
    return Feed(suite.train, suite.tasks, schedule, accumulate)


def ours(
    suite: Suite, made: Any, method: Any, steps: int, batch_size: int = 8, accumulate: int = 1,
    config: FitConfig | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Make updates as `fit` does, without what it does around them; return the losses."""
    config = config or FitConfig(lr=1e-2)
    feed = feed_of(suite, batch_size, accumulate)
    balancer = Balancer(method, made.shared_parameters(), tasks=suite.tasks.names)
    optimiser = build_optimiser(made, balancer, config)
    cursors_S, losses = feed.schedule.start(), []
    made.train()
    for step in range(steps):
        fed, cursors_S = feed.step(step, cursors_S)
        found = train_step(made, balancer, optimiser, fed, config.precision, config.clip)
        losses.append(dict(zip(found.tasks, found.losses_K.tolist(), strict=True)))
    return losses


def test_twelve_binary_tasks_with_missing_labels_equal_a_plain_loop_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    names = [f"t{i}" for i in range(12)]

    def stream(rows: int) -> Stream:
        inputs = torch.randn(rows, 9, generator=draw)
        target_NT = (inputs @ torch.randn(9, 12, generator=draw) > 0).float()
        target_NT[torch.rand(rows, 12, generator=draw) < 0.6] = torch.nan
        return Stream("s", inputs, {n: target_NT[:, i] for i, n in enumerate(names)})

    suite = _suite([Task(n, Binary()) for n in names], stream, lambda: MLP(9, (16, 8), dropout=0.2))
    torch.manual_seed(5)
    model = HardSharing.build(suite.encoder(), 8, suite.tasks)
    torch.manual_seed(5)
    encoder = suite.encoder()
    heads = [nn.Linear(8, 1) for _ in names]
    plain = nn.ModuleList([encoder, *heads])
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    schedule = Schedule(Proportional(), [len(suite.train[0])], 8, 0)
    data = suite.train[0]
    assert isinstance(data.inputs, Tensor)
    target_NT = torch.stack([data.targets[n] for n in names], 1)

    torch.manual_seed(7)
    losses = ours(suite, model, Equal(), 20)
    torch.manual_seed(7)
    cursors_S, absent = schedule.start(), 0
    for step in range(20):
        drawn, cursors_S = schedule.rows(step, cursors_S)
        rows_B = drawn[0][1]
        target_BT = target_NT[rows_B]
        count_T = (~target_BT.isnan()).sum(0)
        present = count_T.nonzero().squeeze(1).tolist()  # the others' heads do not run
        weight = torch.cat([heads[i].weight for i in present])
        bias = torch.cat([heads[i].bias for i in present])
        logits_BT = F.linear(encoder(data.inputs[rows_B]), weight, bias)
        target_BT = target_BT[:, present]
        each_BT = F.binary_cross_entropy_with_logits(
            logits_BT,
            target_BT.nan_to_num(0.0),
            weight=(~target_BT.isnan()).float(),
            reduction="none",
        )
        mean_T = each_BT.sum(0) / count_T[present]
        absent += len(names) - len(present)
        optimiser.zero_grad()
        mean_T.sum().backward()
        optimiser.step()
        assert losses[step] == {names[i]: m for i, m in zip(present, mean_T.tolist(), strict=True)}
    assert absent > 0
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_small_convolutional_net_equals_a_plain_loop_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(1)

    def stream(rows: int) -> Stream:
        inputs = torch.randn(rows, 1, 6, 6, generator=draw)
        flat = inputs.flatten(1)
        return Stream("s", inputs, {"x": flat[:, :4].argmax(1), "y": flat[:, 4:9].argmax(1)})

    tasks = [Task("x", Multiclass(4)), Task("y", Multiclass(5))]
    suite = _suite(tasks, stream, lambda: ConvNet(1, 6, 6, maps=(8, 8, 8), features=8), rows=60)
    torch.manual_seed(2)
    model = HardSharing.build(suite.encoder(), 8, suite.tasks)
    torch.manual_seed(2)
    encoder, x, y = suite.encoder(), nn.Linear(8, 4), nn.Linear(8, 5)
    plain = nn.ModuleList([encoder, x, y])
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    schedule = Schedule(Proportional(), [60], 8, 0)
    data = suite.train[0]
    assert isinstance(data.inputs, Tensor)
    ours(suite, model, Equal(), 15)
    cursors_S = schedule.start()
    for step in range(15):
        drawn, cursors_S = schedule.rows(step, cursors_S)
        rows_B = drawn[0][1]
        weight, bias = torch.cat([x.weight, y.weight]), torch.cat([x.bias, y.bias])
        out_x, out_y = F.linear(encoder(data.inputs[rows_B]), weight, bias).split([4, 5], dim=1)
        loss = F.cross_entropy(out_x, data.targets["x"][rows_B], reduction="sum") / len(rows_B)
        loss = loss + F.cross_entropy(out_y, data.targets["y"][rows_B], reduction="sum") / len(
            rows_B
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.equal(theirs)


def _suite(tasks: list[Task], stream: Any, encoder: Any, rows: int = 90) -> Suite:
    from polytask.suites import About

    return make_suite(
        name="plain",
        tasks=TaskSet(tasks),
        train=[stream(rows)],
        val=[stream(60)],
        test=[stream(60)],
        encoder=encoder,
        width=8,
        about=About("", "", "", "", ""),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", [Equal, Uncertainty, PCGrad])
@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
def test_four_micro_batches_equal_one_batch(tiny: ModuleType, name: str, method: Any) -> None:
    suite = {"shared": tiny.shared, "apart": tiny.apart, "ragged": tiny.ragged}[name]()
    whole, parts = tiny.model(suite), tiny.model(suite)
    feed = feed_of(suite, 10, 4)
    fed, _ = feed.step(0, feed.schedule.start())
    assert len(fed.micros) == 4
    labels = [_labels_in(micro) for micro in fed.micros]
    assert len({frozenset(found.items()) for found in labels}) > 1, "denominators must matter"
    one = ours(suite, whole, method(), 6, batch_size=10)
    four = ours(suite, parts, method(), 6, batch_size=10, accumulate=4)
    for step, losses in enumerate(one):
        assert four[step] == pytest.approx(losses, rel=1e-12)
    first = tiny.model(suite)
    for a, b, c in zip(whole.parameters(), parts.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-11)
        assert not c.equal(a)


def _labels_in(micro: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for batch in micro:
        for block, target in zip(batch.blocks, batch.targets, strict=True):
            there = block.kind.present(target).reshape(len(target), len(block.tasks), -1)
            counts = there.sum((0, 2)).tolist()
            found |= dict(zip(block.tasks, counts, strict=True))
    return found


def test_a_task_without_labels_stands_still_and_others_do_not_notice(tiny: ModuleType) -> None:
    suite = tiny.shared()
    stream = suite.train[0]
    rows_N = stream.targets["b"].eq(-100).nonzero().squeeze(1)
    model, lone = tiny.model(suite), tiny.model(suite)
    balancer = Balancer(Equal(), model.shared_parameters(), tasks=suite.tasks.names)
    optimiser = build_optimiser(model, balancer, FitConfig(lr=0.1, weight_decay=0.5))
    feed = feed_of(suite, 50)
    everything, _ = feed.step(0, feed.schedule.start())
    train_step(model, balancer, optimiser, everything)  # gives b momentum, which must not move it
    lone.load_state_dict(model.state_dict())
    head = [p.detach().clone() for p in model.task_parameters("b")]
    state = [
        {k: v.clone() for k, v in optimiser.state[p].items()} for p in model.task_parameters("b")
    ]
    others = [p.detach().clone() for p in model.parameters()]
    joined = feed.tables[0]
    fed = Step(((joined.batch(rows_N),),), joined.counts(rows_N))
    assert set(fed.counts) == {"a", "c", "d"}
    weights = train_step(model, balancer, optimiser, fed)
    losses = dict(zip(weights.tasks, weights.losses_K, strict=True))
    assert set(weights) == {"a", "c", "d"}
    for p, before, entries in zip(model.task_parameters("b"), head, state, strict=True):
        assert p.equal(before)
        for key, value in optimiser.state[p].items():
            assert value.equal(entries[key]), key
    own = {id(p) for p in model.task_parameters("b")}
    for p, before in zip(model.parameters(), others, strict=True):
        assert id(p) in own or not p.equal(before)
    # The losses of the others are those of a model that has no such task.
    rest = Stream("rest", stream.inputs, {t: stream.targets[t] for t in "acd"})
    batch = table([rest], suite.tasks.only("acd")).batch(rows_N)
    names, losses_K = task_losses(lone, [batch], fed.counts, "float32")
    alone = dict(zip(names, losses_K, strict=True))
    assert alone.keys() == losses.keys()
    for task, loss in alone.items():
        assert loss.item() == pytest.approx(losses[task].item(), rel=1e-6)


def test_clip_bounds_the_norm_of_all_gradients_together(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite)
    norms = {}
    for clip in (None, 0.01):
        ours(suite, model, Equal(), 1, config=FitConfig(clip=clip))
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms[clip] = float(torch.cat(grads).norm())
    assert norms[None] > 0.1
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_is_named_and_nothing_is_updated(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite)
    with torch.no_grad():
        model.head("c").bias.fill_(torch.inf)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(RunError, match=r"At step 0 the loss of task 'c' is inf"):
        ours(suite, model, Equal(), 1)
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


def test_bfloat16_runs_the_forward_pass_in_it_and_keeps_float32_elsewhere(
    tiny: ModuleType,
) -> None:
    suite = tiny.shared()
    model = tiny.model(suite)
    seen = []
    model.head("b").register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    losses = ours(suite, model, Equal(), 5, config=FitConfig(precision="bf16"))
    exact = ours(suite, tiny.model(suite), Equal(), 5)
    assert seen == [torch.bfloat16] * 5
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != exact[0]
    assert losses[0] == pytest.approx(exact[0], rel=0.05)
