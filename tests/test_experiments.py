"""The pages of figures are what the experiments' tables say: nothing is written by hand."""

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import scipy.stats
import torch

from polytask.catalog import METHODS
from polytask.evaluate.claims import load, markdown
from polytask.parsing import parse, split

from .experiment import imported, together

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "compare"


SCRIPTS = ("claims", "guide", "page", "merging", "adapting", "picture", "run")


@pytest.fixture(scope="module")
def scripts():
    with together(FOLDER, SCRIPTS) as scripts:
        yield scripts


@pytest.fixture(scope="module")
def tables(scripts):
    return scripts.run.read_tables()


def test_every_suite_has_a_table_made_by_its_command(scripts, tables):
    assert set(tables) == set(scripts.run.COMMANDS)
    for name, table in tables.items():
        assert table["command"] == scripts.run.COMMANDS[name]
        seeds, tune = re.search(r"--seeds (\d+) --tune (\d+)", table["command"]).groups()
        assert len(table["seeds"]) == int(seeds)
        assert len(table["tuning"]["grid"]) == int(tune)
        _, _, methods = scripts.run.asked(table["command"])
        assert {*table["methods"], *table.get("failed", {})} == {"single", *methods}


def test_a_full_comparison_is_of_every_balance_method(scripts):
    rows = [m for m in METHODS if m.room == "balance" and not m.wraps]
    plain = {row.name for row in rows} - {"fixed"}
    assert plain <= set(split(scripts.run.EVERY))
    assert scripts.run.FULL
    for name in scripts.run.FULL:
        assert scripts.run.asked(scripts.run.COMMANDS[name])[2] == split(scripts.run.EVERY)


@pytest.mark.parametrize("document", ["results.md", "balance.md", "balance.svg"])
def test_the_pages_are_those_of_the_tables(scripts, tables, document):
    made = scripts.run.pages(tables, scripts.run.read_cost())
    assert set(made) == {
        ROOT / "docs" / name for name in ("results.md", "balance.md", "balance.svg")
    }
    assert (ROOT / "docs" / document).read_text() == made[ROOT / "docs" / document]


def test_a_table_is_made_of_a_run_folder_and_only_of_the_right_one(
    scripts, tables, tmp_path, monkeypatch
):
    run = scripts.run
    table = tables["digits2"]
    methods = {
        name: {**method, "all_metrics": method["scores"]}
        for name, method in table["methods"].items()
    }
    result = table | {"methods": methods}
    (tmp_path / "result.json").write_text(json.dumps(result))
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(run, "HERE", kept)
    run.keep(tmp_path)
    assert json.loads((kept / "digits2.json").read_text()) == table
    for change, said in (
        ({"seeds": [0]}, r"seeds: \[0\], not \[0, 1, 2\]"),
        ({"methods": methods | {"more": methods["equal"]}}, r"methods more: \['more'\]"),
        ({"methods": {"single": methods["single"]}}, "methods lacking"),
        ({"suite": "mine"}, "is of mine"),
    ):
        (tmp_path / "result.json").write_text(json.dumps(result | change))
        with pytest.raises(SystemExit, match=said):
            run.keep(tmp_path)


def made_up(deltas, failed=()):
    """Return a table of methods whose two tasks gain as given, per seed."""
    return {
        "suite": "s",
        "about": {"title": "t"},
        "seeds": [0, 1, 2],
        "failed": dict.fromkeys(failed, "why"),
        "tasks": [{"name": "a"}, {"name": "b"}],
        "methods": {
            "single": {},
            **{
                name: {
                    "delta_m": sum(gains) / 3,
                    "delta_m_interval": [min(gains), max(gains)],
                    "tasks": {"a": {"gains": gains}, "b": {"gains": gains}},
                }
                for name, gains in deltas.items()
            },
        },
    }


