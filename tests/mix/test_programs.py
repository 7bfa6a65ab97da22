"""Programs: one compilation for each task and resolution, however often they alternate."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.mix import Programs


def counting():
    """Return a compiler of torch's that counts the graphs it is given, and the counts."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    def compiler(function):
        return torch.compile(function, dynamic=False, backend=backend)

    return compiler, graphs


def test_tasks_of_many_resolutions_are_compiled_once_each_and_all_of_them():
    """10 shapes of one function are beyond torch's limit of 8, after which it compiles nothing."""
    torch.manual_seed(0)
    encoder, head, paint = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3), nn.Conv2d(4, 1, 1)

    def classes(pictures: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(encoder(pictures).mean((2, 3))), labels)

    def clean(pictures: Tensor) -> Tensor:
        return F.mse_loss(paint(encoder(pictures)), pictures)

    compiler, graphs = counting()
    programs = Programs({"classes": classes, "clean": clean}, compiler)
    for _ in range(2):
        for side in range(4, 14):
            pictures = torch.randn(2, 1, side, side)
            loss = programs("classes", pictures, torch.tensor([0, 2]))
            torch.testing.assert_close(loss, classes(pictures, torch.tensor([0, 2])))
            if side < 6:
                loss.backward()
                torch.testing.assert_close(programs("clean", pictures), clean(pictures))
    assert len(programs) == len(graphs) == 10 + 2
    with torch.no_grad():
        programs("clean", torch.randn(2, 1, 4, 4))
    assert len(programs) == len(graphs) == 13
    assert encoder.weight.grad is not None


def test_inputs_of_names_and_of_types_have_programs_of_their_own():
    made = []

    def compiler(function):
        made.append(function)
        return function

    programs = Programs({"sum": lambda batch, scale: batch["x"].sum() * scale}, compiler)
    x = torch.ones(3)
    for batch in ({"x": x}, {"x": x}, {"x": x.double()}, {"x": x, "y": x}, {"x": torch.ones(4)}):
        assert float(programs("sum", batch, 2)) == 2 * len(batch["x"])
    assert len(programs) == len(made) == 4
    assert float(programs("sum", {"x": x}, 3)) == 9
    assert len(programs) == 5


def test_an_unknown_task_is_named():
    with pytest.raises(UsageError, match=r"Unknown task 'clases'. Did you mean 'classes'\?"):
        Programs({"classes": len})("clases", [])
