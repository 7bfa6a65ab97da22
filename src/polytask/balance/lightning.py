"""Balance in Lightning: a callback in whose presence `training_step` returns losses by task.

    class Model(LightningModule):
        def training_step(self, batch):
            ...
            return {"depth": loss_a, "normals": loss_b}

    balancer = Balancer(PCGrad(), model.encoder.parameters(), tasks=["depth", "normals"])
    Trainer(callbacks=[BalanceCallback(balancer)]).fit(model, loader)

Optimisation stays automatic: accumulation, clipping, precision, learning-rate schedules and
checkpoints are Lightning's, as ever. While `fit` runs, two of the module's methods are replaced on
the instance: `training_step`, which hands Lightning the sum of the losses to report, and
`backward`, Lightning's own hook for whoever differentiates in another way.

Importing this module needs `lightning` (or `pytorch_lightning`): `pip install
'polytask[lightning]'`. The callback belongs to the one of the two that is imported already; with
both, to `lightning`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from polytask.balance import hooks, replicas
from polytask.balance.engine import Balancer
from polytask.balance.losses import Weights
from polytask.balance.wrapper import Rows, label
from polytask.errors import RunError, UsageError, need

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""One library under two names, whose classes do not know each other."""


def _package() -> ModuleType:
    loaded = [name for name in PACKAGES if name in sys.modules]
    installed = [name for name in PACKAGES if importlib.util.find_spec(name.split(".")[0])]
    return need((*loaded, *installed, *PACKAGES)[0], "lightning", "BalanceCallback")


if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = _package().Callback

Build = Callable[["LightningModule"], Balancer]
LossesOf = Callable[["LightningModule", Any], Mapping[str, Tensor | None]]
REPLACED = ("training_step", "backward")
_STRATEGIES = (
    "Take Trainer(strategy='ddp'), or Trainer(devices=1, strategy='auto'), or a loop of your own "
    "around Balancer, which knows FSDP2 too."
)


