"""Two processes that split a batch make the updates of one process that has it whole.

This file is also the program of each process.
"""

import json
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from polytask.balance import (
    DWA,
    FAMO,
    AlignedMTL,
    Balancer,
    CAGrad,
    CoBa,
    Equal,
    EveryN,
    FeatureLevel,
    GradNorm,
    PCGrad,
    Uncertainty,
    Weighed,
)
from polytask.errors import RunError, UsageError

METHODS = {
    "equal": Equal,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "pcgrad": PCGrad,
    "aligned-mtl": AlignedMTL,
    "gradnorm": GradNorm,
    "coba": partial(CoBa, warmup=2, history=3),
}
WHOLE = {
    "famo": FAMO,
    "every-n": lambda: EveryN(PCGrad(), n=2),
    "feature-level": lambda: FeatureLevel(AlignedMTL()),
    "weighed": lambda: Weighed(CAGrad(), by=Uncertainty()),
}
"""Those that need the whole batch's losses at once."""


@dataclass(frozen=True)
class Alone(EveryN):
    """A wrapper that somebody wrote for one process."""

    spans_processes = False


RUNS = [*((name, parts) for name in METHODS for parts in (1, 2)), *((name, 1) for name in WHOLE)]
"""Into how many micro-batches each process cuts its rows."""

STEPS = 6
TASKS = ("a", "b", "c")


def data() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    targets = {t: torch.randn(8, generator=generator, dtype=torch.float64) for t in TASKS}
    targets["b"][4:] = torch.nan  # only in the first process
    targets["c"][:4] = torch.nan  # only in the second
    return inputs, targets


def model() -> tuple[nn.Module, nn.ModuleDict]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    return encoder, nn.ModuleDict({t: nn.Linear(4, 1).double() for t in TASKS})


def losses(encoder, heads, inputs, targets, counts, rows) -> dict[str, torch.Tensor]:
    features, result = encoder(inputs[rows]), {}
    for name, target in targets.items():
        here = ~target[rows].isnan()
        if bool(here.any()):
            error = heads[name](features[here])[:, 0] - target[rows][here]
            result[name] = error.square().sum() / counts[name]
    return result


def train(name: str, rank: int, world: int, parts: int) -> dict[str, list[float]]:
    """Return the weights after a few steps on this process's rows, and the weights used."""
    inputs, targets = data()
    counts = {t: int((~target.isnan()).sum()) for t, target in targets.items()}
    encoder, heads = model()
    balancer = Balancer((METHODS | WHOLE)[name](), encoder.parameters(), TASKS, steps_per_epoch=2)
    trained = [*encoder.parameters(), *heads.parameters(), *balancer.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    mine = torch.arange(8).chunk(world)[rank]
    used = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        for i, rows in enumerate(mine.chunk(parts)):
            part = losses(encoder, heads, inputs, targets, counts, rows)
            weights = balancer.backward(part, accumulate=i + 1 < parts)
        used.append([weights[t] for t in TASKS])
        if world > 1:
            for parameter in trained:
                parameter.grad = (
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
                dist.all_reduce(parameter.grad)
        optimiser.step()
        if balancer.observes:
            with torch.no_grad():
                balancer.observe(losses(encoder, heads, inputs, targets, counts, mine))
    saved = balancer.state_dict().items()
    # What the engine found out about graphs is no number of the method.
    state = torch.cat([v.double().flatten() for k, v in saved if not k.startswith("engine.")])
    return {
        "parameters": torch.cat([p.detach().flatten() for p in trained]).tolist(),
        "used": torch.tensor(used).flatten().tolist(),
        "state": state.nan_to_num().tolist(),
    }


def refusals() -> list[str]:
    """Return what processes are told when they do wrong, in step with each other."""
    rank = dist.get_rank()
    leaf = torch.ones((), requires_grad=True)
    told = []
    try:
        Balancer(Equal(), [leaf]).backward({"a": leaf * 1})
    except UsageError as error:
        told.append(str(error))
    # Not finite in the second process alone: both are told, so that neither waits for the other.
    for method in (Equal(), PCGrad()):
        try:
            broken = leaf * (torch.nan if rank else 1.0)
            Balancer(method, [leaf], ["a"]).backward({"a": broken})
        except RunError as error:
            told.append(str(error))
    try:
        Balancer(Alone(PCGrad()), [leaf], ["a"]).backward({"a": leaf * 1})
    except UsageError as error:
        told.append(str(error))
    # Left out by both, though one alone has the number that is not finite.
    for method in (Equal(), PCGrad()):
        careful = Balancer(method, [leaf], ["a"], nonfinite="skip")
        used = careful.backward({"a": leaf * (torch.nan if rank else 1.0)})
        told.append(f"{len(used)} {leaf.grad} {sum(careful.notes.values())}")
    # Without any label anywhere nobody waits either, and no gradient appears.
    if not Balancer(PCGrad(), [leaf], ["a"]).backward({}) and leaf.grad is None:
        told.append("nothing")
    return told


@pytest.fixture(scope="module")
def pair(run_pair) -> list[dict]:
    return run_pair(__file__)


@pytest.mark.parametrize(("name", "parts"), RUNS)
def test_two_processes_are_one(pair, name, parts):
    whole = train(name, 0, 1, 1)
    for result in pair:
        half = result[f"{name} {parts}"]
        for what in ("parameters", "state") + (("used",) if parts == 1 else ()):
            torch.testing.assert_close(
                torch.tensor(half[what]), torch.tensor(whole[what]), rtol=1e-6, atol=1e-7
            )
    assert pair[0][f"{name} {parts}"]["parameters"] == pair[1][f"{name} {parts}"]["parameters"]


def test_processes_are_told_together_what_went_wrong(pair):
    for result in pair:
        told = result["refusals"]
        assert "a run of several processes needs the tasks' order beforehand" in told[0]
        assert "At step 0 the loss of task 'a' is nan" in told[1]
        assert told[2] == told[1]
        assert told[3] == (
            "Alone works in one process, not in 2; use one, or the method without it."
        )
        assert told[4:] == ["0 None 1", "0 None 1", "nothing"]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    result = {f"{n} {parts}": train(n, rank, 2, parts) for n, parts in RUNS}
    print(json.dumps(result | {"refusals": refusals()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
