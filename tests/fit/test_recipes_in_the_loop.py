"""Wrapped methods in the loop: named in recipes, fed the rows they look at again, taken up."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, PCGrad, Rows, SampledRows
from polytask.fit import Feed, FitConfig, build_optimiser, fit, task_losses, train_step
from polytask.fit.step import losses_again
from polytask.mix import Proportional, Schedule, Uniform
from polytask.parsing import parse
from polytask.share import HardSharing

RECIPES = {
    "pcgrad+every-n:n=3": "updates: exact",
    "aligned-mtl+feature-level": "feature level",
    "upgrad+sampled-rows:fraction=0.5": "a sample of 0.5 of the rows",
    "igb-v1+cagrad": "losses weighed by IGBv1, then exact",
    "famo+pcgrad": "one forward more",
    "equal+flat-regions": "flat regions",
    "pcgrad+look-ahead:lr=0.01": "look-ahead",
}


@pytest.fixture
def wrapped(tiny: ModuleType, monkeypatch) -> ModuleType:
    for text in RECIPES:
        monkeypatch.setitem(tiny.METHODS, text, lambda text=text: parse(text).build_balance(0))
    return tiny


@pytest.mark.parametrize("text", RECIPES)
def test_a_run_taken_up_again_ends_as_if_nothing_was(
    wrapped: ModuleType, tmp_path: Path, text: str
) -> None:
    def run(name: str, stop_after: int = 0):
        return wrapped.run(
            wrapped.shared(), text, tmp_path / name, dropout=0.2, stop_after=stop_after,
            checkpoint_seconds=0,
        )  # fmt: skip

    whole, watched = run("whole")
    with pytest.raises(wrapped.Stopped):
        run("parts", stop_after=whole.cost.steps // 2)
    record, taken_up = run("parts")
    assert RECIPES[text] in record.engine or "last look" in record.engine
    assert record.points[-1].train == whole.points[-1].train
    for name, value in watched.last.items():
        assert torch.equal(taken_up.last[name], value)


class TwoInputs(nn.Module):
    """An encoder with a branch for each half of the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"left": nn.Linear(3, 4), "right": nn.Linear(3, 4)})
        self.join = nn.Linear(8, 8)

    def forward(self, inputs):
        halves = zip(self.branches.values(), inputs.split(3, 1), strict=True)
        return self.join(torch.cat([branch(half) for branch, half in halves], 1)).relu()


def test_fuller_takes_the_branches_of_the_model(tiny: ModuleType) -> None:
    suite = tiny.shared()
    torch.manual_seed(0)
    model = HardSharing.build(TwoInputs(), 8, suite.tasks)
    assert list(model.branches()) == ["left", "right"]
    balance = parse("mgda+fuller").build_balance(0)
    config = FitConfig(epochs=1, batch_size=10, min_epoch_steps=1)
    record = fit(
        suite, model, balance, Proportional(), config, tiny.first_task, method="mgda+fuller"
    )
    assert "branches left, right at one level" in record.engine
    norms = [
        torch.cat([p.grad.flatten() for p in branch.parameters()]).norm()
        for branch in model.encoder.branches.values()
    ]
    torch.testing.assert_close(*norms)
    assert tiny.model(suite).branches() == {}


def fed_of(suite, batch_size: int = 12, accumulate: int = 1):
    schedule = Schedule(Uniform(), [len(s) for s in suite.train], batch_size, 0)
    feed = Feed(suite.train, suite.tasks, schedule, accumulate)
    return feed.step(0, schedule.start())[0]


@pytest.mark.parametrize("streams", ["shared", "apart", "ragged"])
def test_losses_of_all_rows_again_are_the_steps_own(tiny: ModuleType, streams: str) -> None:
    suite = getattr(tiny, streams)()
    model, fed = tiny.model(suite), fed_of(suite)
    (batches,) = fed.micros
    names, losses_K = task_losses(model, batches, fed.counts, "float32")
    again = losses_again(model, fed, "float32")(Rows(), names)
    assert tuple(again) == names
    torch.testing.assert_close(torch.stack(list(again.values())), losses_K)
    assert set(losses_again(model, fed, "float32")(Rows(), names[1:2])) == {names[1]}


