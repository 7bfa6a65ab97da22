"""A finished run says who used which expert: the gates' means over validation rows, by hand."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from polytask.fit import FitConfig, fit
from polytask.fit.experts import used_experts
from polytask.parsing import parse
from polytask.recipes.train import build
from polytask.records import Record
from polytask.share import Trace


@pytest.fixture
def trained(tmp_path, tiny: ModuleType):
    suite = tiny.apart()
    model, balance, mix = build(suite, parse("ple"), 0)
    config = FitConfig(epochs=1, batch_size=16, min_epoch_steps=1)
    record = fit(
        suite, model, balance, mix, config, lambda v, f: sum(v.values()), method="ple",
        folder=tmp_path,
    )  # fmt: skip
    return suite, model, record, tmp_path


def test_the_record_holds_what_the_best_weights_take(trained) -> None:
    suite, model, record, folder = trained
    assert {(g.level, g.reader) for g in record.experts} == {
        *((level, task) for level in (0, 1) for task in suite.tasks.names), (0, None)
    }  # fmt: skip
    model.eval()
    for stream in suite.val:
        trace = Trace()
        tasks = [t for t in model.tasks if t in stream.targets]
        with torch.no_grad():
            model(stream.inputs, tasks=tasks, trace=trace)
        weights = {
            (gate.level, reader): gate.weights_RGE[:, g].double().mean(0).tolist()
            for gate in trace.gates
            for g, reader in enumerate(gate.readers)
        }
        for gate in record.experts:
            if gate.reader in tasks:
                assert gate.mean == pytest.approx(weights[gate.level, gate.reader], abs=1e-6)
                assert gate.rows == len(stream)
    assert Record.load(folder / "record.json") == record


def test_a_long_stream_is_looked_at_in_part(trained, monkeypatch) -> None:
    suite, model, _, _ = trained
    monkeypatch.setattr("polytask.fit.experts.ROWS", 8)
    use = used_experts(model, suite.val[:1], batch_size=4, device="cpu")
    assert {gate.rows for gate in use.gates} == {8}


def test_a_model_without_experts_is_asked_once(tiny: ModuleType) -> None:
    suite = tiny.apart()
    model, _, _ = build(suite, parse("cross-stitch"), 0)
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert used_experts(model, suite.val, 4, "cpu").gates == ()
    assert len(calls) == 1
    hard, _, _ = build(suite, parse("hard"), 0)
    hard.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert used_experts(hard, suite.val, 4, "cpu").gates == ()
    assert len(calls) == 1
