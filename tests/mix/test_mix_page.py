"""The snippets of docs/mix.md run as they stand, and the page names every mix."""

import re
from pathlib import Path

import torch

from polytask.catalog import METHODS
from polytask.parsing import parse, split

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mix.md").read_text()


def test_the_snippets_run():
    names: dict = {"torch": torch}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert names["packed"].tokens_RL.shape == (2, 16)
    assert names["counts_T"].tolist() == [19, 12, 1]
    assert names["driven"].schedule.memory["losses_WS"][-1].tolist() == [2.1, 3.0, 0.9]
    assert len(names["programs"]) == 2


def test_the_page_names_every_mix_and_its_recipes_can_be_read():
    table = PAGE.partition("## Decide")[2].partition("##")[0]
    named = {text.split(":")[0] for text in re.findall(r"`([a-z][^`]*)`", table)}
    every = {row.name for row in METHODS if row.room == "mix"}
    assert every <= named | {"unmixed"}
    for text in re.findall(r"`([a-z][^`]*)`", table):
        if text.split(":")[0].split("+")[0] in every and "..." not in text:
            parse(text)
    for recipes in re.findall(r'--methods? "(.*)"', PAGE):
        for recipe in split(recipes):
            parse(recipe)
