"""The Lightning callback: real Lightning trainers against loops written by hand."""

import copy
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polytask.balance import (
    DWA,
    FAMO,
    GLS,
    Balance,
    Balancer,
    CAGrad,
    CoBa,
    Equal,
    FlatRegions,
    MoCo,
    NashMTL,
    PCGrad,
    SampledRows,
    Uncertainty,
)
from polytask.balance import lightning as hook
from polytask.balance.lightning import BalanceCallback, updates_per_epoch
from polytask.errors import Diverged, MissingExtra, RunError, UsageError

pytestmark = [
    # Lightning's own, about how it looks into batches and about tiny data
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TASKS = ("depth", "normals")
METHODS: list[Callable[[], Balance]] = [Equal, GLS, PCGrad, NashMTL, MoCo, Uncertainty]


class Losses:
    """An encoder and two heads; a task whose targets in a batch are all NaN has no loss."""

    def build(self, lr: float, schedule: bool) -> None:
        torch.manual_seed(0)
        self.lr, self.schedule = lr, schedule
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def losses(self, batch: list[Tensor]) -> dict[str, Tensor | None]:
        inputs, targets = batch
        features = self.encoder(inputs)
        found: dict[str, Tensor | None] = {}
        for (task, head), target in zip(self.heads.items(), targets.unbind(1), strict=True):
            here = ~target.isnan()
            error = head(features[here])[:, 0].float() - target[here]
            found[task] = error.square().mean() if here.any() else None
        return found


class Model(Losses, lightning.pytorch.LightningModule):
    """The user's module: no word of balancing but the dict that it returns."""

    def __init__(self, lr: float = 0.05, schedule: bool = False) -> None:
        super().__init__()
        self.build(lr, schedule)

    def training_step(self, batch, batch_idx):
        return self.losses(batch)

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), self.lr)
        if not self.schedule:
            return optimiser
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.5)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


class OldModel(Losses, pytorch_lightning.LightningModule):
    """The same under the library's other name."""

    def __init__(self) -> None:
        super().__init__()
        self.build(0.05, False)

    training_step = Model.training_step
    configure_optimizers = Model.configure_optimizers


