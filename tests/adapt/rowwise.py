"""An adapter against a plain loop over rows: the same output and the same gradients."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from polytask.adapt import Adapted, Adapter, Method, Where, adapt

TASKS = ("a", "b", "c")
INDEX_B = torch.tensor([0, 2, -1, 1, 2])

Loop = Callable[[Adapter, Tensor, Tensor, int], Tensor]
"""(adapter, x_NC, y_NC, task) -> the changed output of one row, (N, C)."""


class Tokens(nn.Module):
    """(B, N, 6) -> two linear layers of 8 channels each -> (B, N, 8)."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, wide), nn.Linear(wide, wide)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def model(dtype: torch.dtype = torch.float64, wide: int = 8) -> Tokens:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Tokens(wide).to(dtype)


def moved(adapted: Adapted, seed: int = 1, by: float = 0.3) -> Adapted:
    """Return it with adapters that have been trained a little."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parts.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += by * noise.to(parameter.dtype)
    return adapted


def looped(adapted: Adapted, loop: Loop, x: Tensor, index_B: Tensor) -> Tensor:
    """Return the model's output, one row after another, written out from the equations."""
    (part,) = adapted.parts
    out = []
    for row, task in zip(x, index_B.tolist(), strict=True):
        for i, block in enumerate(adapted.base.blocks):
            y = nn.functional.linear(row, block.weight, block.bias)
            path = f"blocks.{i}"
            if task >= 0 and any(layer.path == path for layer in part.layers):
                y = loop(part.at(path), row, y, task)
            row = torch.tanh(y)
        out.append(row)
    return torch.stack(out)


def check_rowwise(
    method: Method, loop: Loop, where: Where | str | None = None, index_B: Tensor = INDEX_B
) -> None:
    """Hold the method to the loop: 1e-11 in float64, 1e-5 in float32, gradients as well."""
    for dtype, close in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        adapted = moved(adapt(model(dtype), method, TASKS, where))
        twin = copy.deepcopy(adapted)
        x = torch.randn(len(index_B), 4, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
        with adapted.tasks(index_B):
            ours = adapted(x)
        theirs = looped(twin, loop, x, index_B)
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        pull = torch.linspace(-1, 1, ours.numel(), dtype=dtype).view_as(ours)
        torch.autograd.backward((ours * pull).sum())
        torch.autograd.backward((theirs * pull).sum())
        pairs = zip(adapted.parts.named_parameters(), twin.parts.parameters(), strict=True)
        for (name, mine), other in pairs:
            assert mine.grad is not None, name
            assert other.grad is not None, name
            scale = max(1.0, float(other.grad.abs().max()))
            torch.testing.assert_close(mine.grad / scale, other.grad / scale, rtol=0, atol=close)
