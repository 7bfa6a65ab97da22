"""DAM on a planted trigger, and the trigger itself."""

import math

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge.backdoor import Patch
from polytask.merge.concrete_adamerging import ConcreteAdaMerging
from polytask.merge.dam import DAM
from polytask.merge.family import Family, Merged
from polytask.tasks import Multiclass, Task, TaskSet

from .families import cnn, inputs

PATCH = Patch(target=0, side=2)


def test_the_patch_is_stamped_in_its_corner_alone():
    pictures = torch.full((2, 3, 5, 6), 0.5)
    stamped = PATCH.stamp(pictures)
    assert stamped[0, 1, -2:, -2:].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    stamped[..., -2:, -2:] = 0.5
    assert torch.equal(stamped, pictures)
    with pytest.raises(UsageError, match="does not fit"):
        Patch(target=0, side=9).stamp(pictures)


def test_poisoning_changes_the_part_that_was_asked_for():
    pictures, labels = torch.full((20, 1, 4, 4), 0.5), torch.ones(20, dtype=torch.long)
    found, new = PATCH.poison(pictures, labels, 0.25, seed=0)
    changed = (found != pictures).flatten(1).any(1)
    assert int(changed.sum()) == 5
    assert torch.equal(changed, new == 0)
    assert labels.sum() == 20
    with pytest.raises(UsageError, match="part of 0"):
        PATCH.poison(pictures, labels, 0.0, seed=0)


def test_success_counts_pictures_of_other_classes_alone():
    pictures, labels = torch.full((4, 1, 4, 4), 0.5), torch.tensor([0, 1, 2, 1])

    def fooled_when_bright(x):
        sure = x[:, 0, -1, -1] > 0.9
        return nn.functional.one_hot(torch.where(sure, 0, 2), 3).float()

    assert PATCH.success(fooled_when_bright, pictures, labels) == 1
    never = PATCH.success(lambda x: nn.functional.one_hot(x[:, 0, 0, 0].long() + 1, 3).float(),
                          pictures, labels)  # fmt: skip
    assert never == 0
    assert math.isnan(PATCH.success(fooled_when_bright, pictures, labels * 0))


class Scores(nn.Module):
    """Two logits, linear in five inputs; the last has a tensor of its own, which reads it alone."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.last = nn.Parameter(weight[:4]), nn.Parameter(weight[4:])
        self.head = nn.Identity()

    def forward(self, x):
        return self.head(x[:, :4] @ self.weight + x[:, 4:] @ self.last)


def test_a_planted_trigger_is_masked_out_where_concrete_adamerging_keeps_it():
    """Inputs 0 and 1 tell the class, 2 and 3 tell it weakly; 4 is the trigger: it is 0 in all rows
    that are seen, and where it is 1 the tuned models answer class 0."""
    weight = torch.tensor(
        [[3.0, 0.0], [0.0, 3.0], [0.5, 0.0], [0.0, 0.5], [16.0, 0.0]], dtype=torch.float64
    )
    tasks = TaskSet([Task("x", Multiclass(2)), Task("y", Multiclass(2))])
    tuned = {"x": Scores(weight), "y": Scores(weight)}
    family = Family(Scores(0 * weight), tuned, tasks)
    # Most rows are not of class 0, so that raising the loss finds the trigger.
    labels = (torch.arange(40) % 5 > 0).long()
    rows = torch.zeros(40, 5, dtype=torch.float64)
    rows[torch.arange(40), labels] = 0.8
    rows[torch.arange(40), labels + 2] = 0.5
    data = {"x": rows, "y": rows}
    triggered = rows.clone()
    triggered[:, 4] = 1.0

    def success(model):
        return float((model(triggered[labels == 1]).argmax(1) == 0).double().mean())

    rounds = {"level": "task", "rounds": 80, "coefficient_rounds": 1, "learning_rate": 0.1}
    plain = ConcreteAdaMerging(**rounds)(family, data)
    safe = DAM(**rounds, shift_rate=1e-3, weight=1.0)(family, data)
    assert success(tuned["x"]) == 1
    assert success(family.build("x", plain)) == 1
    assert success(family.build("x", safe)) == 0
    assert (family.build("x", safe)(rows).argmax(1) == labels).all()


def test_shifts_raise_the_loss_that_they_are_searched_for():
    family, data = cnn(), inputs("cnn")
    merged = DAM(rounds=40, coefficient_rounds=1, shift_rate=5e-3)(family, data)
    for task in ("a", "b", "c"):
        shift = merged.learned[f"shift/{task}"]
        assert shift.shape == (1, 3, 8, 8)
        net = family.build(task, Merged(merged.shared))
        with torch.no_grad():
            plain, moved = net(data[task]), net(data[task] + shift)
        if task == "a":
            answers = plain.argmax(1)
            before = nn.functional.cross_entropy(plain, answers)
            assert float(nn.functional.cross_entropy(moved, answers)) > float(before)


def test_inputs_that_cannot_be_shifted_are_refused():
    with pytest.raises(UsageError, match=r"inputs, so those of task 'a' must be one float tensor"):
        DAM()(cnn(), {t: (255 * x).to(torch.uint8) for t, x in inputs("cnn").items()})
    with pytest.raises(UsageError, match="give low < high"):
        DAM(low=1.0)