def test_two_halves_of_the_rows_make_up_the_losses_each_by_its_own_labels(
    tiny: ModuleType,
) -> None:
    suite = tiny.shared()
    model, fed = tiny.model(suite), fed_of(suite, 20)
    ((batch,),) = fed.micros
    again = losses_again(model, fed, "float32")
    whole = again(Rows(), suite.tasks.names)
    parts = [Rows((5,), 0.0, 0.5), Rows((5,), 0.5, 1.0)]
    found = [again(rows, suite.tasks.names) for rows in parts]
    for block, target in zip(batch.blocks, batch.targets, strict=True):
        for k, task in enumerate(block.tasks):
            labels = [block.kind.present(rows(target)) for rows in parts]
            counts = [float((n[:, k] if block.kind.stacks else n).sum()) for n in labels]
            mean = sum(c * part[task] for c, part in zip(counts, found, strict=True) if c)
            torch.testing.assert_close(mean / sum(counts), whole[task])


def test_looking_again_leaves_the_running_statistics_alone(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite, batch_norm=True)
    model.train()
    fed = fed_of(suite)
    before = {n: b.clone() for n, b in model.named_buffers()}
    assert any("running" in name for name in before)
    losses_again(model, fed, "float32")(Rows(), suite.tasks.names)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    balancer = Balancer(SampledRows(PCGrad()), model.shared_parameters(), suite.tasks.names)
    optimiser = build_optimiser(model, balancer, FitConfig())
    train_step(model, balancer, optimiser, fed)
    tracked = [n for n, b in model.named_buffers() if "num_batches" in n and b == before[n] + 1]
    assert tracked == [n for n in before if "num_batches" in n]


IN_PARTS = (
    "pcgrad+every-n:n=2",
    "aligned-mtl+feature-level",
    "upgrad+sampled-rows:fraction=1.0",
    "uncertainty+cagrad",
    "equal+flat-regions",
    "pcgrad+flat-regions",
)


@pytest.mark.parametrize("streams", ["shared", "apart"])
@pytest.mark.parametrize("text", IN_PARTS)
def test_micro_batches_make_the_updates_of_the_whole_batch(
    tiny: ModuleType, float64: None, text: str, streams: str
) -> None:
    found = []
    for parts in (1, 3):
        suite = getattr(tiny, streams)()
        torch.manual_seed(0)
        model = tiny.model(suite)
        balancer = Balancer(
            parse(text).build_balance(0), model.shared_parameters(), suite.tasks.names
        )
        optimiser = build_optimiser(model, balancer, FitConfig(lr=0.01))
        for _ in range(3):
            train_step(model, balancer, optimiser, fed_of(suite, 20, parts))
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("streams", ["shared", "apart", "ragged"])
def test_what_the_parts_of_an_update_draw_is_its_loss_on_average(
    tiny: ModuleType, float64: None, streams: str
) -> None:
    suite = getattr(tiny, streams)()
    model, fed = tiny.model(suite), fed_of(suite, 20, 2)
    names = suite.tasks.names
    for m in range(2):
        again = losses_again(model, fed, "float32", m)
        whole = again(Rows(), names)
        # Two halves of every table, each divided by its part of the rows.
        halves = [again(Rows((5,), 0.0, 0.5), names), again(Rows((5,), 0.5, 1.0), names)]
        for task, loss in whole.items():
            batch = next(b for b in fed.micros[m] if task in b.tasks)
            rows, first = len(batch.targets[0]), round(0.5 * len(batch.targets[0]))
            shares = (first / rows, 1 - first / rows)
            parts = [s * h[task] for s, h in zip(shares, halves, strict=True) if task in h]
            torch.testing.assert_close(sum(parts, torch.zeros_like(loss)), loss)
