"""The comparison: fair tuning, gains as defined, the test split read once, resumable runs.

Everything is recomputed from the files that the runs left, by hand.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from polytask.errors import RunError, UsageError
from polytask.recipes import GRID, PHASES, RESULT, Plan, compare, workers
from polytask.records import file_name

from .conftest import CONFIG, Compared, Seen, write_suite

MODULE = sys.modules["polytask.recipes.compare"]  # the package's name for it is the function
TASKS = ("sick", "colour", "dose")
MODELS = ("single--sick", "single--colour", "single--dose", "equal", "pcgrad")


def folder(plan: Plan, model: str, setting: tuple[float, float], seed: int) -> Path:
    return plan.out / "runs" / f"{model}--lr{setting[0]:g}-wd{setting[1]:g}--s{seed}"


def picked(result: dict[str, Any], model: str) -> tuple[float, float]:
    method, _, task = model.partition("--")
    entry = result["tuning"]["picked"][method][task or "*"]
    return entry["lr"], entry["weight_decay"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def times(root: Path) -> dict[str, int]:
    """Return when each run's record and test scores were written."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for name in ("record.json", "test.json")
        for path in root.rglob(name)
    }


@pytest.fixture
def copied(compared: Compared, tmp_path: Path) -> Plan:
    """The shared comparison's plan, in a copy of its folder."""
    shutil.copytree(compared.plan.out, tmp_path / "out")
    return replace(compared.plan, out=tmp_path / "out")


def test_result_has_the_promised_form(compared: Compared):
    result = compared.result
    assert result == read(compared.plan.out / RESULT)
    assert result["suite"] == "people"
    assert result["seeds"] == [0, 1]
    assert list(result["methods"]) == ["single", "equal", "pcgrad"]
    metrics = {"sick": "AUROC", "colour": "accuracy", "dose": "RMSE"}
    for name, method in result["methods"].items():
        assert tuple(method["tasks"]) == TASKS
        for task, found in method["tasks"].items():
            assert found["metric"] == metrics[task]
            assert len(found["values"]) == 2
            if name == "single":
                assert found["verdict"] == "reference"
                assert (found["gain"], found["interval"]) == (0, None)
            else:
                assert found["verdict"] in ("gained", "lost", "undecided")
                low, high = found["interval"]
                assert low <= found["gain"] <= high
                assert found["why"]
        assert {"seconds", "parameters", "peak_memory"} <= set(method["cost"])
    assert result["command"] == "polytask compare people.yaml"
    assert result["about"]["licence"] == "not stated"
    assert [task["unit"] for task in result["tasks"]][-1] == "mg"
    # every number a person reads in the report can be found again
    for method, per_seed in result["methods"].items():
        runs = per_seed["runs"]
        for paths in runs.values() if method == "single" else [runs]:
            assert list(paths) == ["0", "1"]
            assert all(
                (compared.plan.out / path / "record.json").exists() for path in paths.values()
            )


def test_values_gains_intervals_and_verdicts_follow_from_the_test_scores(compared: Compared):
    plan, result = compared.plan, compared.result

    def scores(model: str, task: str) -> list[float]:
        setting = picked(result, model)
        metric = result["methods"]["single"]["tasks"][task]["metric"]
        return [read(folder(plan, model, setting, s) / "test.json")[task][metric] for s in (0, 1)]

    for method in ("equal", "pcgrad"):
        per_seed = []
        for task in TASKS:
            single, joint = scores(f"single--{task}", task), scores(method, task)
            sign = -1 if task == "dose" else 1  # an error is better when it is smaller
            gains = [100 * sign * (j - s) / abs(s) for s, j in zip(single, joint, strict=True)]
            found = result["methods"][method]["tasks"][task]
            assert found["values"] == joint
            assert result["methods"]["single"]["tasks"][task]["values"] == single
            assert found["gain"] == pytest.approx(np.mean(gains))
            low, high = scipy.stats.t.interval(0.95, 1, np.mean(gains), scipy.stats.sem(gains))
            assert found["interval"] == pytest.approx([low, high])
            expected = "gained" if low > 0 else "lost" if high < 0 else "undecided"
            assert found["verdict"] == expected
            per_seed.append(gains)
        deltas = np.mean(per_seed, axis=0)
        assert result["methods"][method]["delta_m"] == pytest.approx(np.mean(deltas))
        assert result["methods"][method]["delta_m_interval"] == pytest.approx(
            scipy.stats.t.interval(0.95, 1, np.mean(deltas), scipy.stats.sem(deltas))
        )


