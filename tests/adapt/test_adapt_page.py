"""The snippets of docs/adapt.md run as they stand, and the page names every method."""

import re
from pathlib import Path

import torch

from polytask.catalog import METHODS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adapt.md").read_text()


def test_the_snippets_run_one_after_the_other_and_do_what_is_said():
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    y, y_law = names["y"], names["y_law"]
    assert torch.allclose(y[[0, 2]], y_law[[0, 2]], atol=1e-6)
    assert torch.allclose(names["folded"], y_law, atol=1e-5)
    assert names["adapted"].names == ("french", "law", "code", "chemistry")
    assert names["outputs"].keys() == {"spam", "topic"}


def test_the_page_names_every_method_of_the_room():
    named = set(re.findall(r"`([a-z0-9-]+)`", PAGE.partition("## Which method")[2]))
    assert {row.name for row in METHODS if row.room == "adapt"} <= named
