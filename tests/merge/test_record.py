"""The record of merges: what a page is made of, kept in a folder."""

import json
from dataclasses import replace

import pytest
import torch

from polytask.errors import RunError, UsageError
from polytask.merge import (
    ATLAS,
    TIES,
    AdaMerging,
    Merged,
    MergeRecord,
    SelfPositioning,
    maps,
    merge,
    merge_record,
)
from polytask.tasks import Multiclass, Task, TaskSet

from .families import TASKS, WITH_REGRESSION, inputs, mlp, targets


def size(task, model):
    """A score that differs from model to model: the size of its first layer, and of its head."""
    with torch.no_grad():
        return float(model.body[0].weight.norm() + model.head.weight.norm())


@pytest.fixture(scope="module")
def family():
    return mlp()


@pytest.fixture(scope="module")
def record(family):
    x = inputs("mlp")
    labelled = {task: (x[task], target) for task, target in targets().items()}
    merges = {
        "ties": merge(family.base, [family.shared(t) for t in TASKS.names], TIES()),
        "adamerging": AdaMerging(rounds=3)(family, x),
        "self-positioning": SelfPositioning(rounds=2, probe=8)(family, labelled),
        "atlas in parts": ATLAS(epochs=2, parts=3)(family, labelled),
    }
    joint = {"c": 3.0, "a": 1.0, "b": 2.0}
    return merges, merge_record(family, merges, size, joint=joint, title="Three tasks")


def test_every_end_and_merge_is_scored(family, record):
    merges, made = record
    assert made.title == "Three tasks"
    assert list(made.measures) == ["a", "b", "c"]
    assert (made.measures["a"].name, made.measures["a"].direction) == ("accuracy", "max")
    assert made.joint == {"a": 1.0, "b": 2.0, "c": 3.0}
    shared = {"ties": merges["ties"], "base": family.base}
    for task in TASKS.names:
        head = family.own(task)["head.weight"].norm()
        own = family.shared(task)["body.0.weight"].norm()
        assert made.individual[task] == pytest.approx(float(own + head))
        found = {"ties": made.merges["ties"].scores[task], "base": made.base[task]}
        for name, tensors in shared.items():
            assert found[name] == pytest.approx(float(tensors["body.0.weight"].norm() + head))
    assert made.maps == maps(
        family.base, [family.shared(t) for t in TASKS.names], labels=TASKS.names
    )
    assert made.created


def test_coefficients_and_losses_are_those_of_the_searches(family, record):
    merges, made = record
    assert made.merges["ties"].coefficients is None
    assert made.merges["ties"].losses == ()
    by_layer = made.merges["adamerging"]
    assert by_layer.losses == merges["adamerging"].losses
    assert by_layer.coefficients.rows == family.names
    expected = merges["adamerging"].learned["coefficients"]
    assert torch.equal(torch.tensor(by_layer.coefficients.values), expected.float())
    for_all = made.merges["self-positioning"].coefficients
    assert for_all.rows == ()
    assert [len(row) for row in for_all.values] == [3]
    in_parts = made.merges["atlas in parts"].coefficients
    assert (in_parts.parts, len(in_parts.values)) == (3, len(family.names))
    mean = merges["atlas in parts"].learned["coefficients"].double().mean(2)
    assert torch.allclose(torch.tensor(in_parts.values, dtype=torch.float64), mean)


def test_what_is_saved_comes_back(record, tmp_path):
    _, made = record
    path = made.save(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "merge.json"
    assert MergeRecord.load(path.parent) == made
    assert list(path.parent.iterdir()) == [path]


def test_one_task_has_scores_and_no_maps():
    tasks = TaskSet([Task("a", Multiclass(3))])
    family = mlp(tasks)
    made = merge_record(family, {"none": Merged(family.base)}, size)
    assert made.maps is None
    assert made.merges["none"].scores == made.base


def test_any_kind_of_task_has_its_own_measure():
    family = mlp(WITH_REGRESSION)
    made = merge_record(family, {"mean": family.mean()}, size)
    assert made.measures["price"].direction == "min"


@pytest.mark.parametrize(
    ("merges", "joint", "said"),
    [
        ({}, None, "give at least one"),
        ({"base": {}}, None, r"none by the name of an end \(individual, joint, base\)"),
        ({"x": {}}, {"a": 1.0}, r"joint has \['a'\]; give a score for"),
    ],
)
def test_wrong_use_is_said(family, merges, joint, said):
    with pytest.raises(UsageError, match=said):
        merge_record(family, merges, size, joint=joint)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("maps"),
        lambda raw: raw["merges"]["ties"]["scores"].pop("a"),
        lambda raw: raw["measures"]["a"].update(direction="up"),
        lambda raw: raw["measures"]["a"].update(colour="red"),
        lambda raw: raw["maps"]["layers"][0]["cosines"].pop(),
        lambda raw: raw["merges"]["adamerging"]["coefficients"]["rows"].pop(),
        lambda raw: raw["merges"]["adamerging"]["coefficients"]["values"][0].pop(),
        lambda raw: raw.update(title=3),
        lambda raw: raw.update(merges=[1]),
    ],
)
def test_a_file_that_is_something_else_is_named(record, tmp_path, change):
    raw = json.loads(record[1].save(tmp_path).read_text())
    change(raw)
    (tmp_path / "merge.json").write_text(json.dumps(raw))
    with pytest.raises(RunError, match=r"merge\.json is not a record of merges"):
        MergeRecord.load(tmp_path)


def test_what_is_not_finite_comes_back_as_nan(record, tmp_path):
    _, made = record
    made = replace(made, individual=made.individual | {"a": float("inf")})
    made.save(tmp_path)
    assert MergeRecord.load(tmp_path).individual["a"] != MergeRecord.load(tmp_path).individual["a"]
