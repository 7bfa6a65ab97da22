"""The checker for plug-ins catches each way to break the contract, and takes what keeps it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from polytask.adapt import Adapter, Method, PrefixTuning, Where
from polytask.adapt.base import normal
from polytask.testing import check_adapter

Body = Callable[["Shift", Any, Any, Any], Any]


@dataclass(frozen=True)
class Own(Method):
    """A shift per task, of which one thing may be wrong."""

    kinds = ("linear",)

    body: Body
    wrong: str = ""
    scale: float = field(default=1.0)

    def build(self, layer, tasks, generator, common=None):
        return Shift(layer, self, tasks, generator)


class Shift(Adapter):
    per_task = ("shift_TO",)
    folds = True

    def __init__(self, layer, settings, tasks, generator):
        super().__init__(layer)
        self.settings = settings
        draw = None if settings.wrong == "global" else generator
        shift = torch.empty(tasks, layer.outputs).normal_(0, 1, generator=draw)
        self.shift_TO = nn.Parameter(shift)
        if settings.wrong == "axis":
            self.shift_TO = normal((layer.outputs, tasks), 0.0, 1.0, generator)
        if settings.wrong == "unused":
            self.unused = nn.Parameter(torch.zeros(3))
        self.calls = 0

    def forward(self, x, y, rows):
        return self.settings.body(self, x, y, rows)

    def change(self, task, weight_OI, bias_O):
        right = self.shift_TO[task].detach().double()
        return torch.zeros_like(weight_OI), right * (2 if self.settings.wrong == "change" else 1)


def good(self, x, y, rows):
    return y + rows.take(self.shift_TO, y, none=0.0).unsqueeze(1)


def everywhere(self, x, y, rows):
    return y + rows.take(self.shift_TO, y).unsqueeze(1)


def neighbours(self, x, y, rows):
    shift = rows.take(self.shift_TO, y, none=0.0)
    return y + rows.only(shift + 0.1 * shift.roll(1, 0), 0.0).unsqueeze(1)


def alike(self, x, y, rows):
    return y + rows.only(self.shift_TO.mean(0).expand(len(rows.at_B), -1), 0.0).unsqueeze(1)


def leaking(self, x, y, rows):
    shift = rows.take(self.shift_TO, y, none=0.0) + 0.01 * rows.only(
        self.shift_TO.sum(0).expand(len(rows.at_B), -1), 0.0
    )
    return y + shift.unsqueeze(1)


def looping(self, x, y, rows):
    for t, shift_O in enumerate(self.shift_TO):
        y = y + (rows.index_B == t).view(-1, 1, 1) * shift_O
    return y


def looking(self, x, y, rows):
    if int(rows.at_B[0]) == 0:
        return good(self, x, y, rows)
    return good(self, x, y, rows) + 0.0


def rough(self, x, y, rows):
    return y + 0.0 * x.mean() + rows.take(self.shift_TO, y, none=1e-9).unsqueeze(1)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Own(everywhere), "a row without a task is not the base's, bit for bit"),
        (Own(rough), "a row without a task is not the base's, bit for bit"),
        (Own(neighbours), "of a mixed batch is not what it is alone"),
        (Own(alike), "tasks make no difference"),
        (Own(leaking), "a task without rows gets a gradient"),
        (Own(looping), "operators with 20 and 60 tasks"),
        (Own(good, "global"), "building draws from torch's generator"),
        (Own(good, "unused"), "unused gets no gradient"),
        (Own(good, "change"), "folded in, is not its forward pass"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.body.__name__} {value.wrong}",
)
def test_each_way_to_break_it_is_caught(method, said):
    with pytest.raises(AssertionError, match=said):
        check_adapter(method)


def test_a_look_at_the_index_is_caught():
    with pytest.raises(Exception, match=r"Could not guard|data-dependent|graph break|\.item\(\)"):
        check_adapter(Own(looking))


def test_what_keeps_it_passes():
    check_adapter(Own(good))
    check_adapter(Own(good), Where(("mlp.0",)), seed=3)


def test_a_method_for_no_layer_there_is_said():
    with pytest.raises(AssertionError, match="it can change no layer of the small models"):
        check_adapter(PrefixTuning(), "nowhere")
