"""One run from a description: built from its seed alone, scored as said, tested once."""

import math
from pathlib import Path

import pytest
import torch

from polytask.errors import RunError
from polytask.fit import FitConfig
from polytask.parsing import parse
from polytask.recipes import Job, build, load_suite, score_for, train
from polytask.recipes import test as read_test_split
from polytask.tasks import Binary, Regression, Task, TaskSet

from .conftest import CONFIG

TASKS = TaskSet([Task("up", Binary()), Task("down", Regression())])


def test_a_job_survives_json():
    job = Job("digits2", ("left",), "dwa", FitConfig(lr=0.1), Path("a/b"), {"left": 0.5}, "single")
    assert Job.from_json(job.to_json()) == job


def test_first_weights_depend_on_the_seed_alone(people: Path):
    suite = load_suite(str(people))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, _, _ = build(suite, parse("equal"), seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # whoever calls it keeps their own stream
    torch.rand(3)
    same, _, _ = build(suite, parse("pcgrad"), seed=1)
    other, _, _ = build(suite, parse("equal"), seed=2)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_one_task_is_scored_by_its_metric_signed():
    up, down = TASKS.only(["up"]), TASKS.only(["down"])
    assert score_for(up, None)({"up": 0.7}, {"up": 0.1}) == 0.7
    assert score_for(down, None)({"down": 0.7}, {"down": 0.1}) == -0.7


def test_several_tasks_are_scored_by_delta_m():
    score = score_for(TASKS, {"up": 0.5, "down": 2.0})
    assert score({"up": 0.6, "down": 1.0}, {}) == pytest.approx((20 + 50) / 2)
    alone = score_for(TASKS, None)  # against its own first validation
    assert alone({"up": 0.6, "down": 1.0}, {"up": 0.5, "down": 2.0}) == pytest.approx(35)


def test_a_task_that_begins_at_zero_still_counts():
    score = score_for(TASKS, None)
    first = {"up": 0.0, "down": 2.0}
    assert score({"up": 0.3, "down": 2.0}, first) == pytest.approx((30 + 0) / 2)
    assert score({"up": 0.0, "down": 1.0}, first) == pytest.approx((0 + 50) / 2)
    assert not math.isnan(score(first, first))


def test_the_test_split_is_read_once_and_only_after_training(people: Path, tmp_path: Path):
    job = Job(str(people), ("sick",), "equal", CONFIG, tmp_path / "run")
    with pytest.raises(RunError, match="holds no finished run; train it before testing it"):
        read_test_split(job)
    record = train(job)
    assert record.tasks == ("sick",)
    scores = read_test_split(job)
    assert 0 < scores["sick"]["AUROC"] < 1
    kept = tmp_path / "run" / "test.json"
    kept.write_text(kept.read_text().replace(str(scores["sick"]["AUROC"]), "0.125"))
    assert read_test_split(job)["sick"]["AUROC"] == 0.125  # the file, not another reading


def test_test_scores_are_those_of_the_best_weights(people: Path, tmp_path: Path):
    job = Job(str(people), None, "equal", CONFIG, tmp_path / "run")
    train(job)
    scores = read_test_split(job)
    from safetensors.torch import load_file

    suite = load_suite(str(people))
    model, _, _ = build(suite, parse("equal"), CONFIG.seed)
    model.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"))
    model.eval()
    (stream,) = suite.test
    with torch.no_grad():
        out = model(stream.inputs, tasks=("dose",))["dose"]
    kind = suite.tasks.named("dose").kind
    error_N = out[:, 0] * kind.scale + kind.mean - stream.targets["dose"]
    assert scores["dose"]["RMSE"] == pytest.approx(float(error_N.square().mean().sqrt()), rel=1e-5)