class BalanceCallback(Callback):
    """Balances the losses that `training_step` returns, one scalar per task.

    balancer: or a function of the module that makes it when `fit` begins, for what is not known
        before: parameters made in `configure_model`, the length of an epoch (`updates_per_epoch`).
    losses_of: for methods that look at each batch again (FAMO, after its update; a sample of the
        rows, before): a function (module, batch) -> losses by task, which logs nothing.
    log: what the names of the logged weights begin with, as in "weight/depth"; None logs none.
        The weight of an absent task is NaN.

    Tasks that a batch lacks are left out of the dict, or None. With
    `Trainer(accumulate_grad_batches=N)` every micro-batch's mean losses count 1 / N, by
    Lightning's rule. Trained loss weights go into the optimiser as a group of their own without
    weight decay, unless `configure_optimizers` put them there. Methods that observe validation
    losses (CoBa) take those that `validation_step` returns, also by task, averaged over each
    validation run; `Trainer(val_check_interval=...)` says how often.

    The balancer's state is in Lightning's checkpoints, and `fit(ckpt_path=...)` goes on from it;
    that needs Balancer(..., tasks=[...]).

    Several processes: `Trainer(strategy="ddp")` and its kin, and Balancer(..., tasks=[...]) again.
    Every process's mean losses count 1 / W, by DistributedDataParallel's rule, and gradients are
    summed once per update: W processes make the update of one with the joined batch.
    Refuses, with UsageError, what it would do wrongly: other wrapped modules (FSDP, DeepSpeed),
    `precision="16-mixed"` (its loss scaling), manual optimisation, LBFGS.

    weights: of the last update; None before it.
    """

    def __init__(
        self,
        balancer: Balancer | Build,
        *,
        losses_of: LossesOf | None = None,
        log: str | None = "weight/",
    ) -> None:
        super().__init__()
        self.weights: Weights | None = None
        self._given = balancer
        self._balancer = balancer if isinstance(balancer, Balancer) else None
        self._made_for: LightningModule | None = None
        self._losses_of = losses_of
        self._log = log
        self._before: dict[str, Any] | None = None  # the instance's attributes under REPLACED
        self._losses: hooks.ByTask = {}
        self._batch: Any = None
        self._last = True  # whether the batch at hand ends its update
        self._open = False  # whether an update has begun that is not finished
        self._finished: dict[str, Tensor] = {}  # the balancer's state before it was
        self._loaded: dict[str, Any] | None = None
        self._validation = hooks.Means()
        self._wrapper: DistributedDataParallel | None = None
        self._forward = contextlib.ExitStack()

    @property
    def balancer(self) -> Balancer:
        """Return the balancer; UsageError where it is made in `fit` and none has begun."""
        if self._balancer is None:
            raise UsageError("BalanceCallback makes its balancer when fit begins.")
        return self._balancer

    # -- around a fit ---------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked this early, and replace the module's methods."""
        if stage != "fit":
            return
        _check_trainer(trainer, pl_module)
        self._open, self._losses = False, {}
        self._before = {n: vars(pl_module)[n] for n in REPLACED if n in vars(pl_module)}
        own_step = pl_module.training_step

        @functools.wraps(own_step)
        def training_step(*inputs: Any) -> dict[str, Any]:
            return self._report(own_step(*inputs), pl_module)

        def backward(loss: Tensor) -> None:
            self._backward(trainer, pl_module)

        pl_module.training_step, pl_module.backward = training_step, backward

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the balancer ready, before Lightning restores its optimisers."""
        if not isinstance(self._given, Balancer) and self._made_for is not pl_module:
            self._balancer, self._made_for = self._given(pl_module), pl_module
        balancer = self.balancer
        assert trainer.model is not None, "fit has set it"
        self._wrapper = replicas.wrapper_of(
            trainer.model, pl_module, balancer, "BalanceCallback", _STRATEGIES
        )
        for optimiser in trainer.optimizers:
            if isinstance(optimiser, torch.optim.LBFGS):
                raise UsageError(
                    "BalanceCallback: LBFGS evaluates a batch several times per update, which no "
                    "balance method foresees; use another optimiser."
                )
            hooks.add_trained(
                balancer,
                optimiser,
                bool(trainer.lr_scheduler_configs),
                "Keep the balancer on the module and give the optimiser in configure_optimizers "
                "[{'params': self.parameters()}, {'params': self.balancer.parameters(), "
                "'weight_decay': 0.0}].",
            )
        if (balancer.observes == "after" or balancer.looks_again) and self._losses_of is None:
            raise UsageError(
                f"{label(balancer.method)} must see each batch's losses more than once; give "
                "BalanceCallback(..., losses_of=lambda module, batch: {...})."
            )
        if self._loaded is not None:
            hooks.check_tasks(balancer, self._loaded["tasks"])
            balancer.load_state_dict(self._loaded["state"])
            self._loaded = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its methods back."""
        if stage == "fit":
            self._restore(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the module its methods back: Lightning calls no teardown after an error."""
        self._restore(pl_module)

    def _restore(self, pl_module: LightningModule) -> None:
        if self._before is None:
            return
        for name in REPLACED:
            vars(pl_module).pop(name, None)
        vars(pl_module).update(self._before)
        self._before, self._losses = None, {}
        self._forward.close()
        self._wrapper = None

    # -- a step ---------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note whether Lightning will update after this batch: as it does at every epoch's end."""
        self._forward.enter_context(replicas.unaveraged(self._wrapper))
        self._batch = batch
        done = batch_idx + 1
        self._last = (
            done % trainer.accumulate_grad_batches == 0
            or trainer.is_last_batch
            or done == trainer.num_training_batches
        )

    def _report(self, output: Any, pl_module: LightningModule) -> dict[str, Any]:
        """Keep the losses for `backward`; return what Lightning expects of a training step."""
        losses = {} if output is None else output  # None: Lightning's word for no loss at all
        self._losses = hooks.losses_by_task(losses, self.balancer, "training_step")
        return {
            "loss": hooks.total(self._losses, pl_module.device),
            "losses": hooks.detached(self._losses),
        }

    def _backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forward.close()
        losses, self._losses = self._losses, {}
        if not self._last and not self._open:
            self._finished = self.balancer.state_dict()
        self._open = not self._last
        parts = trainer.accumulate_grad_batches * self.balancer.processes
        batch, self._batch = self._batch, None

        def again(rows: Rows, tasks: Sequence[str]) -> hooks.ByTask:
            return hooks.shares(self._losses_again(trainer, pl_module, rows, batch, tasks), parts)

        looks = self.balancer.looks_again
        weights = self.balancer.backward(
            hooks.shares(losses, parts), accumulate=self._open, again=again if looks else None
        )
        if self._last:
            self.weights = weights
            replicas.sum_over(pl_module, self.balancer)

    def _losses_again(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        rows: Rows,
        batch: Any,
        tasks: Sequence[str],
    ) -> hooks.ByTask:
        assert self._losses_of is not None, "checked when fit began"
        with trainer.precision_plugin.train_step_context():
            losses = self._losses_of(pl_module, hooks.rows_of(batch, rows))
        return hooks.of_tasks(hooks.losses_by_task(losses, self.balancer, "losses_of"), tasks)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Raise RunError where Lightning updates and the balancer was not told so."""
        if self._open:
            raise RunError(
                "BalanceCallback: Lightning updates the model in the middle of what looked like "
                "an accumulation; set accumulate_grad_batches=1, or take a loader whose length "
                "is known."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the method the losses after the update, where it asks; log the weights."""
        if self._open or self.weights is None:
            return
        # Nothing comes back of an update that was left out; there is nothing to compare with then.
        if self.balancer.observes == "after" and len(self.weights):
            with torch.no_grad():
                after = self._losses_again(trainer, pl_module, Rows(), batch, self.balancer.tasks)
            self.balancer.observe(hooks.shares(after, self.balancer.processes))
        if self._log is not None:
            # Tensors, not floats: a float would wait for the device in every step.
            weights_K = dict(zip(self.weights.tasks, self.weights.weights_K, strict=True))
            for task in self.balancer.tasks:
                # Lightning repeats the last value of a name that is not logged again.
                pl_module.log(f"{self._log}{task}", weights_K.get(task, torch.nan), batch_size=1)

    # -- validation losses, for methods that ask for them ---------------------------------------

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the losses of a validation batch where the method observes them."""
        if self._watches_validation(trainer):
            name = f"{type(self.balancer.method).__name__} observes validation losses: "
            losses = hooks.losses_by_task(outputs, self.balancer, f"{name}validation_step")
            self._validation.add(losses)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the method their means, before a checkpoint is written."""
        if self._watches_validation(trainer):
            self.balancer.observe(self._validation.take(self.balancer, pl_module.device))

    def _watches_validation(self, trainer: Trainer) -> bool:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fitting and self.balancer.observes == "validation"

    # -- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the balancer's state for Lightning's checkpoint.

        Between two micro-batches: that of the last finished update, for Lightning keeps nothing of
        an unfinished one either.
        """
        if self._balancer is None:
            return {}
        state = self._finished if self._open else self._balancer.state_dict()
        return {"tasks": list(self._balancer.tasks), "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the next fit begins."""
        self._loaded = state_dict


def updates_per_epoch(trainer: Trainer) -> int:
    """Return the optimiser's steps in an epoch, for Balancer(..., steps_per_epoch=...).

    To be called once `fit` has begun: BalanceCallback(lambda module: Balancer(DWA(),
    module.encoder.parameters(), steps_per_epoch=updates_per_epoch(module.trainer))).
    Raises UsageError where the loader's length is unknown.
    """
    trainer.estimated_stepping_batches  # noqa: B018 - loads the data, which `fit` does later
    batches: float = trainer.num_training_batches
    if not math.isfinite(batches) or batches < 1:
        raise UsageError(
            "updates_per_epoch: the training loader's length is unknown; give "
            "Trainer(limit_train_batches=N), or Balancer(..., steps_per_epoch=N) a number."
        )
    every: int = trainer.accumulate_grad_batches
    return math.ceil(batches / every)


def _check_trainer(trainer: Trainer, pl_module: LightningModule) -> None:
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise UsageError(
            f"BalanceCallback works within automatic optimisation; {name} has switched it off. "
            "Leave it on, or call Balancer.backward(losses) in your training_step yourself."
        )
    if not type(pl_module).backward.__module__.startswith(tuple(p.split(".")[0] for p in PACKAGES)):
        raise UsageError(
            f"BalanceCallback replaces {name}.backward; remove yours, or the callback."
        )
    if trainer.precision == "16-mixed":
        raise UsageError(
            "BalanceCallback: precision='16-mixed' scales the loss, which methods that weigh by "
            "losses must not see; take precision='bf16-mixed'."
        )
