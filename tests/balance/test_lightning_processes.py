"""The Lightning callback under DistributedDataParallel: two processes make the updates of one.

This file is also the program of each process.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from polytask.balance import (
    FAMO,
    Balancer,
    CAGrad,
    CoBa,
    Equal,
    MoCo,
    Uncertainty,
    replicas,
)
from polytask.balance.lightning import BalanceCallback
from polytask.errors import UsageError

TASKS = ("depth", "normals")
ROWS, BATCH, EPOCHS = 24, 3, 2  # per process: 4 batches in an epoch

METHODS: dict[str, Callable[[], Any]] = {
    "cagrad": CAGrad,
    "uncertainty": Uncertainty,
    "moco": MoCo,
    "famo": FAMO,
    "coba": partial(CoBa, warmup=2, history=3),
}
RUNS = [
    ("cagrad", {}),
    ("cagrad", {"accumulate": 2}),
    ("uncertainty", {"accumulate": 2}),
    ("moco", {}),
    ("famo", {}),
    ("coba", {"validate": 2}),
    ("cagrad", {"nonfinite": "skip"}),
]
ABSENT = [("cagrad", {"absent": True}), ("uncertainty", {"absent": True})]
"""By DistributedDataParallel's rule processes count alike: as micro-batches do in one process."""


class Model(lightning.pytorch.LightningModule):
    """An encoder and two heads in float64; `norm`: with batch normalisation."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        last = [nn.BatchNorm1d(4)] if norm else []
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4), *last)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def losses(self, batch: list[Tensor]) -> dict[str, Tensor | None]:
        inputs, targets = batch
        features = self.encoder(inputs)
        found: dict[str, Tensor | None] = {}
        for (task, head), target in zip(self.heads.items(), targets.unbind(1), strict=True):
            here = ~target.isnan()
            error = head(features[here])[:, 0] - target[here]
            found[task] = error.square().mean() if here.any() else None
        return found

    def training_step(self, batch, batch_idx):
        return self.losses(batch)

    def validation_step(self, batch, batch_idx):
        return self.losses(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Summed(Model):
    """The same as anybody trains it without a balancer."""

    def training_step(self, batch, batch_idx):
        return sum(self.losses(batch).values())


def data(absent: bool = False, nonfinite: str = "stop") -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    targets *= torch.tensor([1.0, 3.0])
    if absent:
        targets[0:6:2, 0] = torch.nan  # all of the first process's first batch
        targets[1:6:2, 1] = torch.nan  # all of the second's: it has the other task
        targets[7:12:2] = torch.nan  # the second process has no label at all
        targets[12:18] = torch.nan  # nobody has
        targets[18:22, 0] = torch.nan  # some rows
    if nonfinite == "skip":
        inputs[3] = torch.nan  # in the second process
    return TensorDataset(inputs, targets)


def loader(rows: TensorDataset) -> DataLoader:
    """Return this process's rows in order, every second one."""
    return DataLoader(Subset(rows, range(int(os.environ["RANK"]), ROWS, 2)), BATCH)


def balancer_of(model: nn.Module, name: str, nonfinite: str = "stop") -> Balancer:
    parameters = model.encoder.parameters()
    return Balancer(METHODS[name](), parameters, TASKS, nonfinite=nonfinite)


def trainer(*callbacks: Any, **options: Any) -> Any:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    kept = {"enable_checkpointing": False, "logger": False, "max_epochs": EPOCHS} | options
    kept = {"strategy": "ddp", "devices": 2, "num_sanity_val_steps": 0} | kept
    kept["use_distributed_sampler"] = False
    return lightning.pytorch.Trainer(accelerator="cpu", callbacks=[*callbacks], **quiet, **kept)


def found(model: nn.Module, balancer: Balancer) -> dict[str, list[float]]:
    """Return the model's tensors, the method's own and its state, as numbers."""
    # What the engine found out about graphs is no number of the method.
    state = {n: v for n, v in balancer.state_dict().items() if not n.startswith("engine.")}
    return {
        n: v.double().nan_to_num().flatten().tolist()
        for n, v in (model.state_dict() | state).items()
    }


