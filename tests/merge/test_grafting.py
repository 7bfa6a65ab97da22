"""Grafting finds the entries that were made to matter, and its descent is the source's equation."""

import math

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.merge import Grafting
from polytask.merge.family import Family
from polytask.merge.regions import Regions, most_moved
from polytask.tasks import Regression, Task, TaskSet

TASKS = TaskSet([Task("a", Regression()), Task("b", Regression())])


class Line(nn.Module):
    """Rows of 8 numbers -> their product with the weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight[:, None]


TUNED = {
    "a": [2.0, -1.0, 0.5, 0.4, 0.0, 0.0, 0.3, 0.0],
    "b": [0.0, 0.3, 0.6, 0.0, 3.0, 1.5, 0.0, 0.0],
}


@pytest.fixture
def family():
    return Family(Line([0.0] * 8), {name: Line(w) for name, w in TUNED.items()}, TASKS, own=[])


def rows(need, seed):
    """Return inputs, and targets that need only some of a task's entries."""
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, x @ torch.tensor(need, dtype=torch.float64)


def test_the_starting_region_is_the_largest_changes_of_the_whole_model():
    deltas = {
        "w": torch.tensor([[[3.0, -1.0], [0.1, 0.0]], [[0.0, 0.2], [0.2, -9.0]]]),
        "b": torch.tensor([[-2.0, 0.0], [0.0, 0.0]]),
    }
    regions = most_moved(deltas, 0.34)  # 2 of 6
    assert regions.kept["w"].tolist() == [
        [[True, False], [False, False]], [[False, True], [True, True]],
    ]  # fmt: skip
    assert regions.kept["b"].tolist() == [[True, False], [False, False]]
    assert most_moved(deltas, 1e-9).share.tolist() == [1 / 6, 1 / 6]
    everything = most_moved(deltas, 1.0).share  # but what did not change is in no region
    assert everything.tolist() == [4 / 6, 3 / 6]


def test_overlap_is_the_part_of_one_region_in_the_other():
    kept = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    regions = Regions({"w": kept, "b": kept[:, :2]})
    wanted = torch.tensor([[1, 2 / 6, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(regions.overlap, wanted)
    assert regions.share.tolist() == [1.0, 2 / 6, 0.0]


def test_grafts_change_the_region_alone_and_meet_in_the_mean(family):
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[0, [0, 2]] = True
    kept[1, [2, 4]] = True
    regions = Regions({"weight": kept})
    of_a = regions.graft(family, "a").shared["weight"].tolist()
    assert of_a == [2.0, 0, 0.5, 0, 0, 0, 0, 0]
    union = regions.union(family).shared["weight"]
    torch.testing.assert_close(union, torch.tensor([2.0, 0, 0.55, 0, 3, 0, 0, 0]).double())
    merged = regions.union(family)
    assert torch.equal(merged.learned["region/weight"], kept)
    model = family.build("a", merged)
    assert torch.equal(model.weight, union)


def test_one_step_is_the_equation_of_the_source(family):
    """d loss / d logits = gradient * tau * (1 - 2 start) * s (1 - s), s = sigmoid(-bias)."""
    data = {"a": rows(TUNED["a"], 1), "b": rows(TUNED["b"], 2)}
    states = []
    method = Grafting(0.25, bias=2.0, learning_rate=3.0, rounds=1, batch_size=400)
    from polytask.merge.search import Saving

    method(family, data, saving=Saving(states.append, 1))
    s = 1 / (1 + math.exp(2.0))
    for t, task in enumerate("ab"):
        tau = torch.tensor(TUNED[task], dtype=torch.float64)
        start = (tau.abs() >= tau.abs().sort().values[-2]).double()
        x, y = data[task]
        mask = start + (1 - 2 * start) * s
        grad = 2 * x.T @ (x @ (mask * tau) - y) / len(x)
        wanted = -3.0 * grad * tau * (1 - 2 * start) * s * (1 - s)
        torch.testing.assert_close(states[-1].values["weight"][t], wanted, rtol=1e-6, atol=1e-9)


def test_descent_finds_what_the_task_needs_and_leaves_what_it_does_not(family):
    """Task a's targets need entries 0, 1 and 6; its largest changes, 0 and 1, are a start."""
    need_a = [2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.0]
    need_b = [0.0, 0.0, 0.0, 0.0, 0.0, 1.5, 0.0, 0.0]  # of its start, 4 and 5, only one
    data = {"a": rows(need_a, 1), "b": rows(need_b, 2)}
    method = Grafting(0.25, bias=2.0, learning_rate=50.0, rounds=200)
    regions, losses = method.localise(family, data)
    assert regions.kept["weight"].int().tolist() == [
        [1, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
    ]
    assert losses[-1] < 0.2 * losses[0]
    assert regions.overlap.tolist() == [[1, 0], [0, 1]]


def test_a_search_that_was_stopped_goes_on_bit_for_bit(family):
    from polytask.merge.search import Saving

    data = {"a": rows(TUNED["a"], 1), "b": rows(TUNED["b"], 2)}
    method = Grafting(0.25, bias=2.0, learning_rate=10.0, rounds=6, batch_size=50)
    states = []
    whole = method(family, data, saving=Saving(states.append, 2))
    again = method(family, data, state=states[0])
    assert whole.losses == again.losses
    for name, tensor in whole.learned.items():
        assert torch.equal(tensor, again.learned[name])


def test_without_rounds_no_data_is_needed(family):
    merged = Grafting(0.25, rounds=0)(family)
    assert merged.learned["region/weight"].int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0],
    ]  # fmt: skip
    assert merged.losses == ()
    with pytest.raises(UsageError, match="give data with labels of every task, or rounds=0"):
        Grafting()(family)
    with pytest.raises(UsageError, match=r"Grafting: share is 0; give a share in \(0, 1\]"):
        Grafting(0)
    with pytest.raises(UsageError, match="Grafting: rounds is -1"):
        Grafting(rounds=-1)
