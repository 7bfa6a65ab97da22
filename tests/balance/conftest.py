"""What the balance tests share: a toy model, hard gradients, and signals made from rows."""

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from polytask.balance import Balance, Balancer, Signal

HARD = {
    "random": torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "opposed": torch.tensor([[1.0, 2], [-1, -2], [2, 4], [-3, -6]], dtype=torch.float64),
    "low-rank": torch.tensor([[1.0, 0, 1], [0, 1, -1], [1, 1, 0], [2, -1, 3]], dtype=torch.float64),
    "one zero": torch.tensor([[0.0, 0], [1, -2], [-2, 1], [1, 1]], dtype=torch.float64),
    "zero": torch.zeros(4, 5, dtype=torch.float64),
    "one task": torch.tensor([[3.0, -4.0]], dtype=torch.float64),
}
HARD |= {f"random x {s:g}": HARD["random"] * s for s in (1e-10, 1e15)}
HARD["unlike"] = HARD["random"] * torch.tensor([[1e-10], [1], [1e7], [1e15]], dtype=torch.float64)


@pytest.fixture(params=list(HARD))
def rows_KP(request: pytest.FixtureRequest) -> Tensor:
    return HARD[request.param].clone()


@pytest.fixture
def signal() -> Callable[..., Signal]:
    def build(
        rows_KP: Tensor,
        step: int = 0,
        at: tuple[int, ...] | None = None,
        losses: tuple[float, ...] | None = None,
        tasks: int | None = None,
    ) -> Signal:
        index_K = torch.arange(len(rows_KP)) if at is None else torch.tensor(at)
        losses_K = torch.tensor(losses or (1.0,) * len(rows_KP))
        count = tasks or int(index_K.max()) + 1
        return Signal(losses_K, index_K, count, step, None, rows_KP @ rows_KP.T, rows_KP)

    return build


@pytest.fixture
def weigh() -> Callable[..., list[list[float]]]:
    """A function (method, losses per step, steps per epoch) -> the balancer's weights per step.

    NaN stands for an absent task, in the losses and in the weights.
    """

    def run(
        method: Balance, steps: Sequence[Sequence[float]], steps_per_epoch: int = 1
    ) -> list[list[float]]:
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        names = [f"task {t}" for t in range(len(steps[0]))]
        balancer = Balancer(method, [leaf], names, steps_per_epoch)
        weights = []
        for losses in steps:
            there = {n: leaf * x for n, x in zip(names, losses, strict=True) if not math.isnan(x)}
            used = balancer.backward(there)
            weights.append([used.get(name, math.nan) for name in names])
        return weights

    return run


@pytest.fixture
def gradient() -> Callable[[Callable[[Tensor], Tensor], Sequence[float]], list[float]]:
    """A function (objective, losses) -> autograd's gradient in the losses, which weights are."""

    def differentiate(objective: Callable[[Tensor], Tensor], losses: Sequence[float]):
        losses_K = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(objective(losses_K), losses_K)[0].tolist()

    return differentiate


class Toy(nn.Module):
    """Two shared layers, one that no task reaches, and a head per task."""

    def __init__(self, tasks: tuple[str, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
        self.idle = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in tasks})
        self.to(dtype)

    def shared(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.idle.parameters()]

    def losses(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean squared error of each task over the rows whose target is no NaN."""
        return self.shares(
            inputs, targets, {n: int((~t.isnan()).sum()) for n, t in targets.items()}
        )

    def shares(
        self, inputs: Tensor, targets: Mapping[str, Tensor], counts: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Return each task's sum of squared errors over the count given; absent tasks left out."""
        features = self.encoder(inputs)
        result = {}
        for name, target in targets.items():
            here = ~target.isnan()
            if bool(here.any()):
                error = self.heads[name](features[here])[:, 0] - target[here]
                result[name] = error.square().sum() / counts[name]
        return result

    def grads(self) -> dict[str, Tensor | None]:
        """Return a copy of every gradient, and clear them."""
        kept = {n: None if p.grad is None else p.grad.clone() for n, p in self.named_parameters()}
        self.zero_grad(set_to_none=True)
        return kept


@pytest.fixture
def toy() -> Callable[..., tuple[Toy, Tensor, dict[str, Tensor]]]:
    """A function -> (model, inputs, targets); targets of task i miss every (i + 2)-th row."""

    def build(tasks: int = 3, rows: int = 12, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        names = tuple(f"task {i}" for i in range(tasks))
        model = Toy(names, dtype)
        inputs = torch.randn(rows, 5, dtype=dtype)
        targets = {name: torch.randn(rows, dtype=dtype) * (1 + i) for i, name in enumerate(names)}
        for i, target in enumerate(targets.values()):
            target[:: i + 2] = torch.nan
        return model, inputs, targets

    return build
