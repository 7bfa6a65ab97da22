"""Validation measures every row once, whatever the batch size, and leaves the model as it was."""

import math
from types import ModuleType

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.fit import LeftOut, Meters, primary, validate
from polytask.suites import Stream


@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
def test_metrics_are_those_of_all_rows_at_once(tiny: ModuleType, name: str) -> None:
    suite = {"shared": tiny.shared, "apart": tiny.apart, "ragged": tiny.ragged}[name]()
    model = tiny.model(suite).eval()
    found = {size: validate(model, suite.val, Meters(suite.tasks), size) for size in (1, 7, 1000)}
    for task in suite.tasks:
        for metric in task.kind.metrics():
            meter = metric.build()
            for stream in suite.val:
                if task.name in stream.targets:
                    with torch.no_grad():
                        output = model(stream.inputs, tasks=[task.name])[task.name]
                    meter.update(*task.kind.scores(output, stream.targets[task.name]))
            expected = float(meter.compute())
            assert math.isfinite(expected)
            for values in found.values():
                assert values[task.name][metric.name] == pytest.approx(expected, rel=1e-4), (
                    task.name, metric.name,
                )  # fmt: skip


def test_dropout_is_off_and_every_layer_gets_its_mode_back(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite, dropout=0.9).train()
    model.head("a").eval()  # frozen by its owner
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    state = torch.get_rng_state()
    one, two = (validate(model, suite.val, Meters(suite.tasks)) for _ in range(2))
    assert one == two
    assert torch.get_rng_state().equal(state)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_modes_come_back_after_an_error_too(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite).train()
    model.encoder = nn.Sequential(nn.Linear(99, 8))
    with pytest.raises(RuntimeError):
        validate(model, suite.val, Meters(suite.tasks))
    assert all(module.training for module in model.modules() if module is not model.encoder)


def test_without_a_label_or_without_two_classes_there_is_no_number(tiny: ModuleType) -> None:
    suite = tiny.shared()
    stream = suite.val[0]
    targets = dict(stream.targets)
    targets["a"] = torch.ones_like(targets["a"])
    targets["b"] = torch.full_like(targets["b"], -100)
    changed = Stream(stream.name, stream.inputs, targets)
    values = validate(tiny.model(suite), [changed], Meters(suite.tasks))
    assert math.isnan(values["a"]["AUROC"])
    assert math.isfinite(values["a"]["accuracy"])
    assert all(math.isnan(value) for value in values["b"].values())
    assert math.isfinite(values["c"]["RMSE"])


def test_meters_forget_the_validation_before(tiny: ModuleType) -> None:
    suite = tiny.shared()
    meters, model = Meters(suite.tasks, primary_only=True), tiny.model(suite)
    first = validate(model, suite.val, meters)
    none = validate(model, [], meters)
    assert all(math.isnan(v) for values in none.values() for v in values.values())
    assert validate(model, suite.val, meters) == first
    assert primary(first, suite.tasks) == {
        task.name: first[task.name][task.primary.name] for task in suite.tasks
    }
    assert all(len(values) == 1 for values in first.values())


def test_bfloat16_measures_about_the_same(tiny: ModuleType) -> None:
    suite = tiny.shared()
    model = tiny.model(suite)
    exact = validate(model, suite.val, Meters(suite.tasks))
    rough = validate(model, suite.val, Meters(suite.tasks), precision="bf16")
    assert rough["c"] != exact["c"]
    for task, values in exact.items():
        assert rough[task] == pytest.approx(values, rel=0.1, abs=0.1)


@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
@pytest.mark.parametrize("size", [5, 1000])
def test_parts_are_left_out_of_the_metric(tiny: ModuleType, name: str, size: int) -> None:
    suite = {"shared": tiny.shared, "apart": tiny.apart, "ragged": tiny.ragged}[name]()
    model, parts = tiny.model(suite).eval(), 3
    found = validate(model, suite.val, LeftOut(suite.tasks, parts), size)
    whole = primary(validate(model, suite.val, Meters(suite.tasks)), suite.tasks)
    for task in suite.tasks:
        values = found[task.name]
        assert list(values) == ["all", "0", "1", "2"]
        assert values["all"] == pytest.approx(whole[task.name])
        for part in range(parts):
            meter, seen = task.primary.build(), 0
            for stream in suite.val:
                if task.name not in stream.targets:
                    continue
                kept_N = (torch.arange(len(stream)) + seen) % parts != part
                seen += len(stream)
                fewer = stream.take(kept_N.nonzero().squeeze(1))
                with torch.no_grad():
                    output = model(fewer.inputs, tasks=[task.name])[task.name]
                meter.update(*task.kind.scores(output, fewer.targets[task.name]))
            assert values[str(part)] == pytest.approx(float(meter.compute()), rel=1e-4)


def test_one_part_tells_no_error(tiny: ModuleType) -> None:
    with pytest.raises(UsageError, match="parts is 1"):
        LeftOut(tiny.shared().tasks, 1)