def test_cost_is_of_all_single_task_models_together(compared: Compared):
    plan, result = compared.plan, compared.result

    def parameters(model: str) -> int:
        path = folder(plan, model, picked(result, model), 0) / "record.json"
        return read(path)["cost"]["parameters"]

    together = sum(parameters(f"single--{task}") for task in TASKS)
    assert result["methods"]["single"]["cost"]["parameters"] == together
    cost = result["methods"]["equal"]["cost"]
    assert cost["parameters_ratio"] == pytest.approx(parameters("equal") / together)
    assert 1 / 3 < cost["parameters_ratio"] < 1


def test_every_model_tries_the_same_settings_with_the_same_seed(compared: Compared):
    plan = compared.plan
    tried: dict[str, set[tuple[str, str]]] = {model: set() for model in MODELS}
    for path in (plan.out / "runs").iterdir():
        model, setting, seed = path.name.rsplit("--", 2)
        assert (path / "record.json").exists()
        tried[model].add((setting, seed))
    for model in MODELS:
        grid = {(f"lr{lr:g}-wd{wd:g}", "s0") for lr, wd in GRID[:2]}
        lr, wd = picked(compared.result, model)
        assert tried[model] == grid | {(f"lr{lr:g}-wd{wd:g}", "s1")}
    assert compared.result["tuning"]["grid"] == [
        {"lr": lr, "weight_decay": wd} for lr, wd in GRID[:2]
    ]


def test_the_pick_is_the_best_validation_score(compared: Compared):
    plan, result = compared.plan, compared.result
    primary = {"sick": "AUROC", "colour": "accuracy", "dose": "RMSE"}
    reference = {}
    for task in TASKS:
        sign = -1 if task == "dose" else 1
        best = {
            setting: max(
                sign * point["val"][task][primary[task]]
                for point in read(folder(plan, f"single--{task}", setting, 0) / "record.json")[
                    "points"
                ]
            )
            for setting in GRID[:2]
        }
        assert picked(result, f"single--{task}") == max(best, key=lambda s: best[s])
        reference[task] = sign * max(best.values())
    for method in ("equal", "pcgrad"):
        best = {}
        for setting in GRID[:2]:
            record = read(folder(plan, method, setting, 0) / "record.json")
            deltas = [
                np.mean(
                    [
                        100
                        * (-1 if t == "dose" else 1)
                        * (point["val"][t][primary[t]] - reference[t])
                        / abs(reference[t])
                        for t in TASKS
                    ]
                )
                for point in record["points"]
            ]
            assert record["best"]["score"] == pytest.approx(max(deltas))
            best[setting] = max(deltas)
        assert picked(result, method) == max(best, key=lambda s: best[s])


def test_the_test_split_is_read_by_final_runs_alone(compared: Compared):
    plan, result = compared.plan, compared.result
    tested = {path.parent for path in plan.out.rglob("test.json")}
    assert tested == {folder(plan, m, picked(result, m), s) for m in MODELS for s in (0, 1)}
    assert len(list(plan.out.rglob("record.json"))) == len(tested) + 5  # one setting each lost


def test_what_a_person_sees_adds_up(compared: Compared):
    seen = compared.seen
    assert seen.runs == [6, 4, 5, 10]  # 3 single x 2 settings, 2 methods x 2, 5 x 1 seed, 5 x 2
    assert len(PHASES) == 4
    assert [sum(phase == p for phase, _ in seen.fresh) for p in range(4)] == seen.runs
    assert seen.kept == []
    # no method is tuned before all single-task models are: they are its reference
    phases = [phase for phase, _ in seen.fresh]
    assert max(i for i, p in enumerate(phases) if p == 0) < phases.index(1)


def test_giving_it_again_trains_nothing(copied: Plan, compared: Compared, monkeypatch):
    before = times(copied.out)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started a process"))
    seen = Seen()
    again = compare(copied, seen)
    assert times(copied.out) == before
    assert seen.fresh == []
    assert len(seen.kept) == sum(seen.runs)
    assert again["methods"] == compared.result["methods"]