def fit(
    name: str,
    accumulate: int = 1,
    validate: int | None = None,
    absent: bool = False,
    nonfinite: str = "stop",
) -> dict[str, list[float]]:
    """Return what a fit of this process's rows leaves."""
    model = Model()
    callback = BalanceCallback(
        balancer_of(model, name, nonfinite),
        losses_of=(lambda module, batch: module.losses(batch)) if name == "famo" else None,
    )
    loaders = [loader(data(absent, nonfinite))]
    if validate:
        loaders.append(loader(data()))
    run = trainer(callback, accumulate_grad_batches=accumulate, val_check_interval=validate)
    run.fit(model, *loaders)
    used = {"used": [callback.weights.get(task, 0.0) for task in TASKS]}
    return found(model, callback.balancer) | used


def by_hand(
    name: str,
    accumulate: int = 1,
    validate: int | None = None,
    absent: bool = False,
    nonfinite: str = "stop",
) -> dict[str, list[float]]:
    """Train on the joined batches in one process; return what that leaves.

    absent: by two micro-batches, each of the rows that one of the processes had.
    """
    model = Model()
    balancer = balancer_of(model, name, nonfinite)
    optimiser = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.1)
    rows = list(range(ROWS))
    size = 2 * BATCH * accumulate
    updates = [rows[i : i + size] for i in range(0, ROWS, size)] * EPOCHS
    weights: Any = {}
    for i, update in enumerate(updates):
        optimiser.zero_grad()
        parts = [update[0::2], update[1::2]] if absent else [update]
        for part in parts:
            losses = model.losses(data(absent, nonfinite)[part])
            shares = {n: None if x is None else x / len(parts) for n, x in losses.items()}
            weights = balancer.backward(shares, accumulate=part is not parts[-1])
        optimiser.step()
        if name == "famo":
            with torch.no_grad():
                balancer.observe(model.losses(data()[update]))
        if validate and (i + 1) % validate == 0:
            with torch.no_grad():
                balancer.observe(model.losses(data()[:]))
    return found(model, balancer) | {"used": [weights.get(task, 0.0) for task in TASKS]}


def resumed() -> dict[str, Any]:
    """Return what a fit leaves that was cut after an epoch, and which checkpoints it wrote."""
    model = Model()
    keep = ModelCheckpoint("kept", filename="{epoch}", save_on_train_epoch_end=True)
    callback = BalanceCallback(balancer_of(model, "moco"))
    trainer(callback, keep, enable_checkpointing=True, max_epochs=1).fit(model, loader(data()))
    other = Model()
    nn.init.zeros_(other.encoder[0].weight)  # all must come from the checkpoint
    callback = BalanceCallback(balancer_of(other, "moco"))
    trainer(callback).fit(other, loader(data()), ckpt_path="kept/epoch=0.ckpt")
    return found(other, callback.balancer) | {
        "files": sorted(p.name for p in Path("kept").iterdir())
    }


def normalised(balanced: bool, **options: Any) -> dict[str, list[float]]:
    """Return what batch normalisation leaves, balanced by ones or not balanced."""
    model = Model(norm=True) if balanced else Summed(norm=True)
    balancer = Balancer(Equal(), model.encoder.parameters(), TASKS)
    callbacks = [BalanceCallback(balancer)] if balanced else []
    run = trainer(*callbacks, gradient_clip_val=0.5, **options)
    run.fit(model, loader(data()), loader(data()))
    return {n: v.double().flatten().tolist() for n, v in model.state_dict().items()}


