"""The search of `auto`: what it trains within a budget, what it chooses, and what it gives back."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polytask.errors import RunError, UsageError
from polytask.fit import FitConfig, Meters
from polytask.recipes import FOUND, AutoPlan, Plan, auto, compare, load_auto, load_suite
from polytask.recipes import search as searching
from polytask.recipes.plan import usual_budget
from polytask.recipes.search import PHASES
from polytask.recipes.served import Candidate, Served, ahead, choose, expected
from polytask.recipes.train import Job, validated
from polytask.recipes.work import rows_of_epoch
from polytask.tasks import Regression, Task, TaskSet

from .conftest import CONFIG, Compared, Seen, write_suite

QUICK = FitConfig(epochs=6, batch_size=32, min_epoch_steps=4, probes=0)


def plan(suite: Path, out: Path, **changed: Any) -> AutoPlan:
    return replace(
        AutoPlan(
            suite=str(suite), methods=("uncertainty",), tune=2, config=QUICK, out=out, processes=2
        ),
        **changed,
    )


@pytest.fixture(scope="module")
def searched(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoPlan, Any, Seen]:
    """A search with money for everything. Read it; do not write there."""
    asked = plan(people, tmp_path_factory.mktemp("searched"), budget=9.0)
    seen = Seen()
    return asked, auto(asked, seen), seen


def test_with_money_for_it_every_task_goes_on_alone_and_trains_alone(searched) -> None:
    asked, found, seen = searched
    assert found["kind"] == "auto"
    hows = [run["how"] for run in found["tried"]]
    assert hows.count("shared") == 3  # two settings, and uncertainty
    assert hows.count("from shared") == 3
    assert {task["name"] for task in found["tasks"]} == {"sick", "colour", "dose"}
    assert all(task["alone"]["race"] != "not alone" for task in found["tasks"])
    assert found["work"] < 9
    assert sum(run["work"] for run in found["tried"]) == pytest.approx(found["work"])
    assert len(seen.runs) == len(PHASES)
    assert found == json.loads((asked.out / FOUND).read_text())


def test_the_models_it_chose_are_built_and_answer_as_they_were_tested(searched, people) -> None:
    asked, found, _ = searched
    suite = load_suite(str(people))
    served = load_auto(asked.out)
    values = validated(served, suite.test, Meters(suite.tasks), QUICK)
    for task in found["tasks"]:
        assert values[task["name"]][task["metric"]] == task["test"][task["metric"]]
    assert served.models == found["models"]
    stream = suite.test[0]
    both = served(stream.inputs)
    assert set(both) == set(suite.tasks.names)
    assert torch.equal(served(stream.inputs, tasks=["dose"])["dose"], both["dose"])
    own = {t: {id(p) for p in served.task_parameters(t)} for t in served.tasks}
    shared = {id(p) for p in served.shared_parameters()}
    assert not any(shared & parameters for parameters in own.values())


def test_a_search_is_taken_up_where_it_was_stopped_and_comes_to_the_same(
    searched, people, tmp_path
):
    _, found, _ = searched
    stops = 0

    class Stop(Exception):
        pass

    def stop() -> None:
        nonlocal stops
        stops += 1
        if stops in (3, 9):
            raise Stop

    cut = plan(people, tmp_path / "cut", budget=9.0)
    for _ in range(2):
        interrupted = Seen()
        interrupted.done = lambda *_: stop()  # type: ignore[method-assign]
        with pytest.raises(Stop):
            auto(cut, interrupted)
    again = auto(cut, Seen())
    keys = ("name", "run", "how", "validation", "test", "alone")
    assert [{k: t[k] for k in keys} for t in again["tasks"]] == [
        {k: t[k] for k in keys} for t in found["tasks"]
    ]
    assert [run["name"] for run in again["tried"]] == [run["name"] for run in found["tried"]]
    assert again["work"] == found["work"]
    fresh = Seen()
    assert auto(cut, fresh) == again
    assert fresh.fresh == []  # nothing was trained for a result that is there


def test_a_small_budget_is_kept_but_for_the_first_model(people, tmp_path) -> None:
    found = auto(plan(people, tmp_path, budget=0.01), Seen())
    assert [run["how"] for run in found["tried"]] == ["shared"]
    assert found["models"] == 1
    assert {task["by"] for task in found["tasks"]} == {"a model of all tasks"}
    more = auto(plan(people, tmp_path / "more", budget=1.0), Seen())
    assert 0.3 < more["work"] <= 1.0


def test_many_tasks_have_half_the_budget_of_one_run_of_each() -> None:
    assert (usual_budget(7), usual_budget(8), usual_budget(139)) == (2.0, 0.5, 0.5)


def test_a_method_that_does_not_fit_is_left_out_with_its_reason(people, tmp_path) -> None:
    found = auto(plan(people, tmp_path, budget=3.0, methods=("mtan", "uncertainty")), Seen())
    assert list(found["failed"]) == ["mtan"]
    assert "uncertainty" in [run["recipe"] for run in found["tried"]]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"budget": 0.0}, "budget is 0.0; give a number > 0"),
        ({"budget": math.inf}, "budget is inf"),
        ({"tune": 0}, "tune is 0; give 1 to 8"),
        ({"methods": ("no-such",)}, "no-such"),
        ({"processes": 0}, "number of processes is 0; give at least 1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_what_cannot_be_asked_for_is_said(people, tmp_path, changed, says) -> None:
    with pytest.raises(UsageError, match=says):
        plan(people, tmp_path, **changed)


def test_one_task_and_a_foreign_folder_are_refused(people, tmp_path, searched) -> None:
    lone = write_suite(tmp_path / "lone")
    lone.write_text(
        lone.read_text().replace("    colour: multiclass\n", "").replace("    sick: binary\n", "")
    )
    with pytest.raises(UsageError, match="has one task, so there is nothing to share"):
        auto(plan(lone, tmp_path / "one"), Seen())
    asked, _, _ = searched
    with pytest.raises(RunError, match="budget"):
        auto(replace(asked, budget=1.0), Seen())
    with pytest.raises(RunError, match=r"auto\.json"):
        load_auto(tmp_path / "nothing")


def test_settings_that_diverge_are_passed_by_and_all_of_them_end_the_search(
    people, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(searching, "GRID", ((1e30, 1e-2), (1e-3, 1e-2)))
    found = auto(plan(people, tmp_path / "one", budget=0.01), Seen())
    assert [run["lr"] for run in found["tried"]] == [1e-3]
    assert len(found["failed"]) == 1
    monkeypatch.setattr(searching, "GRID", ((1e30, 1e-2), (1e29, 1e-2)))
    with pytest.raises(RunError, match="every setting of a model of all tasks diverges"):
        auto(plan(people, tmp_path / "none", budget=0.01), Seen())


def test_a_comparison_shows_it_as_one_more_row(people: Path, tmp_path: Path, compared: Compared):
    asked = Plan(
        suite=str(people),
        methods=("equal", "auto"),
        seeds=2,
        tune=2,
        config=CONFIG,
        out=tmp_path,
        processes=2,
    )
    seen = Seen()
    found = compare(asked, seen)
    assert list(found["methods"]) == ["single", "equal", "auto"]
    row = found["methods"]["auto"]
    for name in ("sick", "colour", "dose"):
        values = row["tasks"][name]["values"]
        for seed in (0, 1):
            kept = json.loads((tmp_path / "auto" / f"s{seed}" / FOUND).read_text())
            task = next(t for t in kept["tasks"] if t["name"] == name)
            assert values[seed] == task["test"][task["metric"]]
        assert row["tasks"][name]["why"].startswith("Served by ")
    spent = [one["seconds"] for one in row["searches"]]
    assert row["cost"]["seconds"] == pytest.approx(sum(spent) / 2)
    # The other rows are what they are without it.
    theirs = compared.result["methods"]
    for method in ("single", "equal"):
        assert found["methods"][method]["tasks"] == theirs[method]["tasks"]


TASKS = TaskSet([Task("a", Regression()), Task("b", Regression()), Task("c", Regression())])


def candidate(run: str, how: Any, task: str, value: float, spread: float) -> Candidate:
    """Return one whose values without a part differ by an error of `spread` in all."""
    parts = {
        str(p): value + spread * (1 if p % 2 else -1) / math.sqrt(3) for p in range(4)
    }  # jackknife of 4: sqrt(3 / 4 * 4 * (spread / sqrt 3)^2) = spread
    job = Job("none", None, "equal", QUICK, Path(run))
    return Candidate(task, run, how, job, {"all": value, **parts})


def default(value: float = 1.0) -> list[Candidate]:
    return [candidate("all", "shared", task, value, 0.0) for task in TASKS.names]


def test_what_stands_out_serves_and_what_may_be_luck_does_not() -> None:
    def of(task: str, gain: float, error: float) -> Candidate:
        return candidate(f"from {task}", "from shared", task, 1.0 - gain, error)

    sure = [of("a", 0.2, 0.01), of("b", 0.2, 0.01), of("c", 0.2, 0.01)]
    taken = choose(TASKS, default(), sure)
    assert {t: choice.taken.run for t, choice in taken.items()} == {
        "a": "from a", "b": "from b", "c": "from c"
    }  # fmt: skip
    assert taken["a"].gain == pytest.approx(20.0)
    assert taken["a"].error == pytest.approx(1.0)
    lucky = [of("a", 0.05, 0.1), of("b", -0.2, 0.1), of("c", -0.2, 0.1)]
    assert all(c.taken.run == "all" for c in choose(TASKS, default(), lucky).values())
    one = [of("a", 0.3, 0.02), of("b", -0.2, 0.02), of("c", -0.2, 0.02)]
    found = choose(TASKS, default(), one)
    assert [found[t].taken.run for t in TASKS.names] == ["from a", "all", "all"]


def test_a_model_alone_that_is_better_beyond_its_interval_always_serves() -> None:
    # By itself it would be drawn to the mean of its like, which is far below.
    alone = [
        candidate("alone a", "alone", "a", 0.9, 0.045),
        candidate("alone b", "alone", "b", 2.0, 0.045),
        candidate("alone c", "alone", "c", 2.0, 0.045),
    ]
    found = choose(TASKS, default(), alone)
    assert found["a"].taken.run == "alone a"
    assert found["b"].taken.run == "all"
    worse = [candidate("alone a", "alone", "a", 0.96, 0.045)]
    assert choose(TASKS, default(), worse)["a"].taken.run == "all"


def test_a_default_without_a_score_gives_way_to_a_model_alone() -> None:
    lost = [replace(one, values=dict.fromkeys(one.values, math.nan)) for one in default()]
    found = choose(TASKS, lost, [candidate("alone a", "alone", "a", 0.9, 0.1)])
    assert found["a"].taken.run == "alone a"


def test_a_run_of_all_tasks_is_ahead_by_the_error_of_its_mean() -> None:
    base = default()
    better = [candidate("other", "shared", task, 0.9, 0.05) for task in TASKS.names]
    # Every part moves all tasks alike, so the mean's error is that of one task: 5 % of 10 %.
    assert ahead(TASKS, better, base) == pytest.approx(2.0)
    assert ahead(TASKS, base, base) == 0


def test_values_are_drawn_to_the_mean_the_more_the_less_is_known() -> None:
    # No more spread than their errors explain: all are expected to be the mean.
    same = expected({"a": (1.0, 1.0), "b": (0.0, 1.0), "c": (2.0, 1.0)})
    assert same == pytest.approx(dict.fromkeys("abc", 1.0))
    # Far apart and exactly known: each is what it is.
    apart = expected({"a": (0.0, 1e-6), "b": (10.0, 1e-6)})
    assert apart == pytest.approx({"a": 0.0, "b": 10.0})
    # DerSimonian & Laird by hand: w = 1 and 1/4, mean 2, Q = 20, C = 1.25 - 1.0625 / 1.25 = 0.4,
    # tau^2 = 47.5; weights 1 / 48.5 and 1 / 51.5, mu = 4.85; a: (0 * 47.5 + 4.85) / 48.5 = 0.1.
    found = expected({"a": (0.0, 1.0), "b": (10.0, 2.0)})
    assert found["a"] == pytest.approx(0.1)
    assert found["b"] == pytest.approx((10 * 47.5 + 4.85 * 4) / 51.5)
    assert expected({"a": (3.0, 1.0)}) == {"a": 3.0}
    assert expected({"a": (math.nan, 1.0), "b": (1.0, math.nan)}) == {}


def test_served_needs_a_model_for_every_task() -> None:
    with pytest.raises(UsageError, match="task 'a' has no model"):
        Served([], {"a": 0})


def test_an_epoch_of_a_small_task_takes_its_least_updates(people: Path) -> None:
    suite = load_suite(str(people))
    (stream,) = suite.train
    assert rows_of_epoch(suite, replace(QUICK, min_epoch_steps=1)) == len(stream)
    steps = math.ceil(len(stream) / 32)
    assert rows_of_epoch(suite, replace(QUICK, min_epoch_steps=3 * steps)) == 3 * len(stream)
