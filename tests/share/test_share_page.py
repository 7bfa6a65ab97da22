"""The snippets of docs/share.md run as they stand, one after the other, and do what is said."""

import re
from pathlib import Path

import torch

from polytask.catalog import METHODS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "share.md").read_text()


def test_the_snippets_run_and_one_task_is_one_task(capsys):
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    model, alone, rows = names["model"].eval(), names["alone"], names["rows"]
    assert model.tasks == ("click", "price", "return")
    assert torch.equal(alone(rows), model(rows, tasks=["click"])["click"])
    torch.testing.assert_close(names["program"].module()(rows[:3]), alone(rows[:3]))
    assert capsys.readouterr().out.count("\n") == len(model.tasks) + 1


def test_the_page_names_every_architecture_and_no_other():
    named = set(re.findall(r"`([a-z0-9-]+)`", PAGE.partition("## Decide")[2].partition("##")[0]))
    named |= set(re.findall(r"`(hard|stem|dtrn|dsmtl)`", PAGE))
    every = {row.name for row in METHODS if row.room == "share"}
    assert every <= named
    assert named - every <= {"light"}