def refusals() -> dict[str, str]:
    """Return what processes are told when they do wrong, in step with each other."""

    def told(action: Callable[[], Any]) -> str:
        try:
            action()
        except UsageError as error:
            return str(error)
        return "nothing"

    def fitted(make: Callable[[Model], Balancer], **options: Any) -> str:
        model = Model(norm=True)
        run = trainer(BalanceCallback(make(model)), **options)
        return told(lambda: run.fit(model, loader(data())))

    def checked(prepare: Callable[[DistributedDataParallel], None] = lambda wrapper: None) -> str:
        model = Model()
        wrapper = DistributedDataParallel(model)
        prepare(wrapper)
        balancer = balancer_of(model, "cagrad")
        return told(lambda: replicas.wrapper_of(wrapper, model, balancer, "Hook", "Advice."))

    alone = [dist.new_group([rank]) for rank in range(2)][dist.get_rank()]
    model = Model()
    balancer = balancer_of(model, "cagrad")
    return {
        "static": fitted(
            lambda m: balancer_of(m, "cagrad"), strategy=DDPStrategy(static_graph=True)
        ),
        "group": fitted(
            lambda m: Balancer(CAGrad(), m.encoder.parameters(), TASKS, process_group=alone)
        ),
        "sync norm": checked(lambda wrapper: wrapper.add_module("norm", nn.SyncBatchNorm(4))),
        "hook": checked(
            lambda wrapper: wrapper.register_comm_hook(None, lambda state, bucket: None)
        ),
        "as it is": checked(),
        "bare": told(lambda: replicas.wrapper_of(model, model, balancer, "Hook", "Advice.")),
    }


@pytest.fixture(scope="module")
def pair(run_pair, tmp_path_factory) -> list[dict]:
    return run_pair(__file__, tmp_path_factory.mktemp("pair"))


def key(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *map(str, options)])


def assert_close(
    result: dict[str, list[float]], expected: dict[str, list[float]], at: float
) -> None:
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        got, wanted = (torch.tensor(v, dtype=torch.float64) for v in (result[name], values))
        torch.testing.assert_close(got, wanted, rtol=at, atol=at, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore:CAGrad")
@pytest.mark.parametrize(("name", "options"), [*RUNS, *ABSENT])
def test_two_processes_are_one(pair, name, options):
    expected = by_hand(name, **options)
    assert expected["encoder.0.weight"] != Model().encoder[0].weight.flatten().tolist()
    # The log-variances are kept in float32, whatever the model is in.
    for result in pair:
        assert_close(result[key(name, options)], expected, 1e-6 if name == "uncertainty" else 1e-10)
    assert pair[0][key(name, options)] == pair[1][key(name, options)]


def test_a_fit_goes_on_from_one_checkpoint_in_every_process(pair):
    for result in pair:
        assert result["resumed"].pop("files") == ["epoch=0.ckpt"]
        whole = {n: v for n, v in result["moco"].items() if n != "used"}
        assert_close(result["resumed"], whole, 0.0)


@pytest.mark.parametrize("way", ["ddp", "ddp_find_unused_parameters_true"])
def test_buffers_and_clipping_are_as_without_a_balancer(pair, way):
    for result in pair:
        assert_close(result[f"balanced {way}"], result["summed"], 1e-10)
    # Validation's forward pass spreads what the last training step left in the first process.
    assert pair[0]["summed"] == pair[1]["summed"]


def test_what_would_go_wrong_is_refused_in_every_process(pair):
    for result in pair:
        told = result["refusals"]
        assert "static_graph=True of DistributedDataParallel would do nothing" in told["static"]
        assert "SyncBatchNorm exchanges messages in every backward pass" in told["sync norm"]
        assert "group has 1 processes, the loop has 2; leave out" in told["group"]
        assert "a communication hook of DistributedDataParallel would do" in told["hook"]
        assert "2 processes, and the module is not wrapped in it. Advice." in told["bare"]
        assert told["as it is"] == "nothing"


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {key(n, options): fit(n, **options) for n, options in [*RUNS, *ABSENT]}
    result |= {"resumed": resumed(), "summed": normalised(False)}
    for way in ("ddp", "ddp_find_unused_parameters_true"):
        result[f"balanced {way}"] = normalised(True, strategy=way)
    print(json.dumps(result | {"refusals": refusals()}))


if __name__ == "__main__":
    main()
