"""fit gives a mix what it declares: the run's length, and validation losses after every epoch."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polytask.errors import UsageError
from polytask.fit import FitConfig
from polytask.fit.looks import StreamLosses
from polytask.mix import (
    Alternating,
    Curriculum,
    FixedRates,
    LossDriven,
    MTAdamW,
    Proportional,
    Schedule,
    SkillIt,
    StreamOptimiser,
    Streams,
    Uniform,
    Unmixed,
)
from polytask.parsing import parse
from polytask.recipes import build
from polytask.testing import check_mix


def by_hand(model, suite) -> list[float]:
    """Return each training stream's loss from the kinds' own sums, a stream at a time."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    model.eval()
    for stream in suite.val:
        inputs = stream.inputs
        for task in suite.tasks:
            if task.name in stream.targets:
                output = model(inputs, tasks=(task.name,))[task.name].detach()
                encoded = task.kind.encode(stream.targets[task.name])
                total, count = task.kind.loss(output, encoded)
                sums[task.name] = sums.get(task.name, 0.0) + float(total.sum())
                counts[task.name] = counts.get(task.name, 0.0) + float(count.sum())
    model.train()
    mean = {task: sums[task] / counts[task] for task in sums}
    return [sum(mean[t] for t in s.targets) / len(s.targets) for s in suite.train]


@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
def test_a_streams_loss_is_the_mean_over_its_tasks_of_all_validation_labels(
    tiny: ModuleType, name: str, float64
) -> None:
    suite = getattr(tiny, name)()
    model = tiny.model(suite, dropout=0.0 if name == "ragged" else 0.5)
    found = StreamLosses(suite, FitConfig(batch_size=4)).losses(model)
    assert found.tolist() == pytest.approx(by_hand(model, suite), rel=1e-12)
    assert model.training


def test_a_task_without_validation_labels_is_left_out(tiny: ModuleType, float64) -> None:
    suite = tiny.apart()
    (second,) = (s for s in suite.val if s.name == "second")
    second.targets["d"].fill_(math.nan)
    (third,) = (s for s in suite.val if s.name == "third")
    third.targets["c"].fill_(math.nan)
    model = tiny.model(suite)
    found = StreamLosses(suite, FitConfig()).losses(model)
    assert found.isnan().tolist() == [False, False, True]


def test_it_is_shown_them_after_every_epoch_and_no_random_number_moves(
    tiny: ModuleType, monkeypatch
) -> None:
    seen = []
    observe = Schedule.observe

    def listen(self, losses_S, step):
        seen.append((step, losses_S.tolist()))
        observe(self, losses_S, step)

    monkeypatch.setattr(Schedule, "observe", listen)
    mix = LossDriven(floor=1.0)  # all floor: uniform whatever it sees
    record, driven = tiny.run(tiny.apart(), dropout=0.5, mix=mix)
    assert [step for step, _ in seen] == [point.step for point in record.points]
    assert all(len(losses) == 3 and all(map(math.isfinite, losses)) for _, losses in seen)
    _, uniform = tiny.run(tiny.apart(), dropout=0.5)
    assert all(torch.equal(driven.last[n], value) for n, value in uniform.last.items())


