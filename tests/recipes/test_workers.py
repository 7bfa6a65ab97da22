"""Workers: errors arrive as they were raised, none outlives its parent."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polytask.errors import DataError, PolytaskError, UsageError
from polytask.recipes import Job
from polytask.recipes.workers import Call, Pool

from .conftest import CONFIG


def fail(*_: object) -> list[Call]:
    pytest.fail("nothing gets that far")


def refuse(call: Call, error: PolytaskError) -> list[Call]:
    raise error


@pytest.mark.parametrize(
    ("job", "kind", "said"),
    [
        ({"recipe": "pcgrat"}, UsageError, r"^Run one: Unknown method 'pcgrat'\. Did you mean"),
        ({"suite": "absent.csv"}, UsageError, r"^Run one: Unknown suite 'absent\.csv'"),
    ],
)
def test_an_error_is_raised_as_it_was_there(tmp_path, people, job, kind, said):
    given = {"suite": str(people), "recipe": "equal", **job}
    call = Call("train", Job(tasks=None, config=CONFIG, folder=tmp_path / "one", **given))
    with Pool(1) as pool, pytest.raises(kind, match=said):
        pool.run([call], fail, fail, refuse)


def test_broken_data_is_a_data_error(tmp_path, people):
    (tmp_path / "people.csv").write_text("x,y,town,sick,colour,dose\n1,2,n,1,red,3\n" * 1)
    declared = tmp_path / "people.yaml"
    declared.write_text(people.read_text())
    call = Call("train", Job(str(declared), None, "equal", CONFIG, tmp_path / "one"))
    with Pool(1) as pool, pytest.raises(DataError, match=r"^Run one: .*people\.csv"):
        pool.run([call], fail, fail, refuse)


def test_one_worker_serves_many_calls_lower_phases_first(tmp_path, people, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    job = Job(str(people), ("sick",), "equal", CONFIG, tmp_path / "a")
    later = Job(str(people), ("dose",), "equal", CONFIG, tmp_path / "b")
    order = []

    def done(call: Call) -> list[Call]:
        order.append((call.verb, call.job.folder.name))
        return [Call("test", call.job, 0)] if call.verb == "train" else []

    with Pool(1) as pool:
        pool.run([Call("train", later, 2), Call("train", job, 1)], lambda *_: None, done, refuse)
        assert len(started) == 1
        assert started[0].poll() is None
    assert started[0].poll() is not None
    assert order == [("train", "a"), ("test", "a"), ("train", "b"), ("test", "b")]


def test_a_worker_ends_in_the_middle_of_a_run_when_its_parent_is_gone(tmp_path: Path, people):
    config = CONFIG.__class__(epochs=100000, patience=0, batch_size=32)
    job = Job(str(people), None, "equal", config, tmp_path / "long")
    worker = subprocess.Popen(
        [sys.executable, "-m", "polytask.recipes.worker", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        worker.stdin.write(json.dumps({"verb": "train", "job": job.to_json()}) + "\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["event"] == "step"
        begun = time.monotonic()
        worker.stdin.close()  # what happens when the parent is killed
        assert worker.wait(timeout=10) == 0
        assert time.monotonic() - begun < 2
    assert not (tmp_path / "long" / "record.json").exists()
