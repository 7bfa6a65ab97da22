"""The pages of figures are what the experiments' tables say: nothing is written by hand."""

import json
import re
import sys
from pathlib import Path

import pytest

from polytask.evaluate.claims import load, markdown

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "compare"


@pytest.fixture(scope="module")
def scripts():
    """The experiment's own modules."""
    sys.path.insert(0, str(FOLDER))
    try:
        import claims
        import page
        import run

        yield run, page, claims
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def tables(scripts):
    run, _, _ = scripts
    return {
        name: json.loads((FOLDER / f"{name}.json").read_text())
        for name in run.COMMANDS
        if (FOLDER / f"{name}.json").exists()
    }


def test_every_suite_has_a_table_made_by_its_command(scripts, tables):
    run, _, _ = scripts
    assert set(tables) == set(run.COMMANDS)
    for name, table in tables.items():
        assert table["command"] == run.COMMANDS[name]
        seeds, tune = re.search(r"--seeds (\d+) --tune (\d+)", table["command"]).groups()
        assert len(table["seeds"]) == int(seeds)
        assert len(table["tuning"]["grid"]) == int(tune)


def test_the_results_page_is_that_of_the_tables(scripts, tables):
    _, page, _ = scripts
    assert (ROOT / "docs" / "results.md").read_text() == page.markdown(tables)


def test_the_claims_follow_from_the_tables(scripts, tables, tmp_path):
    _, _, claims = scripts
    folder = tmp_path / "compare"
    folder.mkdir()
    claims.write(tables, folder / "claims.json")
    decided = load(tmp_path)
    assert len(decided) >= 2
    assert decided == tuple(c for c in load(ROOT / "experiments") if c.experiment == "compare")


def test_the_claims_page_is_that_of_the_ledger():
    ledger = load(ROOT / "experiments")
    assert (ROOT / "docs" / "claims.md").read_text() == markdown(ledger)
