"""What is extracted runs elsewhere: by torch.export, and by ONNX in its own runtime, at any batch.

Of all architectures with their default settings; `test_trunks` and `test_pictures` try
`torch.export` with odd ones too.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.catalog import METHODS
from polytask.parsing import parse
from polytask.recipes.train import build
from polytask.share.staged import largest

from . import pictures as of_pictures
from .conftest import make, rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
"""Of the exporter's own."""

OF_PICTURES = tuple(of_pictures.SETTINGS)
OF_ROWS = tuple(row.name for row in METHODS if row.room == "share" and row.name not in OF_PICTURES)
ON_SUITES = (("pixels", "hard"), ("pixels", "hard:on=tokens"), ("pictures", "hard"))
"""A UNet, a ViT and a ConvNet: what the decoders above stand on in the suites."""


def runs_elsewhere(alone: nn.Module, inputs: Callable[[int], Tensor], tolerance: float) -> None:
    """Assert that both give what `alone` gives, whatever the number of rows."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(alone, (inputs(3),), dynamic_shapes=({0: batch},))
    made = torch.onnx.export(program, (inputs(3),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    (name,) = (entry.name for entry in session.get_inputs())
    for number in (1, 2, 5):
        given = inputs(number)
        wanted = alone(given).detach()
        assert number == 1 or wanted.std(0).max() > 100 * tolerance  # else nothing is compared
        torch.testing.assert_close(program.module()(given), wanted, rtol=1e-6, atol=tolerance)
        (output,) = session.run(None, {name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("recipe", OF_ROWS)
def test_of_rows(recipe):
    alone = make(recipe, 3).extract("t1").eval()
    runs_elsewhere(alone, lambda number: rows(number, seed=number), 1e-9)


@pytest.mark.parametrize("recipe", [*OF_PICTURES, "hard", "mmoe", "cross-stitch"])
def test_of_pictures(recipe):
    """In float32, for the runtime has no convolution in float64; windows of odd sizes."""
    alone = of_pictures.make(recipe).float().extract("t0").eval()
    runs_elsewhere(alone, lambda number: of_pictures.pictures(number, number).float(), 1e-5)


@pytest.mark.parametrize(("of", "recipe"), ON_SUITES)
def test_on_the_encoders_of_the_suites(of, recipe):
    made = of_pictures.suite(of)
    model, _, _ = build(made, parse(recipe), 0)
    train = made.train[0].inputs
    assert isinstance(train, Tensor)
    runs_elsewhere(model.extract("inside").eval(), lambda number: train[number : 2 * number], 1e-5)


@pytest.mark.parametrize("sizes", [((9, 10), (4, 4)), ((13, 5), (5, 9)), ((12, 7), (3, 7))])
def test_windows_while_exporting_are_those_of_adaptive_pooling(sizes):
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return largest(x, sizes[1])

    x = torch.randn(2, 3, *sizes[0], generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Largest(), (x,))
    assert "adaptive" not in program.graph_module.code
    assert torch.equal(program.module()(x), functional.adaptive_max_pool2d(x, sizes[1]))
