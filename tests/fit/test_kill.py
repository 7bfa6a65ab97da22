"""A run killed with SIGKILL at any moment, again and again, equals one that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from polytask.fit import FitConfig
from polytask.recipes import Job, train
from polytask.records import Record


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    out = tmp_path_factory.mktemp("killed")
    command = [sys.executable, tiny.__file__, "kill", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def untimed(record: Record) -> list[dict[str, object]]:
    return [{**vars(point), "seconds": 0} for point in record.points]


@pytest.mark.parametrize("name", ["equal", "uncertainty", "dwa", "pcgrad"])
def test_a_killed_run_equals_an_undisturbed_one(killed: Path, tiny: ModuleType, name: str) -> None:
    deaths = json.loads((killed / "kills.json").read_text())[name]
    assert deaths == [True] * len(tiny.deaths(name)), "a run ended before it was killed"
    whole, again = killed / name / "whole", killed / name / "killed"
    for file in ("whole.last.safetensors", "killed.last.safetensors"):
        assert (killed / name / file).exists()
    last = load_file(killed / name / "whole.last.safetensors")
    for key, value in load_file(killed / name / "killed.last.safetensors").items():
        assert value.equal(last[key]), key
    assert (again / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    one, two = Record.load(whole / "record.json"), Record.load(again / "record.json")
    assert repr(untimed(two)) == repr(untimed(one))  # repr: NaN equals NaN
    assert len(one.points) == 3
    assert two.probes == one.probes
    assert len(one.probes) > 1
    assert two.best_per_task == one.best_per_task
    assert two.cost.steps == one.cost.steps == 24


def test_nothing_stays_of_what_the_kills_left(killed: Path, tiny: ModuleType) -> None:
    for name in tiny.KILLED:
        whole, again = killed / name / "whole", killed / name / "killed"
        assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in whole.iterdir())
        assert not list(again.glob("*checkpoint*"))


def test_each_tasks_own_best_survives_kills(killed: Path, tiny: ModuleType) -> None:
    whole, again = killed / "dwa" / "whole" / "best", killed / "dwa" / "killed" / "best"
    assert len(list(whole.iterdir())) == len(tiny.TASKS)
    for file in whole.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_the_command_killed_and_called_again_ends_as_if_nothing_was(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    settings = ["--epochs", "1", "--batch-size", "500", "--checkpoint-seconds", "0"]
    command = [
        *(sys.executable, "-m", "polytask", "fit", "digits2", *settings),
        *("--method", "pcgrad", "--out", str(folder), "--json"),
    ]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    child = start()
    limit = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*")):
        assert child.poll() is None, child.communicate()[1].decode()
        assert time.monotonic() < limit
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (folder / "record.json").exists()
    again = start()
    config = FitConfig(epochs=1, batch_size=500)
    whole = train(Job("digits2", None, "pcgrad", config, tmp_path / "whole"))
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors.decode()
    best = [(tmp_path / f / "best.safetensors").read_bytes() for f in ("whole", "killed")]
    assert best[0] == best[1]
    assert repr(untimed(Record.load(folder / "record.json"))) == repr(untimed(whole))