def test_fewer_seeds_need_no_training_and_one_gives_no_interval(copied: Plan, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started a process"))
    result = compare(replace(copied, seeds=1), Seen())
    assert result["seeds"] == [0]
    for found in result["methods"]["equal"]["tasks"].values():
        assert found["interval"] is None
        assert found["verdict"] == "undecided"


def test_methods_and_seeds_can_be_added_in_any_order(copied: Plan, compared: Compared):
    before = times(copied.out)
    seen = Seen()
    more = replace(copied, methods=("dwa", "pcgrad", "equal"), seeds=3)
    result = compare(more, seen)
    after = times(copied.out)
    assert {name: after[name] for name in before} == before
    trained = [name for phase, name in seen.fresh if phase != 3]
    # dwa: two settings and two more seeds; the five others: one more seed
    assert sorted(name.split("--lr")[0] for name in trained) == sorted([*["dwa"] * 4, *MODELS])
    assert list(result["methods"]) == ["single", "dwa", "pcgrad", "equal"]
    for name in ("single", "equal", "pcgrad"):
        for task in TASKS:
            old = compared.result["methods"][name]["tasks"][task]["values"]
            assert result["methods"][name]["tasks"][task]["values"][:2] == old


def test_a_worker_that_dies_is_named_and_fewer_processes_finish_with_the_same_result(
    compared: Compared, tmp_path: Path, monkeypatch
):
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def note(*args: Any, **kwargs: Any) -> subprocess.Popen:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", note)
    plan = replace(compared.plan, out=tmp_path)
    killer = Seen(on_step=lambda: os.kill(started[0].pid, signal.SIGKILL))
    with pytest.raises(RunError, match=r"^Run \S+--s\d: .*killed by signal 9.*same command again"):
        compare(plan, killer)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started), "a worker is left running"
    kept = times(tmp_path)
    assert len(kept) < sum(compared.seen.runs) / 2
    whole = compare(replace(plan, processes=1), Seen())
    assert {name: times(tmp_path)[name] for name in kept} == kept
    assert whole["tuning"] == compared.result["tuning"]
    for name, method in compared.result["methods"].items():
        assert whole["methods"][name]["tasks"] == method["tasks"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tune": 3}, "its tune is 2, this one's is 3"),
        ({"epochs": 5}, r"its config\.epochs is 2, this one's is 5"),
        ({"clip": 1.0}, r"its config\.clip is None, this one's is 1\.0"),
    ],
)
def test_another_comparisons_folder_is_refused(compared: Compared, change: Any, said: str):
    before = times(compared.plan.out)
    if "tune" in change:
        plan = replace(compared.plan, **change)
    else:
        plan = replace(compared.plan, config=replace(compared.plan.config, **change))
    with pytest.raises(RunError, match=rf"holds another comparison: {said}\. Give another folder"):
        compare(plan, Seen())
    assert times(compared.plan.out) == before


def test_changed_data_is_refused(compared: Compared, tmp_path: Path):
    changed = write_suite(tmp_path, last_dose=1.6)  # one cell, the same name and the same rows
    with pytest.raises(RunError, match="holds another comparison: its data is"):
        compare(replace(compared.plan, suite=str(changed)), Seen())


def test_how_often_runs_save_themselves_changes_nothing(copied: Plan):
    seen = Seen()
    compare(replace(copied, config=replace(copied.config, checkpoint_seconds=5.0)), seen)
    assert seen.fresh == []


def test_a_setting_that_diverges_is_tried_and_never_picked(people: Path, tmp_path, monkeypatch):
    """The grid's second learning rate is absurd: the comparison ends, by the first one."""
    grid = ((1e-3, 1e-2), (1e30, 1e-2))
    monkeypatch.setattr(MODULE, "GRID", grid)
    plan = Plan(str(people), ("equal",), 1, 2, CONFIG, tmp_path / "out", processes=2)
    tuning = compare(plan, Seen())["tuning"]
    picks = [entry for method in tuning["picked"].values() for entry in method.values()]
    assert picks == [{"lr": 1e-3, "weight_decay": 1e-2}] * 4
    assert len(tuning["stopped"]) == 4
    assert all("At step" in text and "loss of task" in text for text in tuning["stopped"])
    again = Seen()
    assert compare(plan, again)["tuning"]["stopped"] == tuning["stopped"]
    assert again.fresh == []


def test_every_setting_diverging_is_an_error(people: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "GRID", ((1e30, 1e-2),))
    plan = Plan(str(people), ("equal",), 1, 1, CONFIG, tmp_path / "out", processes=2)
    with pytest.raises(
        RunError, match=r"Every setting tried stops with an error.*At step \d+ the loss of"
    ):
        compare(plan, Seen())


HUGE = "fixed:weights=1e39/1/1"  # infinite in float32: every setting diverges
SHORT = "fixed:weights=1/2"  # two weights for three tasks


