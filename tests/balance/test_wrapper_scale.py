"""Wrappers under a loss scaler: the updates without it, and no trace of those that overflow."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from polytask.balance import (
    MGDA,
    Balancer,
    CAGrad,
    EveryN,
    FeatureLevel,
    FlatRegions,
    Fuller,
    GradDrop,
    GradNorm,
    LookAhead,
    PCGrad,
    Rows,
    SampledRows,
    Uncertainty,
    UPGrad,
    Weighed,
    Wrapper,
)

METHODS: dict[str, Callable[[], Wrapper]] = {
    "every-n": lambda: EveryN(PCGrad(), n=3),
    "every-n, trained": lambda: EveryN(GradNorm(), n=2),
    "every-n, sampled rows": lambda: EveryN(SampledRows(UPGrad(), 0.5), n=2),
    "feature level": lambda: FeatureLevel(MGDA()),
    "feature level, rows": lambda: FeatureLevel(GradDrop()),
    "sampled rows": lambda: SampledRows(CAGrad(), 0.5),
    "flat regions": lambda: FlatRegions(PCGrad()),
    "flat regions, rows": lambda: FlatRegions(GradDrop()),
    "flat regions, trained": lambda: FlatRegions(Uncertainty()),
    "look-ahead": lambda: LookAhead(MGDA(), lr=0.005),
    "look-ahead, trained": lambda: LookAhead(Uncertainty(), lr=0.005),
    "fuller": lambda: Fuller(UPGrad()),
    "weighed": lambda: Weighed(PCGrad(), by=Uncertainty()),
    "weighed, look-ahead": lambda: Weighed(LookAhead(PCGrad(), lr=0.005), by=Uncertainty()),
}
ROWS = 16
HUGE = 3e38


class Run:
    """A toy model trained by a wrapper, with or without a scaler."""

    def __init__(self, toy: Callable, name: str) -> None:
        self.model, self.inputs, self.targets = toy(rows=ROWS)
        first, last = self.model.encoder[0], self.model.encoder[2]
        branches = {"first": list(first.parameters()), "last": list(last.parameters())}
        self.balancer = Balancer(
            METHODS[name](), self.model.shared(), self.model.heads, branches=branches
        )
        self.trained = [*self.model.parameters(), *self.balancer.parameters()]
        self.optimiser = torch.optim.SGD(self.trained, lr=0.005)

    def losses(self, rows: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        # Here and there no row has a label of the last task.
        last = [*self.model.heads][-1]
        lacks = {last} if self.balancer.step == 1 else set()
        there = {t: self.targets[t][rows] for t in tasks if t not in lacks}
        # Steep enough for HUGE to overflow in every gradient.
        return {t: 20 * v for t, v in self.model.losses(self.inputs[rows], there).items()}

    def update(self, scale: float | None, parts: int = 1) -> None:
        self.optimiser.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        scaler.scale(torch.zeros(()))  # makes it ready, as scaler.scale(loss) does
        shares = torch.arange(ROWS).tensor_split(parts)
        for n, share in enumerate(shares):

            def again(rows: Rows, tasks: Sequence[str], share: Tensor = share) -> dict[str, Tensor]:
                found = self.losses(rows(share), tasks)
                return {t: loss / parts for t, loss in found.items()}

            self.weights = self.balancer.backward(
                again(Rows(), [*self.model.heads]), accumulate=n + 1 < parts, again=again,
                scale=scale,
            )  # fmt: skip
        scaler.step(self.optimiser)

    def left(self) -> list[Tensor]:
        """Return all that later updates depend on, copied."""
        return [p.detach().clone() for p in self.trained] + [
            v.clone() for k, v in self.balancer.state_dict().items() if not k.startswith("engine.")
        ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_loss_scaler_changes_no_update(toy, name, parts):
    if "rows" in name.split(", ")[1:] and name.startswith("feature level") and parts > 1:
        pytest.skip("takes no micro-batches, see test_wrapper_shares")
    plain, scaled = Run(toy, name), Run(toy, name)
    before = scaled.left()
    for _ in range(4):
        plain.update(None, parts)
        scaled.update(2.0**12, parts)
        assert dict(scaled.weights) == pytest.approx(dict(plain.weights), rel=1e-4, abs=1e-5)
    assert not same(before, scaled.left())
    for mine, theirs in zip(scaled.left(), plain.left(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", METHODS)
def test_updates_that_overflow_are_passed_over_and_leave_no_trace(toy, name):
    disturbed, calm = Run(toy, name), Run(toy, name)
    for _ in range(4):  # before looks and between them
        before = disturbed.left()
        disturbed.update(HUGE)
        assert not disturbed.weights
        assert same(before, disturbed.left())
        for run in (disturbed, calm):
            run.update(2.0**12)
        assert disturbed.weights.tasks == calm.weights.tasks
    assert int(calm.balancer.state_dict()["step"]) == 4
    assert same(disturbed.left(), calm.left())


def test_an_overflow_that_no_gramian_shows_is_found_in_the_gradients(toy):
    """Between two looks EveryN compares nothing."""
    run = Run(toy, "every-n")
    run.update(1.0)
    assert run.balancer.step == 1
    run.update(HUGE)
    assert "weights of the last look" in run.balancer.engine
    assert not run.weights
    assert run.balancer.step == 1