@pytest.mark.parametrize(
    "mix",
    [
        SkillIt((1, 0.5, 0, 0, 1, 0, 0, 0, 1), eta=2.0),
        LossDriven(),
        Unmixed(SkillIt(eta=2.0)),
        Unmixed(Proportional(), optimiser="mt-adamw"),
        Curriculum(),
        Alternating(),
    ],
    ids=lambda mix: type(mix).__name__,
)
def test_a_run_taken_up_again_ends_as_if_nothing_was(tiny: ModuleType, tmp_path: Path, mix) -> None:
    def run(name: str, stop_after: int = 0):
        return tiny.run(
            tiny.apart(), "equal", tmp_path / name, dropout=0.2, stop_after=stop_after, mix=mix,
            checkpoint_seconds=0,
        )  # fmt: skip

    whole, undisturbed = run("whole")
    for at in (3, whole.cost.steps // 2 + 1):  # in the first epoch, and after a look
        with pytest.raises(tiny.Stopped):
            run("parts", stop_after=at)
    again, resumed = run("parts")
    assert 0 < resumed.begun_at < whole.cost.steps
    assert all(torch.equal(undisturbed.last[n], value) for n, value in resumed.last.items())
    assert [p.train for p in again.points] == [p.train for p in whole.points]
    if mix != Alternating():
        uniform, _ = tiny.run(tiny.apart(), "equal", dropout=0.2)
        assert [p.train for p in uniform.points] != [p.train for p in whole.points]


def test_a_mix_is_told_the_streams_by_name_before_anything_is_trained(tiny: ModuleType) -> None:
    suite = tiny.apart()
    _, _, mix = build(suite, parse("dmt:special=first/third"), 0)
    record, _ = tiny.run(suite, mix=mix)
    assert set(record.points[0].train) == {"a", "c"}  # of the first half of the run
    _, _, mix = build(suite, parse("dmt:special=frist"), 0)
    with pytest.raises(UsageError, match=r"Unknown stream of DMT 'frist'. Did you mean 'first'\?"):
        tiny.run(suite, mix=mix)


@pytest.mark.parametrize(
    "recipe",
    [
        "fixed-rates:rates=1/2/1", "nested:groups=x/x/y", "over-time:temperatures=1/inf",
        "curriculum:form=sequential,difficulty=2/1/3", "rich-first:until=0.25", "dmt:special=first",
        "hinting:hints=second,share=0.2,fade=1", "skill-it:targets=third", "loss-driven",
        "alternating:turns=1/2/1", "temperature+unmixed:order=drawn",
        "uniform+unmixed:optimiser=mt-adamw", "skill-it+unmixed+pcgrad",
        "temperature:cap=20,scale=0.5",
    ],
)  # fmt: skip
def test_every_mix_trains_by_name(tiny: ModuleType, recipe: str) -> None:
    suite = tiny.apart()
    _, _, mix = build(suite, parse(recipe), 0)
    record, _ = tiny.run(suite, mix=mix, epochs=2)
    assert record.cost.steps == 20
    assert all(math.isfinite(loss) for point in record.points for loss in point.train.values())


def test_one_stream_needs_no_mix_and_takes_any(tiny: ModuleType) -> None:
    plain, one = tiny.run(tiny.shared(), mix=Proportional())
    looked, other = tiny.run(tiny.shared(), mix=SkillIt())
    assert all(torch.equal(one.last[n], value) for n, value in other.last.items())
    assert plain.points[-1].score == looked.points[-1].score


def test_mt_adamw_is_told_whose_step_it_is(tiny: ModuleType, monkeypatch) -> None:
    told = []
    at = MTAdamW.at
    monkeypatch.setattr(MTAdamW, "at", lambda self, task: (told.append(task), at(self, task)))
    mix = Unmixed(FixedRates((1, 2, 0)), optimiser="mt-adamw")
    suite = tiny.apart()
    record, watcher = tiny.run(suite, mix=mix)
    schedule = Schedule(mix, {s.name: len(s) for s in suite.train}, 7, 0)
    fed = [schedule.rows(step, schedule.start())[0] for step in range(record.cost.steps)]
    assert told == [suite.train[s].name for ((s, _),) in fed]
    assert set(told) == {"first", "second"}
    _, plain = tiny.run(suite, mix=Unmixed(FixedRates((1, 2, 0))))
    assert not all(torch.equal(plain.last[n], value) for n, value in watcher.last.items())


def test_a_mix_of_ones_own_brings_its_optimiser(tiny: ModuleType) -> None:
    """The loop knows the contract and no mix by name."""
    told, built = [], []

    class Descent(StreamOptimiser):
        def __init__(self, groups, lr):
            super().__init__(groups, {"lr": lr})

        def at(self, stream):
            told.append(stream)

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-group["lr"])

    @dataclass(frozen=True)
    class Descending(Unmixed):
        def optimiser_for(self, groups, streams, *, lr, weight_decay):
            assert streams.names == ("first", "second", "third")
            built.append(Descent(groups, lr))
            return built[-1]

    suite, mix = tiny.apart(), Descending(Uniform())
    check_mix(mix, Streams.of({s.name: len(s) for s in suite.train}))
    built.clear()
    record, watcher = tiny.run(suite, mix=mix)
    assert len(built) == 1
    assert len(told) == record.cost.steps
    assert set(told) == {"first", "second", "third"}
    _, plain = tiny.run(suite, mix=Unmixed(Uniform()))
    assert not all(torch.equal(plain.last[n], value) for n, value in watcher.last.items())
