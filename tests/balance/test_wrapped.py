"""DistributedDataParallel and FSDP2: two processes make the updates of one that has it all.

This file is also the program of each process.
"""

import contextlib
import json
import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polytask.balance import (
    FAMO,
    AlignedMTL,
    Balancer,
    Equal,
    GradDrop,
    MoCo,
    PCGrad,
    Uncertainty,
    sum_gradients,
    sum_not_mean,
)
from polytask.balance.sharded import check_shards
from polytask.errors import UsageError

METHODS = {
    "equal": Equal,
    "uncertainty": Uncertainty,
    "famo": FAMO,
    "pcgrad": PCGrad,
    "aligned-mtl": AlignedMTL,
    "graddrop": GradDrop,
    "moco": MoCo,
}
WAYS = {
    "bare": "the model as it is",
    "ddp": "DistributedDataParallel, forward under no_sync()",
    "fsdp blocks": "every layer and head sharded on its own, freed after the forward pass",
    "fsdp whole": "one sharded group",
    "fsdp half": "the first shared layer sharded, all else on every process",
}
RUNS = [(way, name) for way in WAYS for name in METHODS]
TASKS = ("a", "b", "c")
STEPS = 4
SHARES = (slice(0, 5), slice(5, 8))  # rows of the two processes


class Model(nn.Module):
    """Sizes that two processes cannot halve."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        self.heads = nn.ModuleDict({t: nn.Linear(3, 1) for t in TASKS})
        self.double()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {t: head(features) for t, head in self.heads.items()}


def wrap(way: str, model: Model) -> nn.Module:
    if way == "ddp":
        return DistributedDataParallel(model)
    if not way.startswith("fsdp"):
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    layers = {
        "fsdp blocks": [model.encoder[0], model.encoder[2], *model.heads.values(), model],
        "fsdp whole": [model],
        "fsdp half": [model.encoder[0]],
        "fsdp mean": [model.encoder[0], model.encoder[2], model],
    }[way]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    if way != "fsdp mean":
        sum_not_mean(model)
    return model


def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        inputs = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        targets = {t: torch.randn(8, generator=generator, dtype=torch.float64) for t in TASKS}
        targets["b"][5:] = torch.nan  # labels in the first process alone
        if step == 1:
            targets["c"][:] = torch.nan  # nowhere
        if step == 2:
            targets["a"][:5] = torch.nan  # in the second alone
        yield inputs, targets


def losses(model, inputs, targets, rows, empty: bool) -> dict[str, Tensor]:
    """Return this process's shares; `empty`: also of tasks that have labels elsewhere alone."""
    outputs, result = model(inputs[rows]), {}
    for task, target in targets.items():
        count = int((~target.isnan()).sum())
        here = ~target[rows].isnan()
        if count and (empty or bool(here.any())):
            error = outputs[task][here, 0] - target[rows][here]
            result[task] = error.square().sum() / count
    return result


def train(way: str, name: str, rank: int, world: int) -> dict[str, list[float]]:
    bare = Model()
    model = wrap(way, bare)
    balancer = Balancer(METHODS[name](), bare.encoder.parameters(), TASKS)
    trained = [*bare.parameters(), *balancer.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.1, foreach=False)
    rows, used = SHARES[rank] if world > 1 else slice(0, 8), []
    for inputs, targets in batches():
        optimiser.zero_grad()
        with model.no_sync() if way == "ddp" else contextlib.nullcontext():
            shares = losses(model, inputs, targets, rows, way.startswith("fsdp"))
        weights = balancer.backward(shares)
        used += [weights.get(t, 0.0) for t in TASKS]
        sum_gradients(trained)
        optimiser.step()
        if balancer.observes:
            with torch.no_grad():
                balancer.observe(losses(model, inputs, targets, rows, way.startswith("fsdp")))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trained]
    saved = balancer.state_dict().items()
    # What the engine found out about graphs is no number of the method.
    state = [v.double().flatten().nan_to_num() for k, v in saved if not k.startswith("engine.")]
    return {
        "parameters": torch.cat([p.detach().flatten() for p in whole]).tolist(),
        "used": used,
        "state": torch.cat(state).tolist(),
    }


def told(action) -> str:
    try:
        action()
    except UsageError as error:
        return str(error)
    return "nothing"


def refusals(rank: int) -> dict[str, str]:
    """Return what processes are told when they do wrong, in step with each other."""
    inputs, targets = next(batches())
    targets["b"][:] = targets["a"]
    rows = SHARES[rank]

    def wrong(way, method, part=None, **options):
        bare = Model()
        wrapped = DistributedDataParallel(bare, **options) if way == "ddp" else wrap(way, bare)
        balancer = Balancer(method, bare.encoder.parameters(), TASKS)
        shares = losses(wrapped, inputs, targets, rows, True)
        if part:
            shares = {t: share for t, share in shares.items() if rank or t != part}
        return told(lambda: balancer.backward(shares))

    return {
        "ddp losses": wrong("ddp", Equal()),
        "ddp gramian": wrong("ddp", PCGrad()),
        "ddp unused": wrong("ddp", PCGrad(), static_graph=True),
        "bare": wrong("bare", PCGrad()),
        "fsdp absent": wrong("fsdp blocks", PCGrad(), "b"),
        "fsdp losses absent": wrong("fsdp blocks", Equal(), "b"),
        "fsdp mean": wrong("fsdp mean", Equal()),
        "no fsdp": told(lambda: sum_not_mean(nn.Linear(1, 1))),
    }


@pytest.fixture(scope="module")
def pair(run_pair) -> list[dict]:
    return run_pair(__file__)


@pytest.mark.parametrize(("way", "name"), RUNS)
def test_two_processes_are_one(pair, way, name):
    whole = train("bare", name, 0, 1)
    # The log-variances are kept in float32, whatever the model is in.
    close = {"rtol": 1e-6, "atol": 1e-6} if name == "uncertainty" else {"rtol": 1e-9, "atol": 1e-10}
    for result in pair:
        for what, values in result[f"{way} {name}"].items():
            got, expected = (torch.tensor(v, dtype=torch.float64) for v in (values, whole[what]))
            torch.testing.assert_close(got, expected, **close)


@pytest.mark.parametrize("case", ["ddp losses", "ddp gramian", "ddp unused"])
def test_gradients_that_ddp_averaged_are_refused(pair, case):
    for result in pair:
        said = result["refusals"][case]
        assert "DistributedDataParallel averaged the gradients" in said
        assert "forward pass under `with model.no_sync():`" in said


@pytest.mark.parametrize("case", ["fsdp absent", "fsdp losses absent"])
def test_a_task_that_one_process_alone_lacks_is_refused_before_anybody_waits(pair, case):
    for result in pair:
        assert "task 'b' is present in 1 of 2 processes" in result["refusals"][case]


def test_what_else_is_refused(pair):
    for result in pair:
        assert result["refusals"]["bare"] == "nothing"
        assert "Call sum_not_mean(model) once" in result["refusals"]["fsdp mean"]
        assert "the model has no FSDP module" in result["refusals"]["no fsdp"]


def test_no_parameter_that_is_whole_is_taken_for_sharded():
    assert check_shards([nn.Parameter(torch.ones(2))], 3) is False


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    result = {f"{way} {name}": train(way, name, rank, 2) for way, name in RUNS}
    print(json.dumps(result | {"refusals": refusals(rank)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
