"""The snippets of docs/relate.md run as they stand, one after the other, and the page names all."""

import re
from pathlib import Path

import pytest

from polytask.catalog import METHODS
from polytask.relate import Affinity

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "relate.md").read_text()


def test_the_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert Affinity.load("affinity.json") == names["affinity"]
    assert names["affinity"].of("price", "rent") > names["affinity"].of("noise", "rent")
    assert names["best"].optimal
    assert capsys.readouterr().out.count("\n") == 9


@pytest.mark.parametrize("row", [r for r in METHODS if r.room == "relate"], ids=lambda r: r.name)
def test_the_page_names_every_method(row):
    assert row.target.split(":")[1] in PAGE
