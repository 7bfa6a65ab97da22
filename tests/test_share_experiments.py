"""The experiments on sharing: their building blocks, and that page and claims are the tables'."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from polytask.evaluate.claims import load, save

from .experiment import imported

SHARE = Path(__file__).parents[1] / "experiments" / "share"


@pytest.fixture(scope="module")
def scripts():
    """The page's module, and those of the experiments by name."""
    page = imported(SHARE, "page")
    return SimpleNamespace(page=page, **{one.__name__: one for one in page.EXPERIMENTS})


def test_the_claims_follow_from_the_tables(scripts, tmp_path):
    (tmp_path / "share").mkdir()
    save(tmp_path / "share", scripts.page.PAGE.claims(scripts.page.PAGE.tables()))
    recorded = tuple(c for c in load(SHARE.parent) if c.experiment == "share")
    assert load(tmp_path) == recorded


def test_the_page_of_results_is_that_of_the_tables(scripts):
    text = scripts.page.PAGE.markdown(scripts.page.PAGE.tables())
    assert (SHARE / "results.md").read_text() == text
    for section in text.split("## ")[1:]:
        grid = [line for line in section.splitlines() if line.startswith("|")]
        assert len(grid) >= 3
        assert len({line.count("|") for line in grid}) == 1


def test_every_experiment_is_planned_and_named_for_its_command(scripts):
    plan = (SHARE / "README.md").read_text()
    for one in scripts.page.EXPERIMENTS:
        assert f"### `{one.__name__}.py`" in plan
        table = scripts.page.KEPT.load(one.__name__)
        if table:
            assert table["command"] == f"python experiments/share/{one.__name__}.py"
