"""What people see: the time left, a log without a terminal, tables that fit 100 columns."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from polytask.cli import show
from polytask.cli.show import Bars, Lines, Pace, result_tables
from polytask.fit import FitConfig
from polytask.recipes import SINGLE, Job


def job(name: str, label: str = SINGLE) -> Job:
    return Job("s", None, "equal", FitConfig(), Path(name), label=label)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_goes_by_updates_of_runs_and_leaves_the_test_split_out():
    clock = Clock()
    pace = Pace(clock)
    pace.begin([3, 0, 1, 4])
    assert pace.text() == "0 of 4 runs"
    pace.step(job("a"), 1, 100)
    clock.now += 30
    pace.step(job("a"), 50, 100)  # half a run in 30 s, three and a half to go
    assert pace.text() == "0 of 4 runs, about 0:03:30 left"
    clock.now += 30
    pace.done(0, job("a"), fresh=True)
    assert pace.text() == "1 of 4 runs, about 0:03:00 left"
    pace.done(3, job("a"), fresh=True)
    assert pace.text() == "1 of 4 runs, about 0:03:00 left"
    for phase in (0, 0, 2):
        pace.done(phase, job("b"), fresh=True)
    assert pace.text() == "4 of 4 runs"


def test_models_of_all_tasks_are_timed_apart():
    clock = Clock()
    pace = Pace(clock)
    pace.begin([2, 1, 3, 0])  # of the three other seeds, two are of single-task models
    for name in "ab":
        pace.step(job(name), 1, 10)
        clock.now += 10
        pace.done(0, job(name), fresh=True)
    assert pace.text() == "2 of 6 runs, over 0:00:20 left"  # and two of a kind not seen yet
    pace.step(job("c", "equal"), 1, 10)
    clock.now += 100
    pace.done(1, job("c", "equal"), fresh=True)
    assert pace.text() == "3 of 6 runs, about 0:02:00 left"


def test_two_at_once_halve_the_time_left():
    clock = Clock()
    pace = Pace(clock)
    pace.begin([4, 0, 0, 0])
    for name in "ab":
        pace.step(job(name), 0, 10)
    clock.now += 10
    for name in "ab":
        pace.done(0, job(name), fresh=True)
    assert pace.text() == "2 of 4 runs, about 0:00:10 left"


def test_runs_of_an_earlier_command_say_nothing_about_the_pace():
    clock = Clock()
    pace = Pace(clock)
    pace.begin([4, 0, 0, 0])
    pace.done(0, job("a"), fresh=False)
    pace.done(0, job("b"), fresh=False)
    assert pace.text() == "2 of 4 runs"
    pace.step(job("c"), 1, 10)
    clock.now += 10
    pace.done(0, job("c"), fresh=True)
    assert pace.text() == "3 of 4 runs, about 0:00:10 left"


def test_a_log_has_a_line_per_phase_and_one_a_minute(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(show.time, "monotonic", clock)
    with Lines("toys") as lines:
        lines._pace = Pace(clock)
        lines.begin([2, 1, 0, 1])
        lines.done(0, job("a"), fresh=False)
        for _ in range(5):
            clock.now += 30
            lines.step(0, job("b"), 1, 2, {"task": 0.5})
        lines.done(0, job("b"), fresh=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "toys: 1 of 3 runs, over 0:00:30 left, 0:01:00 so far",
        "toys: 1 of 3 runs, over 0:01:30 left, 0:02:00 so far",
        "toys: single-task models: tuning: 2 done (1 of them before), 0:02:30 so far",
    ]


def test_bars_in_a_terminal(monkeypatch):
    screen = Console(width=100, record=True, force_terminal=True)
    monkeypatch.setattr(show, "Console", lambda stderr: screen)
    with Bars("toys[1]") as bars:  # brackets are rich's markup
        bars.begin([2, 1, 1, 3])
        bars.step(0, job("single--a--lr0.001"), 5, 10, {"left[x]": 0.51234})
        drawn = "\n".join(
            "".join(segment.text for segment in line)
            for line in screen.render_lines(bars._bars.get_renderable())
        )
        bars.done(0, job("single--a--lr0.001"), fresh=True)
    for words in ("toys[1]", "methods: tuning", "0/2", "5/10", "left[x] 0.512", "0 of 4 runs"):
        assert words in drawn
    assert "single--a--lr0.001" not in screen.export_text().splitlines()[-1]


def test_runs_that_will_not_take_place_are_not_waited_for(capsys, monkeypatch):
    with Lines("toys") as lines:
        lines.begin([1, 2, 2, 3])
        lines.done(0, job("a"), fresh=True)
        lines.done(1, job("b", "equal"), fresh=True)
        lines.failed(job("c", "equal"), "one setting of two", [0, 0, 0, 0])
        lines.done(1, job("c", "equal"), fresh=True)
        lines.failed(job("c", "equal"), "no setting is left", [0, 0, 2, 3])
    said = [line.partition(", 0:00")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "toys: single-task models: tuning: 1 done",
        "toys: methods: tuning: 2 done",
        "toys: equal failed: no setting is left",
        "toys: other seeds: 0 done",
        "toys: test split: 0 done",
    ]
    assert lines._pace.text() == "3 of 3 runs"
    screen = Console(width=100, record=True, force_terminal=True)
    monkeypatch.setattr(show, "Console", lambda stderr: screen)
    with Bars("toys") as bars:
        bars.begin([0, 1, 2, 3])
        bars.step(1, job("c", "equal"), 5, 10, {})
        bars.failed(job("c", "equal"), "why [not]", [0, 1, 2, 0])
        drawn = "\n".join(
            "".join(segment.text for segment in line)
            for line in screen.render_lines(bars._bars.get_renderable())
        )
    assert "equal failed: why [not]" in screen.export_text()
    assert "0/3" in drawn
    assert "0/2" not in drawn
    assert "5/10" not in drawn


def made(tasks: int, methods: int, gain: float | None = -3.0, verdict: str = "lost") -> Any:
    """Return a result with long names, as `compare` makes it."""
    names = [f"school_{i}" for i in range(tasks)]
    counts = {"gained": 0, "lost": tasks, "undecided": 0}
    cost = {"seconds": 1234.5, "parameters": 12345678, "seconds_ratio": 0.3, "parameters_ratio": 1}

    def found(i: int, single: bool) -> dict[str, Any]:
        return {
            "metric": "RMSE",
            "values": [10.123456 + i, 10.234567 + i, 10.5 + i],
            "gain": 0.0 if single else gain if gain is None else gain - i,
            "interval": None if single else [-1234.5, 1234.5],
            "verdict": "reference" if single else verdict,
            "why": "" if single else f"Its gradient points against school_1's ({i} % of looks).",
        }

    return {
        "title": "Exam scores of schools",
        "about": {"citation": "Somebody [1], A Title", "licence": "not stated by the source"},
        "seeds": [0, 1, 2],
        "failed": {},
        "tasks": [
            {"name": name, "metric": "RMSE", "direction": "min", "unit": "points"} for name in names
        ],
        "methods": {
            name: {
                "tasks": {task: found(i, name == "single") for i, task in enumerate(names)},
                "delta_m": -1.0 - number,
                "delta_m_interval": [-2.0, 0.0],
                "worst": {"task": names[-1], "gain": -99.99},
                "counts": counts,
                "cost": cost,
            }
            for number, name in enumerate(
                ["single", *(f"aligned-mtl+temperature:temperature={m}" for m in range(methods))]
            )
        },
    }


def printed(result: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> str:
    screen = Console(width=100, record=True, force_terminal=terminal)
    monkeypatch.setattr(show, "output", lambda: screen)
    result_tables(result, Path("runs/school/report.html"))
    return screen.export_text()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("tasks", "methods"), [(1, 1), (4, 2), (12, 5), (13, 1), (139, 1)])
def test_tables_fit_100_columns(monkeypatch, tasks: int, methods: int, terminal: bool):
    text = printed(made(tasks, methods), monkeypatch, terminal)
    assert max(map(len, text.splitlines())) <= 100
    for words in ("school_0", "RMSE ↓", "(points)", "10.29 ± 0.19", "▼ lost", "-3.00 %"):
        assert words in text
    assert "…" not in text
    assert text.count("[-1234.50, +1234.50]") == methods * min(tasks, 10 if tasks > 12 else 12)
    assert "Data: Somebody [1], A Title. Licence: not stated by the source." in text
    assert text.rstrip().endswith("Report: runs/school/report.html")
    assert text.count("(points)") == min(tasks, 10 if tasks > 12 else 12)  # once per task


def test_many_methods_are_listed_once_and_the_best_one_task_by_task(monkeypatch):
    text = printed(made(4, 9), monkeypatch, False)
    assert text.count("-1234.50, +1234.50") == 4
    assert "Task by task for aligned-mtl+temperature:temperature=0 (best delta-m)" in text


def test_methods_that_failed_are_listed_with_their_reasons(monkeypatch):
    result = made(2, 1)
    result["failed"] = {"gls": "the loss of task [a] is 0"}
    assert "gls failed: the loss of task [a] is 0" in printed(result, monkeypatch, False)
    result["methods"] = {"single": result["methods"]["single"]}
    text = printed(result, monkeypatch, False)
    assert "Why" not in text
    assert text.rstrip().endswith("Report: runs/school/report.html")


def test_reasons_are_of_the_best_method_and_the_most_changed_tasks(monkeypatch):
    text = printed(made(139, 3), monkeypatch, False)
    reasons = text.partition("Why, for ")[2]
    assert reasons.startswith("aligned-mtl+temperature:temperature=0 (best delta-m):")
    assert reasons.count("Its gradient points") == 8
    assert "school_138  -141.00 %" in reasons
    assert "131 more tasks in the report" in reasons


def test_without_a_sure_change_the_three_largest_are_explained(monkeypatch):
    text = printed(made(6, 1, verdict="undecided"), monkeypatch, False)
    reasons = text.partition("Why, for ")[2]
    assert [f"school_{i}" in reasons for i in range(6)] == [False, True, False, True, True, True]
    assert reasons.count("Its gradient points") == 3  # of 3, 4 and 5; all name school_1


def test_what_is_not_defined_is_said(monkeypatch):
    result = made(2, 1, gain=None, verdict="undecided")
    for method in result["methods"].values():
        method["delta_m"] = None
        method["worst"] = None
        method["tasks"]["school_0"]["values"][1] = None
    text = printed(result, monkeypatch, False)
    assert "undefined (1 of 3)" in text
    assert "undefined" in text.partition("Why")[2]