def test_methods_that_fail_are_left_out_with_their_reasons(copied: Plan, compared: Compared):
    seen = Seen()
    result = compare(replace(copied, methods=("equal", HUGE, SHORT, "pcgrad")), seen)
    assert list(result["methods"]) == ["single", "equal", "pcgrad"]
    assert result["methods"] == compared.result["methods"]
    assert list(result["failed"]) == [HUGE, SHORT]
    assert "Every setting tried stops with an error" in result["failed"][HUGE]
    assert "the loss of task 'sick' is nan" in result["failed"][HUGE]
    assert "2 weights" in result["failed"][SHORT]
    assert len(result["tuning"]["stopped"]) == 4
    assert set(result["tuning"]["picked"]) == {"single", "equal", "pcgrad"}
    assert result == read(copied.out / RESULT)
    # every setting is tried, and neither the other seed nor the test split is waited for
    begun = [6, 8, 7, 14]
    assert seen.runs == begun
    for phase in range(4):
        told = sum(p == phase for p, _ in [*seen.fresh, *seen.kept])
        assert told == begun[phase] - sum(dropped[phase] for _, dropped in seen.dropped)
    assert sorted(name for name, dropped in seen.dropped if any(dropped)) == [SHORT, HUGE]
    # what diverged is known; what stopped with another error is tried again
    again = Seen()
    assert compare(replace(copied, methods=(HUGE, SHORT)), again)["failed"] == result["failed"]
    assert {name.split("--lr")[0] for _, name in again.fresh} == {file_name(SHORT)}


def test_a_method_whose_other_seed_stops_is_left_out_and_tried_again(
    copied: Plan, compared: Compared
):
    """No seed is dropped: the mean of those that are left would speak for all."""
    broken = folder(copied, "pcgrad", picked(compared.result, "pcgrad"), 1)
    shutil.rmtree(broken)
    broken.write_text("in the way")
    seen = Seen()
    result = compare(copied, seen)
    assert list(result["methods"]) == ["single", "equal"]
    assert result["methods"]["equal"] == compared.result["methods"]["equal"]
    assert broken.name in result["failed"]["pcgrad"]
    assert seen.dropped == [("pcgrad", [0, 0, 1, 1])]
    broken.unlink()
    mended = compare(copied, Seen())
    assert mended["failed"] == {}
    old = compared.result["methods"]["pcgrad"]["tasks"]
    assert mended["methods"]["pcgrad"]["tasks"] == old


def test_a_seed_that_diverged_is_not_trained_again(copied: Plan, compared: Compared, monkeypatch):
    """With what another seed left behind, the method is left out without a process."""
    run = folder(copied, "equal", picked(compared.result, "equal"), 1)
    shutil.rmtree(run)
    run.mkdir()
    (run / "diverged.json").write_text(json.dumps({"text": "At step 7 the loss is nan"}))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started a process"))
    result = compare(copied, Seen())
    assert result["failed"] == {"equal": "At step 7 the loss is nan"}
    assert list(result["methods"]) == ["single", "pcgrad"]


def test_a_single_task_model_that_fails_ends_the_comparison(copied: Plan, compared: Compared):
    broken = folder(copied, "single--dose", picked(compared.result, "single--dose"), 1)
    shutil.rmtree(broken)
    broken.write_text("in the way")
    with pytest.raises(RunError, match=rf"Run {broken.name}: "):
        compare(copied, Seen())


def test_substitutes_are_counted_over_seeds(copied: Plan, compared: Compared):
    for seed, counts in ((0, {"A: b": 3}), (1, {"A: b": 4, "A: c": 1})):
        path = folder(copied, "pcgrad", picked(compared.result, "pcgrad"), seed) / "record.json"
        path.write_text(json.dumps(read(path) | {"notes": counts}))
    methods = compare(copied, Seen())["methods"]
    assert methods["pcgrad"]["notes"] == {"A: b": 7, "A: c": 1}
    assert methods["equal"]["notes"] == {}


def test_two_commands_in_one_folder(copied: Plan):
    """The second is refused while the first lives; one that was killed leaves nothing behind."""
    holds = (
        "import sys, time\nfrom pathlib import Path\nfrom polytask.lock import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", holds, str(copied.out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(RunError, match=rf"working in .*\(process {first.pid} on .*another fol"):
            compare(copied, Seen())
        first.kill()
    assert compare(copied, Seen())["failed"] == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"tune": 0}, "tune is 0; give 1 to 8"),
        ({"tune": 9}, "tune is 9; give 1 to 8"),
        ({"processes": 0}, "number of processes is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"methods": ()}, "No method"),
        ({"methods": ("single",)}, "'single' is always trained"),
        ({"methods": ("dwa", "dwa")}, "named twice"),
        ({"methods": ("pcgrat",)}, "Did you mean 'pcgrad'"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(wrong: Any, said: str):
    with pytest.raises(UsageError, match=said):
        Plan(suite="digits2", **wrong)