def test_leads_over_equal_weights_are_paired_by_seed(scripts):
    """A method ahead by the same 2 points with every seed is sure, whatever the seeds' spread."""
    spread = [1.0, 5.0, -7.0]
    tables = {
        "s": made_up(
            {
                "equal": spread,
                "dwa": [v + 2 + e for v, e in zip(spread, (0.0, 0.1, -0.1), strict=True)],
                "gls": [v - 3 + e for v, e in zip(spread, (0.0, 0.1, -0.1), strict=True)],
                "pcgrad": [8.0, -6.0, 1.0],
            }
        )
    }
    assert scripts.guide.leads(tables["s"], "dwa") == pytest.approx([2.0, 2.1, 1.9])
    tables["s"]["methods"]["gls"]["tasks"]["b"]["gains"] = [None, 1.0, 1.0]
    assert scripts.guide.leads(tables["s"], "gls") == pytest.approx([-3.0, -2.9, -3.1])
    row = scripts.guide._against_equal(tables).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["dwa", "+2.00 [+1.75, +2.25]", "2 of 3", "1 (1)", "1 (1)"]
    families = scripts.guide._families(tables).splitlines()[2:]
    assert families[0].endswith("| -0.50 (-3.00 to +2.00) |")
    assert families[1].endswith("| +1.33 (+1.33 to +1.33) |")


def test_agreement_of_two_suites_is_spearmans(scripts):
    names = ("dwa", "gls", "rlw", "stch", "famo")
    first, second = (3.0, 1.0, 2.5, -4.0, 0.0), (0.5, 9.0, 1.0, -2.0, 0.1)
    tables = {
        suite: made_up({"equal": [0.0] * 3, **{n: [v] * 3 for n, v in zip(names, of, strict=True)}})
        for suite, of in (("s", first), ("t", second))
    }
    expected = scipy.stats.spearmanr(first, second).statistic
    assert f"s and t {expected:+.2f}." in scripts.guide._agreement(tables)
    assert scripts.guide._agreement({"s": tables["s"]}) == ""


def test_ranks_put_a_method_that_failed_last(scripts):
    tables = {
        "s": made_up({"equal": [1.0] * 3, "dwa": [2.0] * 3, "gls": [3.0] * 3}),
        "t": made_up({"equal": [1.0] * 3, "dwa": [2.0] * 3}, failed=["gls"]),
    }
    assert scripts.page.ranked(tables) == [("dwa", 1.5), ("gls", 2.0), ("equal", 2.5)]
    assert scripts.page.cell(tables["t"], "gls") == "failed"


def test_the_picture_holds_every_method_and_suite(scripts, tables):
    full = {name: table for name, table in tables.items() if scripts.page.is_full(table)}
    costs = {
        name: {"methods": {m: {"time": 1.0 + k} for k, m in enumerate(table["methods"])}}
        for name, table in full.items()
    }
    for cost, dots in (({}, 1), ({"suites": costs}, 2)):
        root = ElementTree.fromstring(scripts.picture.gains(tables, cost))
        space = "{http://www.w3.org/2000/svg}"
        words = [node.text for node in root.iter(f"{space}text")]
        for name, table in full.items():
            assert f"{name}: delta-m in %, 3 seeds" in words
            assert {*table["methods"]} - {"single"} <= set(words)
        legend = len(scripts.picture.FAMILIES)
        beyond = sum(str(w).startswith(("+", "-")) and "." in w for w in words)
        points = sum(len(table["methods"]) - 1 for table in full.values())
        assert len(list(root.iter(f"{space}circle"))) >= legend + dots * points - beyond
        width, height = float(root.get("width")), float(root.get("height"))
        for node in root.iter(f"{space}circle"):
            assert 0 < float(node.get("cx")) < width
            assert 0 < float(node.get("cy")) < height


def test_every_recipe_on_the_page_is_one():
    text = (ROOT / "docs" / "balance.md").read_text().partition("## In a recipe")[2]
    recipes = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(recipes) >= 4
    for recipe in recipes:
        assert parse(recipe).text == recipe
    around = {m.name for m in METHODS if m.wraps and m.room == "balance"}
    assert around == {part.partition(":")[0] for r in recipes for part in r.split("+")} & around


def test_every_method_has_its_promise_on_the_page(scripts):
    rows = [m for m in METHODS if m.room == "balance" and not m.wraps]
    assert set(scripts.guide.PROMISES) == {row.name for row in rows}


def test_commands_on_the_page_can_be_pasted(scripts):
    command = scripts.run.COMMANDS[scripts.run.FULL[0]]
    folded = scripts.page._folded(command)
    assert "\n" in folded
    assert max(map(len, folded.splitlines())) <= 100
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(command)


