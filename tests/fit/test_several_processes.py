"""Two processes that torchrun starts equal one process on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from polytask.errors import RunError
from polytask.records import Record


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    """A folder with what two processes made of every scenario, started once for all tests."""
    out = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command = [sys.executable, *launch, "--rdzv-endpoint", "127.0.0.1:0", "--local-addr",
               "127.0.0.1", tiny.__file__, "ranks", str(out)]  # fmt: skip
    own = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return out


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name",
    [
        "equal",
        "uncertainty",
        "pcgrad",
        "accumulate",
        "apart",
        "ragged",
        "driven",
        "flat",
        "sampled",
    ],
)
def test_two_processes_equal_one(two: Path, tiny: ModuleType, name: str) -> None:
    record, watcher = tiny.scenario(name, None)
    last = load_file(two / f"{name}.last.safetensors")
    first = tiny.model(tiny.shared()).state_dict() if name == "equal" else {}
    assert not any(value.equal(first[key]) for key, value in last.items() if key in first)
    for key, value in watcher.last.items():
        torch.testing.assert_close(last[key], value, rtol=1e-9, atol=1e-10, msg=key)
    other = Record.load(two / name / "record.json")
    assert other.cost.steps == record.cost.steps
    for one, point in zip(record.points, other.points, strict=True):
        assert point.train == pytest.approx(one.train, rel=1e-9), "losses are of the whole batch"
        assert point.weights == pytest.approx(one.weights, rel=1e-9)
        for task, metrics in one.val.items():
            assert point.val[task] == pytest.approx(metrics, rel=1e-6, nan_ok=True)


@pytest.mark.usefixtures("float64")
def test_the_scenarios_have_what_makes_them_hard(tiny: ModuleType) -> None:
    """A last batch with fewer rows than processes, and tasks that one process alone sees."""
    suite = tiny.shared(41, 0.6)
    assert 41 % tiny.SCENARIOS["pcgrad"]["batch_size"] == 1
    from polytask.fit import Feed
    from polytask.mix import Proportional, Schedule

    schedule = Schedule(Proportional(), [41], 4, 0)
    feed = Feed(suite.train, suite.tasks, schedule)
    cursors_S, alone, absent = schedule.start(), 0, 0
    for step in range(11):
        drawn, _ = schedule.rows(step, cursors_S)
        fed, cursors_S = feed.step(step, cursors_S)
        halves = [feed.tables[0].counts(drawn[0][1][rank::2]) for rank in range(2)]
        alone += halves[0].keys() != halves[1].keys()
        absent += len(fed.counts) < len(suite.tasks)
    assert alone > 2
    assert absent > 0


def test_interrupted_and_taken_up_again_with_dropout_of_its_own_in_every_process(
    two: Path,
) -> None:
    whole, resumed = load_file(two / "whole.last.safetensors"), two / "resumed.last.safetensors"
    for key, value in load_file(resumed).items():
        assert value.equal(whole[key]), key
    best = [(two / folder / "best.safetensors").read_bytes() for folder in ("whole", "resumed")]
    assert best[0] == best[1]
    draws = json.loads((two / "draws.json").read_text())
    assert draws[0] != draws[1]


@pytest.mark.usefixtures("float64")
def test_a_checkpoint_of_two_processes_is_not_taken_up_by_one(two: Path, tiny: ModuleType) -> None:
    expected = r"is of 2 processes, this run has 1\. Start 2, or delete checkpoint\.json"
    with pytest.raises(RunError, match=expected):
        tiny.run(tiny.shared(41), "uncertainty", two / "left", dropout=0.3)


def test_batch_statistics_are_refused(two: Path) -> None:
    text = (two / "batchnorm.txt").read_text()
    assert text.startswith("UsageError: Layer 'encoder.1' normalises over the batch")
    assert "Use GroupNorm or LayerNorm" in text
