"""The loop's decisions: when it stops, what it keeps, how the learning rate falls."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from polytask.errors import RunError, UsageError
from polytask.fit import FitConfig, Meters, load_weights, loop, primary, validate
from polytask.records import Record


def scripted(scores: list[float]) -> Callable[[Mapping[str, float], Mapping[str, float]], float]:
    told: Iterator[float] = iter(scores)
    return lambda values, first: next(told)


NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "patience", "best", "points", "stopped"),
    [
        ([1, 3, 2, 2.5, 2.9, 9], 3, 2, 5, "patience"),
        ([1, 2, 3, 4], 3, 4, 4, "epochs"),
        ([3, 2, 1, 0], 0, 1, 4, "epochs"),
        ([2, 2, 2, 2], 2, 1, 3, "patience"),
        ([NAN, NAN, -5, NAN], 0, 3, 4, "epochs"),
        ([-5, NAN, NAN, NAN], 2, 1, 3, "patience"),
        ([NAN] * 4, 0, 1, 4, "epochs"),
    ],
)
def test_the_best_score_is_kept_and_patience_ends_the_run(
    tiny: ModuleType, scores: list[float], patience: int, best: int, points: int, stopped: str
) -> None:
    suite = tiny.shared()
    record, watcher = tiny.run(
        suite, score=scripted(scores), patience=patience, epochs=len(scores) - (stopped != "epochs")
    )
    assert record.stopped == stopped
    assert [p.epoch for p in record.points] == list(range(1, points + 1))
    assert record.best.epoch == best
    assert record.best == record.points[best - 1]
    # The model that comes back is that of the best point, not of the last.
    now = primary(validate(watcher.model, suite.val, Meters(suite.tasks, True)), suite.tasks)
    assert now == {task: next(iter(v.values())) for task, v in record.best.val.items()}


def test_the_score_is_given_values_now_and_at_first(tiny: ModuleType) -> None:
    calls: list[tuple[dict[str, float], dict[str, float]]] = []

    def score(values: Mapping[str, float], first: Mapping[str, float]) -> float:
        calls.append((dict(values), dict(first)))
        return 0.0

    record, _ = tiny.run(tiny.shared(), score=score)
    points = [{t: next(iter(v.values())) for t, v in p.val.items()} for p in record.points]
    assert calls == [(values, points[0]) for values in points]


def test_each_tasks_own_best_holds_the_encoder_and_its_head(
    tmp_path: Path, tiny: ModuleType
) -> None:
    suite, folder = tiny.shared(), tmp_path / "run"
    record, watcher = tiny.run(suite, folder=folder, per_task_best=True, epochs=6)
    heads = {t: {f"heads.task_{t}.weight", f"heads.task_{t}.bias"} for t in suite.tasks.names}
    shared = watcher.model.state_dict().keys() - set().union(*heads.values())
    steps = {step for step, _ in record.best_per_task.values()}
    assert len(steps) > 1, "tasks must be best at different times for this to prove anything"
    for task in suite.tasks:
        tensors = load_weights(folder, task.name)
        assert tensors.keys() == shared | heads[task.name]
        model = tiny.model(suite)
        left = model.load_state_dict(tensors, strict=False)
        assert left.unexpected_keys == []
        values = validate(model, suite.val, Meters(suite.tasks, True))
        step, value = record.best_per_task[task.name]
        assert primary(values, suite.tasks)[task.name] == value
        history = [p.val[task.name][task.primary.name] for p in record.points]
        assert value == (max if task.primary.direction == "max" else min)(history)
        assert step == record.points[history.index(value)].step
    with pytest.raises(RunError, match=r"nobody\.safetensors cannot be read"):
        load_weights(folder, "nobody")


def test_cosine_falls_from_the_learning_rate_to_about_nothing(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    original = loop.train_step

    def spying(model: Any, balancer: Any, optimiser: Any, *rest: Any) -> Any:
        rates.append(optimiser.param_groups[0]["lr"])
        return original(model, balancer, optimiser, *rest)

    monkeypatch.setattr(loop, "train_step", spying)
    tiny.run(tiny.shared(), schedule="cosine", epochs=10, patience=0)
    assert rates[0] == 1e-2
    assert rates[len(rates) // 2] == pytest.approx(5e-3)
    assert rates[-1] < 1e-4 * 1e-2 * 10
    assert rates == sorted(rates, reverse=True)


def test_an_epoch_has_at_least_so_many_updates(tiny: ModuleType) -> None:
    long, _ = tiny.run(tiny.shared(), epochs=2, min_epoch_steps=11)
    short, _ = tiny.run(tiny.shared(), epochs=2, min_epoch_steps=3)
    assert [p.step for p in long.points] == [11, 22]
    assert [p.step for p in short.points] == [8, 16]


def test_points_hold_the_mean_loss_and_weight_of_the_updates_a_task_was_in(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, float], dict[str, float]]] = []
    original = loop.train_step

    def spying(*arguments: Any) -> Any:
        weights = original(*arguments)
        losses = dict(zip(weights.tasks, weights.losses_K.tolist(), strict=True))
        seen.append((losses, dict(weights)))
        return weights

    monkeypatch.setattr(loop, "train_step", spying)
    record, _ = tiny.run(tiny.shared(missing=0.7), "uncertainty", batch_size=3, epochs=2)
    assert any(len(losses) < 4 for losses, _ in seen)
    steps = record.points[0].step
    for point, part in zip(record.points, (seen[:steps], seen[steps:]), strict=True):
        for task in record.tasks:
            for mine, at in ((point.train, 0), (point.weights, 1)):
                values = [update[at][task] for update in part if task in update[at]]
                assert mine[task] == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_task_and_update(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.train_step

    def breaking(model: Any, balancer: Any, *rest: Any) -> Any:
        if balancer.step == 13:
            with torch.no_grad():
                model.head("c").bias.fill_(torch.nan)
        return original(model, balancer, *rest)

    monkeypatch.setattr(loop, "train_step", breaking)
    with pytest.raises(RunError, match=r"At step 13 the loss of task 'c' is nan"):
        tiny.run(tiny.shared(missing=0.0))


def test_a_run_in_bfloat16_trains_and_validates(tiny: ModuleType) -> None:
    record, watcher = tiny.run(tiny.shared(), "pcgrad", precision="bf16", epochs=8)
    assert all(v.dtype == torch.float32 for v in watcher.last.values())
    assert record.points[-1].train["a"] < record.points[0].train["a"]


@pytest.mark.parametrize("method", ["equal", "uncertainty", "dwa", "pcgrad"])
@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
def test_training_lowers_every_loss(tiny: ModuleType, name: str, method: str) -> None:
    suite = {"shared": tiny.shared, "apart": tiny.apart, "ragged": tiny.ragged}[name]()
    record, _ = tiny.run(suite, method, epochs=12, patience=0)
    for task in record.tasks:
        assert record.points[-1].train[task] < record.points[0].train[task]
    assert record.engine
    assert 0 < record.cost.waiting < 1
    assert record.cost.seconds > 0
    assert record.cost.validation_seconds > 0


def test_the_record_survives_saving(tmp_path: Path, tiny: ModuleType) -> None:
    record, _ = tiny.run(tiny.shared(), folder=tmp_path / "run")
    assert Record.load(tmp_path / "run" / "record.json") == record


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"epochs": 0}, "epochs is 0; give a value >= 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"min_epoch_steps": 0}, "min_epoch_steps is 0"),
        ({"patience": -1}, "patience is -1; give a value >= 0"),
        ({"probes": -1}, "probes is -1"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds is -1"),
        ({"checkpoint_seconds": NAN}, "checkpoint_seconds is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": NAN}, "weight_decay is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0}, "lr is 0; give a learning rate > 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": NAN}, "lr is nan"),
        ({"clip": 0}, "clip is 0; give a norm > 0"),
        ({"schedule": "linear"}, "schedule is 'linear'; give 'constant' or 'cosine'"),
        ({"precision": "fp16"}, "precision is 'fp16'; give 'float32' or 'bf16'"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate is 9, more than the 8 rows"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        FitConfig(**wrong)