def test_the_claims_follow_from_the_tables(scripts, tables, tmp_path):
    folder = tmp_path / "compare"
    folder.mkdir()
    scripts.claims.write(tables, folder / "claims.json")
    decided = load(tmp_path)
    assert len(decided) >= 2
    assert decided == tuple(c for c in load(ROOT / "experiments") if c.experiment == "compare")


def test_the_claims_page_is_that_of_the_ledger():
    ledger = load(ROOT / "experiments")
    assert (ROOT / "docs" / "claims.md").read_text() == markdown(ledger)


@pytest.fixture(scope="module")
def cost():
    """The experiment on what a step costs, under a name of its own."""
    return imported(ROOT / "experiments" / "balance", "cost")


def test_what_a_step_costs_is_counted_beside_equal_weights(cost):
    recipes = ("famo", "coba", "pcgrad", "fixed:weights=1/2")
    found = cost.measure("digits2", recipes, quick=True)
    methods = found["methods"]
    assert set(methods) == {"equal", *recipes}
    assert (methods["equal"]["time"], methods["equal"]["memory"]) == (1.0, 1.0)
    assert {n: m.get("forwards") for n, m in methods.items()} == {
        "equal": 0,
        "famo": 1,
        "coba": 1,
        "pcgrad": 0,
        "fixed:weights=1/2": None,
    }
    assert methods["famo"]["memory"] == pytest.approx(1, abs=0.01)
    # four tasks' gradients in float32 beside weights, gradients, two moments and activations
    assert 1.1 < methods["pcgrad"]["memory"] < 1.5
    assert methods["pcgrad"]["time"] > 1.3
    assert methods["pcgrad"]["engine"].startswith("exact")
    assert "2 weights came for 4 tasks" in methods["fixed:weights=1/2"]["failed"]
    assert (found["tasks"], found["rounds"]) == (4, 3)


def test_every_method_sees_the_same_batches_from_the_same_weights(cost):
    """Two of equal weights are one another's copy after any number of steps."""
    trained = [cost.prepare("digits2", recipe) for recipe in ("equal", "fixed:weights=1/1/1/1")]
    for at, (fed, val) in enumerate(cost.feeds("digits2", 3)):
        for one in trained:
            torch.manual_seed(at)
            one.step(fed, val)
    first, second = ([p.detach() for p in one.balancer.shared] for one in trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], cost.prepare("digits2", "equal").balancer.shared[0])


def test_merges_stand_beside_each_other_with_all_their_seeds_or_not_at_all(scripts):
    def row(*normalised, **more):
        return {"seeds": [0, 1], "normalised": list(normalised), **more}

    table = {
        "seeds": [0, 1],
        "versions": {"torch": "2", "device": "cpu"},
        "backbones": {
            "cnn": {"ties": row(80.0, 82.0), "pcb": {"seeds": [0], "normalised": [99.0]}},
            "vit": {"ties": row(70.0, 70.0), "dam": row(90.0, 90.0, attack_success=[10.0, 20.0])},
        },
    }
    text = scripts.merging.section(table)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    low, high = 81 - scipy.stats.t.ppf(0.975, 1), 81 + scipy.stats.t.ppf(0.975, 1)
    assert lines == [
        "| dam |  | 90.0 [90.0, 90.0] |  | 15 % |",
        f"| ties | 81.0 [{low:.1f}, {high:.1f}] | 70.0 [70.0, 70.0] |  |  |",
    ]
    assert scripts.merging.section({}) == ""


def test_adapters_stand_in_the_order_of_their_delta_m(scripts):
    def row(own, *delta_m):
        return {"delta_m": delta_m, "segments": [0.3, 0.4], "edge_distance": [3.0, 3.5], "own": own}

    table = {
        "command": "python x.py",
        "seeds": [0, 1],
        "epochs": 1,
        "encoder": {"weights": 1000},
        "versions": {"torch": "2"},
        "rows": {"lora": row(12, -1.0, -1.0), "mtlora": row(3456, 2.0, 2.0)},
    }
    text = scripts.adapting.pictures(table)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert lines == [
        "| mtlora | 2.00 [2.00, 2.00] | 0.350 | 3.250 | 3,456 |",
        "| lora | -1.00 [-1.00, -1.00] | 0.350 | 3.250 | 12 |",
    ]
    assert scripts.adapting.pictures({}) == ""
