"""SkillNet: who lists a skill runs it, who lists it alone owns it, and what is listed must fit."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.share import SkillNet, expert_use
from polytask.tasks import Binary, Multiclass, Task, TaskSet

from .conftest import WIDTH, Encoder, binary, make, rows

SKILLS = {"t0": ("see", "count"), "t1": ("see",), "t2": ()}


def built(skills=SKILLS):
    torch.manual_seed(0)
    return SkillNet.build(Encoder(), WIDTH, binary(3), skills, layers=2).double()


def test_skills_not_listed_do_not_run():
    model = built()
    for task, count in {"t0": 3, "t1": 2, "t2": 1}.items():
        stacked = model.trunk.stack([task])
        assert len(stacked["skills0_0_weight"]) == count
        assert len(stacked["skills1_0_weight"]) == count
    # On the first layer, where all read the same rows, what two list runs once.
    stacked = model.trunk.stack(["t0", "t1", "t2"])
    assert len(stacked["skills0_0_weight"]) == 3
    assert len(stacked["skills1_0_weight"]) == 3 + 2 + 1
    outputs = model(rows())
    count = list(model.trunk.skills["task_count"].parameters())
    for task in ("t1", "t2"):
        gradients = torch.autograd.grad(
            outputs[task].sum(), count, allow_unused=True, retain_graph=True
        )
        assert not any(g is not None and g.any() for g in gradients)


def test_a_skill_of_one_is_its_own_until_another_lists_it():
    model = built()
    own = {id(p) for p in model.trunk.skills["task_count"].parameters()}
    assert own < {id(p) for p in model.task_parameters("t0")}
    before = model(rows())
    model.trunk.add_task("t3", ["count"])
    again = model(rows(), tasks=("t0", "t1", "t2"))
    assert all(torch.equal(before[t], again[t]) for t in before)
    assert own < {id(p) for p in model.shared_parameters()}
    assert not own & {id(p) for p in model.task_parameters("t0")}


def test_without_a_list_a_task_has_a_skill_of_its_own_and_one_of_its_kind():
    tasks = TaskSet([Task("a", Binary()), Task("b", Multiclass(3)), Task("c", Binary())])
    model = SkillNet.build(Encoder(), WIDTH, tasks)
    binary_, multiclass = f"kind {Binary.name}", f"kind {Multiclass.name}"
    assert model.trunk.of("a") == ("generic", "of a", binary_)
    assert model.trunk.of("b") == ("generic", "of b", multiclass)
    assert model.trunk.names() == ("generic", "of a", binary_, "of b", multiclass, "of c")


def test_the_use_of_skills_is_told():
    (first, *_) = expert_use(built(), [rows()]).gates
    assert first.reader == "t0"
    assert dict(zip(first.experts, first.mean, strict=True)) == pytest.approx(
        {"generic": 1 / 3, "see": 1 / 3, "count": 1 / 3}
    )
    assert first.owners == (None, None, "t0")


def test_what_does_not_fit_is_answered():
    with pytest.raises(UsageError, match="skills are given for t0; the tasks are t0, t1, t2"):
        built({"t0": ()})
    with pytest.raises(UsageError, match="give at least one task and one layer; got 3 tasks and 0"):
        make("skillnet:layers=0")
