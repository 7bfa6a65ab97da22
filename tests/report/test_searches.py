"""What the page says of a search is what its file holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from polytask.errors import RunError
from polytask.report import write_report
from polytask.report.searches import (
    alone_in_words,
    hows_in_words,
    read_searched,
    searched_block,
    worse_than_alone,
)

from .conftest import searched


def test_the_block_says_what_serves_each_task_and_what_was_tried(tmp_path: Path) -> None:
    searched(tmp_path, ("a", "b", "c", "d"))
    block = searched_block(read_searched(tmp_path), "here")
    assert (block["kind"], block["label"], block["best"]) == ("auto", "here", None)
    assert [task["how"] for task in block["served"]] == [
        "a model of all tasks",
        "a model of a group",
        "a model that went on alone from shared weights",
        "a model trained alone",
    ]
    assert [task["alone"] for task in block["served"]] == [
        "not from the start",
        "behind the shared models after 4 epochs",
        "8 epochs alone: -1.0 %",
        "to its end: the same",
    ]
    assert block["served"][1]["test"] is None
    assert [run["tasks"] for run in block["tried"]][1:] == [["a", "b"], ["c"], ["d"]]
    assert block["failed_runs"] == {"mtan": "needs <pictures>"}
    first, second, third = block["verdict"]
    assert first.startswith("4 tasks are served by 4 models: 1 by a model of all tasks, ")
    assert second.startswith("Also trained alone to the end: 1 task; none is worse than alone")
    assert third == (
        "4 runs cost 1.50 of what every task alone takes by time, 1.50 by arithmetic (budget 2)."
    )


def test_a_task_that_is_worse_than_alone_is_named() -> None:
    over = {"gain": 9.0, "error": 1.0}
    alone = {"race": "to its end", "epochs": 3, "over_served": over, "better": True}
    task = {"name": "a", "by": "a model of all tasks", "alone": alone}
    assert worse_than_alone([task, {"name": "b", "alone": {"race": "not alone"}}]) == ["a"]
    assert alone_in_words(task) == "to its end: +9.0 % ± 1.0"
    assert hows_in_words([task]) == "a model of all tasks"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw["tasks"][0].pop("over_shared"),
        lambda raw: raw.pop("tried"),
        lambda raw: raw.update(tasks={}),
        lambda raw: raw["tasks"][3].update(alone={"race": "to its end"}),
    ],
)
def test_a_file_that_is_something_else_is_said_to_be(tmp_path: Path, spoil: Any) -> None:
    searched(tmp_path, ("a", "b", "c", "d"))
    path = tmp_path / "auto.json"
    raw = json.loads(path.read_text())
    spoil(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(RunError, match="is not what a search found"):
        write_report([tmp_path], tmp_path / "page.html")