class Memory(Logger):
    """A logger that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    name = version = "memory"

    def log_hyperparams(self, *arguments: Any) -> None: ...

    def log_metrics(self, metrics, step=None):
        self.rows.append({k: v for k, v in metrics.items() if k.startswith("weight/")})


def data(rows: int = 24, batch: int = 4, absent: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 5, generator=generator)
    targets = torch.randn(rows, 2, generator=generator) * torch.tensor([1.0, 3.0])
    if absent:
        targets[: batch + 2, 0] = torch.nan  # a whole batch, and half of the next
        targets[-batch:] = torch.nan  # a batch without any label
    return DataLoader(TensorDataset(inputs, targets), batch)


def trainer(*callbacks: Any, package: Any = lightning.pytorch, **options: Any) -> Any:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    kept = {"enable_checkpointing": False, "logger": False, "max_epochs": 2} | options
    return package.Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks], **quiet, **kept)


def balancer_of(model: nn.Module, method: Balance, epoch: int | None = None) -> Balancer:
    return Balancer(method, model.encoder.parameters(), TASKS, epoch)


def by_hand(
    model: nn.Module,
    balancer: Balancer,
    loader: DataLoader,
    epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """Train as Lightning would; return the model's tensors and the balancer's."""
    own = balancer.parameters()
    optimiser = torch.optim.Adam([{"params": list(model.parameters())}, {"params": own}], model.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.5 if model.schedule else 1.0)
    for _ in range(epochs):
        batches = list(loader)
        for i, batch in enumerate(batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = model.losses(batch)
            if i % accumulate == 0:
                optimiser.zero_grad()
            losses = {n: None if loss is None else loss / accumulate for n, loss in losses.items()}
            last = (i + 1) % accumulate == 0 or i + 1 == len(batches)
            balancer.backward(losses, accumulate=not last)
            if not last:
                continue
            if clip is not None:
                nn.utils.clip_grad_norm_([*model.parameters(), *own], clip)
            optimiser.step()
            schedule.step()
            if balancer.observes == "after":
                with torch.no_grad():
                    balancer.observe(model.losses(batch))
    return tensors(model, balancer)


def tensors(model: nn.Module, balancer: Balancer) -> dict[str, Tensor]:
    return dict(model.state_dict()) | balancer.state_dict()


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], start: nn.Module) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    moved = [n for n, value in start.state_dict().items() if not torch.equal(value, mine[n])]
    assert moved == list(start.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_equals_a_loop_by_hand_bit_for_bit(method):
    model, other = Model(), Model()
    callback = BalanceCallback(balancer_of(model, method()))
    trainer(callback).fit(model, data())
    expected = by_hand(other, balancer_of(other, method()), data())
    assert_same(tensors(model, callback.balancer), expected, Model())
    assert callback.balancer.step == 12


def loaded_anew() -> Any:
    """Return the hook's module as a program gets it that imports it now."""
    spec = importlib.util.spec_from_file_location("anew", hook.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_under_its_other_name_is_served_alike(monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    kind = loaded_anew().BalanceCallback
    assert issubclass(kind, pytorch_lightning.Callback)
    model, other = OldModel(), Model()
    callback = kind(balancer_of(model, PCGrad()))
    trainer(callback, package=pytorch_lightning).fit(model, data())
    expected = by_hand(other, balancer_of(other, PCGrad()), data())
    assert_same(tensors(model, callback.balancer), expected, Model())


@pytest.mark.parametrize("method", [PCGrad, MoCo, Equal])
def test_accumulation_clipping_bf16_and_schedules_stay_lightnings(method):
    # 7 batches in twos: the epoch's last update has one batch
    options = {"accumulate": 2, "clip": 0.5, "bf16": True}
    model, other = Model(schedule=True), Model(schedule=True)
    callback = BalanceCallback(balancer_of(model, method()))
    taken = trainer(
        callback, accumulate_grad_batches=2, gradient_clip_val=0.5, precision="bf16-mixed"
    )
    taken.fit(model, data(28))
    expected = by_hand(other, balancer_of(other, method()), data(28), **options)
    assert_same(tensors(model, callback.balancer), expected, Model())
    assert callback.balancer.step == taken.global_step == 8
    without = Model(schedule=True)
    by_hand(without, balancer_of(without, method()), data(28), accumulate=2)
    assert not torch.equal(without.heads["depth"].weight, model.heads["depth"].weight)


@pytest.mark.parametrize(
    "method",
    [
        PCGrad,
        NashMTL,
        Uncertainty,
        partial(SampledRows, PCGrad(), fraction=1.0),
        partial(FlatRegions, PCGrad()),
    ],
)
def test_accumulated_micro_batches_equal_the_whole_batch(method):
    parts, whole = Model(), Model()
    callbacks = [
        BalanceCallback(
            balancer_of(model, method()), losses_of=lambda module, batch: module.losses(batch)
        )
        for model in (parts, whole)
    ]
    trainer(callbacks[0], accumulate_grad_batches=3).fit(parts, data(24, 4))
    trainer(callbacks[1]).fit(whole, data(24, 12))
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert [c.balancer.step for c in callbacks] == [4, 4]


@pytest.mark.parametrize("method", [PCGrad, Uncertainty])
def test_absent_tasks_are_left_out(method):
    model, other = Model(), Model()
    seen = []

    class See(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(set(outputs["losses"]))

    memory = Memory()
    callback = BalanceCallback(balancer_of(model, method()))
    taken = trainer(See(), callback, logger=memory, log_every_n_steps=1)
    taken.fit(model, data(absent=True))
    expected = by_hand(other, balancer_of(other, method()), data(absent=True))
    assert_same(tensors(model, callback.balancer), expected, Model())
    assert seen == [{"normals"}, set(TASKS), set(TASKS), set(TASKS), set(TASKS), set()] * 2
    assert [set(row) for row in memory.rows if row] == [{f"weight/{t}" for t in TASKS}] * 12
    logged = [{t for t in TASKS if row[f"weight/{t}"] > 0} for row in memory.rows if row]
    assert logged == seen  # NaN for the others


class Kill(Callback):
    """Ends the run in its second epoch, as a kill would."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            raise KeyError("killed")


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")
@pytest.mark.parametrize("method", [PCGrad, MoCo, NashMTL, Uncertainty, FAMO])
def test_a_resumed_fit_equals_an_uninterrupted_one_bit_for_bit(tmp_path, method):
    def callback_for(model):
        return BalanceCallback(
            balancer_of(model, method()), losses_of=lambda module, batch: module.losses(batch)
        )

    one = Model(schedule=method is not Uncertainty)
    whole = callback_for(one)
    trainer(whole).fit(one, data())
    killed = Model(schedule=method is not Uncertainty)
    keep = ModelCheckpoint(tmp_path, filename="{step}")  # at the end of every epoch
    run = trainer(callback_for(killed), keep, Kill(), enable_checkpointing=True)
    with pytest.raises(KeyError, match="killed"):
        run.fit(killed, data())

    resumed = Model(schedule=method is not Uncertainty)
    nn.init.zeros_(resumed.heads["depth"].weight)  # all must come from the checkpoint
    callback = callback_for(resumed)
    trainer(callback).fit(resumed, data(), ckpt_path=tmp_path / "step=6.ckpt")
    assert_same(tensors(resumed, callback.balancer), tensors(one, whole.balancer), killed)
    assert callback.balancer.step == 12


def test_a_checkpoint_of_other_tasks_is_refused(tmp_path):
    model = Model()
    path = tmp_path / "a.ckpt"
    callback = BalanceCallback(balancer_of(model, MoCo()))
    taken = trainer(callback)
    taken.fit(model, data())
    taken.save_checkpoint(path)
    swapped = Balancer(MoCo(), model.encoder.parameters(), TASKS[::-1])
    with pytest.raises(RunError, match="the tasks depth, normals; this one has normals, depth"):
        trainer(BalanceCallback(swapped)).fit(model, data(), ckpt_path=path)


def checkpoints_of(model):
    """Return a list that gets the callback's part of every checkpoint that Lightning writes."""
    written = []
    model.on_save_checkpoint = lambda whole: written.append(
        copy.deepcopy(whole["callbacks"]["BalanceCallback"])
    )
    return written


def test_a_checkpoint_between_micro_batches_holds_the_last_whole_update(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:  # the first of the second update's three
                trainer.save_checkpoint(tmp_path / "open.ckpt")

    model = Model()
    written = checkpoints_of(model)
    callback = BalanceCallback(balancer_of(model, MoCo()))
    trainer(callback, Save(), accumulate_grad_batches=3, max_epochs=1).fit(model, data())
    saved = written[0]
    assert saved["tasks"] == list(TASKS)
    assert int(saved["state"]["step"]) == 1
    assert callback.balancer.step == 2


def test_model_checkpoint_keeps_the_balancer(tmp_path):
    model = Model()
    written = checkpoints_of(model)
    callback = BalanceCallback(balancer_of(model, MoCo()))
    keep = ModelCheckpoint(tmp_path, save_last=True)
    trainer(callback, keep, enable_checkpointing=True).fit(model, data())
    assert (tmp_path / "last.ckpt").exists()
    saved = written[-1]
    for name, value in callback.balancer.state_dict().items():
        assert torch.equal(saved["state"][name], value)


def test_a_balancer_can_be_made_when_fit_begins_and_learn_the_epochs_length():
    model, other = Model(), Model()
    callback = BalanceCallback(
        lambda module: balancer_of(module, DWA(), updates_per_epoch(module.trainer))
    )
    with pytest.raises(UsageError, match="when fit begins"):
        _ = callback.balancer
    trainer(callback, max_epochs=4, accumulate_grad_batches=4).fit(model, data(28))
    # 7 batches in fours are 2 updates; DWA accumulates, for it looks at past epochs alone
    expected = by_hand(other, balancer_of(other, DWA(), 2), data(28), epochs=4, accumulate=4)
    assert_same(tensors(model, callback.balancer), expected, Model())
    assert max(callback.weights.values()) != pytest.approx(1)


def test_a_second_fit_goes_on_with_the_same_balancer():
    model = Model()
    made = []

    def build(module):
        made.append(balancer_of(module, MoCo()))
        return made[-1]

    callback = BalanceCallback(build)
    for _ in range(2):
        trainer(callback, max_epochs=1).fit(model, data())
    assert len(made) == 1
    assert callback.balancer.step == 12
    trainer(callback, max_epochs=1).fit(Model(), data())
    assert len(made) == 2
    assert callback.balancer.step == 6


def test_weights_are_logged():
    model, memory = Model(), Memory()
    callback = BalanceCallback(balancer_of(model, GLS()))
    trainer(callback, logger=memory, log_every_n_steps=1, max_epochs=1).fit(model, data())
    other = Model()
    balancer = balancer_of(other, GLS())
    optimiser = torch.optim.Adam(other.parameters(), other.lr)
    expected = []
    for batch in data():
        optimiser.zero_grad()
        weights = balancer.backward(other.losses(batch))
        optimiser.step()
        expected.append({f"weight/{task}": weights[task] for task in TASKS})
    assert [row for row in memory.rows if row] == [pytest.approx(row) for row in expected]
    assert dict(callback.weights) == pytest.approx(dict(weights))

    memory = Memory()
    callback = BalanceCallback(balancer_of(model, GLS()), log=None)
    trainer(callback, logger=memory, log_every_n_steps=1, max_epochs=1).fit(model, data())
    assert not any(memory.rows)


def test_famo_sees_each_batch_again_after_its_update():
    model, other = Model(), Model()
    callback = BalanceCallback(
        balancer_of(model, FAMO()), losses_of=lambda module, batch: module.losses(batch)
    )
    trainer(callback).fit(model, data())
    expected = by_hand(other, balancer_of(other, FAMO()), data())
    assert_same(tensors(model, callback.balancer), expected, Model())
    with pytest.raises(UsageError, match=r"FAMO must see .* losses_of=lambda module, batch"):
        trainer(BalanceCallback(balancer_of(model, FAMO()))).fit(model, data())


@pytest.mark.filterwarnings("ignore:FAMO. a gradient is not finite")
def test_famo_is_shown_nothing_after_an_update_that_was_left_out():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            if batch_idx == 2:  # a loss as it is, and a gradient of NaN
                losses["depth"] = losses["depth"] + (self.encoder[0].weight * 0).sqrt().sum()
            return losses

    model, other = Broken(), Broken()

    def made(model):
        return Balancer(FAMO(), model.encoder.parameters(), TASKS, nonfinite="skip")

    callback = BalanceCallback(made(model), losses_of=lambda module, batch: module.losses(batch))
    trainer(callback, max_epochs=1).fit(model, data())
    balancer = made(other)
    optimiser = torch.optim.Adam(other.parameters(), other.lr)
    for i, batch in enumerate(data()):
        optimiser.zero_grad()
        weights = balancer.backward(other.training_step(batch, i))
        optimiser.step()
        assert len(weights) == (0 if i == 2 else 2)
        if weights:
            with torch.no_grad():
                balancer.observe(other.losses(batch))
    assert_same(tensors(model, callback.balancer), tensors(other, balancer), Model())


class Validated(Model):
    def validation_step(self, batch, batch_idx):
        return self.losses(batch)


def test_a_method_that_samples_rows_gets_the_losses_of_those_rows():
    model, other = Model(), Model()
    method = SampledRows(PCGrad(), fraction=0.5)
    callback = BalanceCallback(
        balancer_of(model, method), losses_of=lambda module, batch: module.losses(batch)
    )
    trainer(callback).fit(model, data())
    balancer = balancer_of(other, method)
    optimiser = torch.optim.Adam(other.parameters(), other.lr)
    for inputs, targets in [*data(), *data()]:
        optimiser.zero_grad()

        def again(rows, tasks, batch=(inputs, targets)):
            return other.losses([rows(tensor) for tensor in batch])

        balancer.backward(other.losses([inputs, targets]), again=again)
        optimiser.step()
    assert_same(tensors(model, callback.balancer), tensors(other, balancer), Model())


def test_coba_sees_the_means_of_every_validation_run():
    model, shown = Validated(), []
    method = CoBa(warmup=2, history=4)
    balancer = balancer_of(model, method)
    observe = balancer.observe
    balancer.observe = lambda losses: (shown.append(losses), observe(losses))
    taken = trainer(BalanceCallback(balancer), val_check_interval=2)
    taken.fit(model, data(), data(8, 4, absent=True))
    assert int(balancer.state["seen"]) == len(shown) == 6  # not those of the sanity check
    weights = balancer.state["weights_T"]
    assert not torch.equal(weights, torch.full_like(weights, 0.5))
    # the validation data's first batch has normals alone, its second no label at all
    with torch.no_grad():
        first, _ = data(8, 4, absent=True)
        last = model.losses(first)
    assert set(shown[-1]) == {"normals"}
    assert float(shown[-1]["normals"]) == pytest.approx(float(last["normals"]))

    class Silent(Model):
        def validation_step(self, batch, batch_idx):
            return None

    silent = Silent()
    callback = BalanceCallback(balancer_of(silent, method))
    with pytest.raises(UsageError, match=r"validation_step must return a dict .* returned None"):
        trainer(callback, val_check_interval=2).fit(silent, data(), data())


def test_trained_weights_beside_a_schedule_belong_into_configure_optimizers():
    model = Model(schedule=True)
    with pytest.raises(UsageError, match=r"Uncertainty has trained .* in configure_optimizers"):
        trainer(BalanceCallback(balancer_of(model, Uncertainty()))).fit(model, data())

    class Whole(Model):
        def configure_optimizers(self):
            own = {"params": self.balancer.parameters(), "weight_decay": 0.0}
            groups = [{"params": self.parameters()}, own]
            optimiser = torch.optim.Adam(groups, self.lr)
            schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.5)
            return [optimiser], [{"scheduler": schedule, "interval": "step"}]

    model, other = Whole(), Model(schedule=True)
    model.balancer = balancer_of(model, Uncertainty())
    trainer(BalanceCallback(model.balancer)).fit(model, data())
    expected = by_hand(other, balancer_of(other, Uncertainty()), data())
    assert_same(tensors(model, model.balancer), expected, Model())


class Wrong(Model):
    """A module whose training step returns what it is told."""

    def __init__(self, change: Callable[[dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.change = change

    def training_step(self, batch, batch_idx):
        return self.change(self.losses(batch))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda x: sum(x.values()), UsageError, r"training_step must return a dict .* a Tensor"),
        (lambda x: x | {"depth": 1.0}, UsageError, r"its entry 'depth' is a float"),
        (lambda x: {"dept": x["depth"]}, UsageError, r"Did you mean 'depth'"),
        (
            lambda x: x | {"depth": x["depth"][None]},
            UsageError,
            r"'depth' is a Tensor of shape \(1,\)",
        ),
        (lambda x: x | {"depth": x["depth"].detach()}, UsageError, r"'depth' has no graph"),
        (lambda x: x | {"depth": x["depth"] * torch.nan}, Diverged, r"'depth' is nan"),
    ],
)
def test_wrong_losses_are_met_with_what_to_do(change, error, said):
    model = Wrong(change)
    before = dict(vars(model))
    with pytest.raises(error, match=said):
        trainer(BalanceCallback(balancer_of(model, PCGrad()))).fit(model, data())
    # after an error, too, the module is as it was
    for name in hook.REPLACED:
        assert (name in vars(model)) == (name in before)


def test_a_sum_beside_the_losses_is_no_task():
    model = Wrong(lambda x: x | {"loss": sum(x.values())})
    balancer = Balancer(PCGrad(), model.encoder.parameters())
    with pytest.raises(
        UsageError, match=r"returned 'loss' beside ('depth', 'normals'|'normals', 'depth'); "
    ):
        trainer(BalanceCallback(balancer)).fit(model, data())


@pytest.mark.parametrize("absent", [False, True])
def test_a_compiled_module_is_balanced_as_it_is(absent):
    torch.compiler.reset()
    model, other = Model(), Model()
    callback = BalanceCallback(balancer_of(model, CAGrad()))
    trainer(callback, max_epochs=1).fit(
        torch.compile(model, backend="aot_eager"), data(absent=absent)
    )
    expected = by_hand(other, balancer_of(other, CAGrad()), data(absent=absent), epochs=1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_the_module_gets_its_methods_back():
    model = Model()
    own = model.training_step
    model.training_step = own  # as torch.compile leaves one on the instance
    trainer(BalanceCallback(balancer_of(model, PCGrad()))).fit(model, data())
    assert vars(model)["training_step"] is own
    assert "backward" not in vars(model)


class ByHand(Model):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OwnBackward(Model):
    def backward(self, loss):
        loss.backward()


class Newton(Model):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (ByHand, {}, "ByHand has switched it off"),
        (OwnBackward, {}, "replaces OwnBackward.backward"),
        (Newton, {}, "LBFGS evaluates a batch several times"),
        (Model, {"plugins": [MixedPrecision("16-mixed", "cpu")]}, "take precision='bf16-mixed'"),
    ],
)
def test_what_would_go_wrong_is_refused(model, options, said):
    made = model()
    with pytest.raises(UsageError, match=said):
        trainer(BalanceCallback(balancer_of(made, PCGrad())), **options).fit(made, data())


def test_other_wrappers_than_ddp_are_refused():
    model = Model()
    callback = BalanceCallback(balancer_of(model, PCGrad()))

    class Wrapped:
        model = nn.Sequential()

    with pytest.raises(UsageError, match=r"wrapped in Sequential. Take Trainer\(strategy='ddp'\)"):
        callback.on_fit_start(Wrapped(), model)


@pytest.mark.filterwarnings("ignore:The number of training batches")  # fewer than log_every_n_steps
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, .tensorboardX. has been removed")
def test_the_page_on_lightning_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "ecosystem.md"
    (block,) = [b for b in PYTHON.findall(page.read_text()) if "import lightning" in b]
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    exec(compile(block, "ecosystem.md", "exec"), names)
    assert names["trainer"].global_step == 4
    assert set(names["trainer"].callback_metrics) == {"weight/price", "weight/rent"}


def test_without_lightning_the_error_names_the_command(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] in {"lightning", "pytorch_lightning"}]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if "lightning" in n else find_spec(n)
    )
    import_module = importlib.import_module

    def absent(name: str) -> Any:
        if "lightning" in name:
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'polytask\[lightning\]'"):
        loaded_anew()
