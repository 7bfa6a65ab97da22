"""Relating a suite's tasks: affinities over seeds, groups for a budget, and how sure they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polytask.errors import RunError, UsageError
from polytask.fit import FitConfig
from polytask.recipes import RELATED, RelatePlan, relate
from polytask.recipes.relating import for_grouping, labels_of, over_seeds, proposals, sureness
from polytask.recipes.train import load_suite
from polytask.records import read_json
from polytask.relate import Affinity, Groups, exact

from .conftest import Seen, write_suite

CONFIG = FitConfig(epochs=2, batch_size=32, min_epoch_steps=4, probes=0)
TASKS = ("a", "b", "c")


def affinity(values, errors=None, **more):
    values_TT = torch.tensor(values, dtype=torch.float64)
    error_TT = torch.full_like(values_TT, 0.1) if errors is None else torch.tensor(errors)
    return Affinity(TASKS[: len(values)], values_TT, error_TT, "tag", **more)


def plan(folder: Path, **changed) -> RelatePlan:
    suite = str(write_suite(folder))
    return replace(
        RelatePlan(suite=suite, seeds=2, config=CONFIG, out=folder / "out", processes=2), **changed
    )


def test_several_runs_become_a_mean_with_the_error_over_runs():
    nan = float("nan")
    runs = [
        affinity([[0, 1.0, nan], [2.0, 0, 1.0], [0, 0, 0]]),
        affinity([[0, 3.0, 4.0], [2.0, 0, nan], [0, 0, 0]]),
        affinity([[0, 5.0, 6.0], [2.0, 0, nan], [0, 0, 0]]),
    ]
    found = over_seeds(runs)
    assert found.of("a", "b") == 3
    assert found.of("a", "c") == 5
    assert found.of("b", "c") == 1
    # standard deviation 2 over three runs, sqrt 2 over two; of one run nothing is known
    assert float(found.error_TT[0, 1]) == pytest.approx(2 / 3**0.5)
    assert float(found.error_TT[0, 2]) == pytest.approx(1.0)
    assert float(found.error_TT[1, 0]) == 0
    assert bool(found.error_TT[1, 2].isnan())
    assert over_seeds(runs[:1]) is runs[0]


def test_groups_are_proposed_for_every_budget_and_only_get_better():
    found = affinity([[0, 0.5, -1.0], [0.5, 0, -1.0], [-0.2, -0.3, 0]])
    proposed = proposals(found, 9)
    assert len(proposed) == 3  # more models than tasks serve nobody
    assert proposed[0].groups == (TASKS,)
    assert set(proposed[1].groups) == {("a", "b"), ("c",)}
    scores = [groups.score for groups in proposed]
    assert scores == sorted(scores)
    assert all(groups.optimal for groups in proposed)
    assert proposed[1] == exact(found, 2)


def test_a_similarity_is_centred_and_gaps_are_filled_before_grouping():
    likeness = affinity([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]], zero=False)
    ready = for_grouping(likeness)
    assert ready.zero
    assert float((ready.values_TT[:, 0][[1, 2]]).mean()) == pytest.approx(0)
    gap = affinity([[0, float("nan"), 0.2], [0.3, 0, 0.1], [0.2, 0.1, 0]])
    assert for_grouping(gap).of("a", "b") == pytest.approx(0.3)
    one, other, third = proposals(likeness, 2)[1].serve
    assert one == other != third


def test_how_sure_a_pair_is_follows_from_the_errors():
    values = [[0, 0.5, -0.5], [0.5, 0, -0.5], [-0.5, -0.5, 0]]
    sure = sureness(affinity(values, [[0.01] * 3] * 3), 2)
    expected = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]], dtype=torch.float64)
    assert torch.equal(sure, expected)
    vague = sureness(affinity(values, [[5.0] * 3] * 3), 2)
    off = vague[~torch.eye(3, dtype=torch.bool)]
    assert bool(((off > 0.05) & (off < 0.95)).all())
    assert torch.equal(vague, vague.T)
    assert torch.equal(vague, sureness(affinity(values, [[5.0] * 3] * 3), 2))  # seeded
    exactly = sureness(affinity(values, [[float("nan")] * 3] * 3), 2)
    assert torch.equal(exactly, expected)  # what has no error does not vary


def test_a_suite_is_related_taken_up_and_its_file_is_the_result(tmp_path):
    seen = Seen()
    asked = plan(tmp_path)
    found = relate(asked, seen)
    assert seen.runs == [0, 2, 0, 0]
    assert [name for _, name in seen.fresh] in (["s0", "s1"], ["s1", "s0"])
    assert found == read_json(asked.out / RELATED)
    assert found["tasks"] == ["sick", "colour", "dose"]
    assert list(found["methods"]) == ["tag", "gradient-cosine"]
    assert "needs three tasks" in found["left_out"]["label-correlation"]
    for method in found["methods"].values():
        size = len(method["affinity"]["tasks"])
        assert len(method["groups"]) == size  # the budget is 3
        assert [len(row) for row in method["together"]] == [size] * size
        for raw in method["groups"]:
            assert Groups.from_json(raw).tasks == tuple(method["affinity"]["tasks"])
    tag = Affinity.from_json(found["methods"]["tag"]["affinity"])
    assert not tag.missing()
    again = Seen()
    more = relate(replace(asked, seeds=3, budget=2), again)
    assert [name for _, name in again.kept] == ["s0", "s1"]
    assert [name for _, name in again.fresh] == ["s2"]
    assert [len(m["groups"]) for m in more["methods"].values()] == [2, 2]
    with pytest.raises(RunError, match="relation of tasks"):
        relate(replace(asked, recipe="pcgrad"), Seen())


def test_labels_are_those_of_tasks_that_share_their_rows(tmp_path):
    path = write_suite(tmp_path)
    assert labels_of(load_suite(str(path))) is None  # of two tasks there is nothing to weigh
    table = (tmp_path / "people.csv").read_text().splitlines()
    rows = [f"{row},{-2 * float(row.split(',')[-1]):.4f}" for row in table[1:]]
    (tmp_path / "more.csv").write_text("\n".join([f"{table[0]},mass", *rows]) + "\n")
    declared = path.read_text().replace("people.csv", "more.csv")
    more = tmp_path / "more.yaml"
    more.write_text(
        declared.replace("    colour: multiclass", "    mass: regression\n    colour: multiclass")
    )
    suite = load_suite(str(more))
    names, labels_NT = labels_of(suite)
    assert set(names) == {"sick", "dose", "mass"}
    assert labels_NT.shape == (len(suite.train[0]), 3)
    assert labels_of(replace(suite, train=(*suite.train, suite.train[0]))) is None
    asked = RelatePlan(str(more), ("label-correlation",), config=CONFIG, out=tmp_path / "out")
    found = relate(asked, Seen())
    assert found["left_out"] == {
        "label-correlation, some tasks": "colour: neither numbers nor flags"
    }
    (method,) = found["methods"].values()
    likeness = Affinity.from_json(method["affinity"])
    assert likeness.of("dose", "mass") == pytest.approx(1)
    assert not (tmp_path / "out" / "watched").exists()  # nothing to train
    serve = dict(zip(*(method["groups"][1][key] for key in ("tasks", "serve")), strict=True))
    assert serve["dose"] == serve["mass"] != serve["sick"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": 0}, "budget is 0; give at least 1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"processes": 0}, "number of processes is 0"),
        ({"methods": ()}, "no method was named"),
        ({"methods": ("tag", "tag")}, "named twice"),
        (
            {"methods": ("cka",)},
            r"'cka' of the room relate needs more than a suite.*relate\.cka\.cka",
        ),
        ({"methods": ("pcgrad",)}, "room 'balance'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, changed, said):
    with pytest.raises(UsageError, match=said):
        plan(tmp_path, **changed)


def test_one_task_and_no_evidence_are_told_of(tmp_path, monkeypatch):
    asked = plan(tmp_path, methods=("label-correlation",))
    suite = load_suite(asked.suite)
    target = "polytask.recipes.relating.load_suite"
    monkeypatch.setattr(target, lambda name: suite.only(["sick"]))
    with pytest.raises(UsageError, match="has one task; relating takes two or more"):
        relate(asked, Seen())
    monkeypatch.setattr(target, lambda name: suite.only(["sick", "colour"]))
    with pytest.raises(UsageError, match=r"no method applies.*Add tag"):
        relate(asked, Seen())
