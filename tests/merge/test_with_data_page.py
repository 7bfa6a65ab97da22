"""The page on merging with data: its code runs, and its table names every method with data."""

import re
from pathlib import Path

import torch

from polytask import merge
from polytask.catalog import METHODS
from polytask.merge import Merge

PAGE = Path(__file__).parents[2] / "docs" / "merge-with-data.md"


def test_the_code_of_the_page_runs_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "torch.Size([2, 1])" in said
    assert "torch.Size([4, 2])" in said
    assert set(names["models"]) == {"sort", "sale"}
    assert set(merge.MergeRecord.load("runs/merged").merges) == {"regmean", "adamerging", "ties"}


def test_every_method_with_data_is_in_the_table():
    text = PAGE.read_text()
    others = {"adapter-merge", "grafting"}
    for row in METHODS:
        if row.room != "merge" or row.name in others:
            continue
        target = row.load()
        if isinstance(target, type) and issubclass(target, Merge):
            continue
        name = row.target.split(":")[1]
        assert f"`{name}`" in text, name
        assert name in merge.__all__
