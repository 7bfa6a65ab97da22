"""Balance in the Hugging Face Trainer: a trainer whose model, or own method, gives losses by task.

    trainer = BalancedTrainer(model=model, args=args, train_dataset=rows)
    trainer.balance(Balancer(PCGrad(), model.encoder.parameters(), tasks=["intent", "slots"]))
    trainer.train()

The model's output has an entry `losses`, a dict of one scalar per task; or a subclass overrides
`compute_losses`, as others override `compute_loss`. Accumulation, clipping, bf16, schedules,
logging and checkpoints are the Trainer's, as ever.

Importing this module needs `transformers`: `pip install 'polytask[transformers]'`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polytask.balance import hooks, replicas
from polytask.balance.engine import Balancer
from polytask.balance.losses import Weights
from polytask.balance.wrapper import Rows
from polytask.errors import RunError, UsageError, need
from polytask.records import write_atomic

if TYPE_CHECKING:
    from transformers import Trainer
else:
    need("accelerate", "transformers", "BalancedTrainer")
    Trainer = need("transformers", "transformers", "BalancedTrainer").Trainer

FILE = "balancer.safetensors"
"""The balancer's state, in every checkpoint's folder."""

Inputs = dict[str, Any]

_PROCESSES = (
    "Start with torchrun, which gives each process a copy of the model, or take a loop of your own "
    "around Balancer, which knows FSDP2 too."
)


class BalanceMixin:
    """What `BalancedTrainer` adds to a Trainer; goes before any other one in a class's bases.

    Each batch's mean losses count 1 / N in an update of N batches, the Trainer's rule for losses
    that know nothing of the other batches; tasks that a batch lacks are left out of the dict, or
    None. `loss` in the logs is the unweighted sum, and `weight/TASK` the last update's weights.

    Trained loss weights go into the optimiser as a group of their own without weight decay; they
    are not clipped along with the model.

    Over several processes (`torchrun`, `accelerate launch`) every process's mean losses count
    1 / W, by DistributedDataParallel's rule, and gradients are summed once per update: W processes
    make the update of one with the joined batch.

    Methods that observe losses after the update (FAMO) cost one forward more per update; those
    that observe validation losses (CoBa) take the means of every evaluation while training runs
    (`eval_strategy`, `eval_steps`).

    weights: of the last update; None before it.
    """

    balancer: Balancer | None = None
    weights: Weights | None = None
    _watched: torch.optim.Optimizer | None = None
    if TYPE_CHECKING:  # what a Trainer has
        model: nn.Module
        args: Any
        optimizer: Any
        lr_scheduler: Any
        accelerator: Any
        train_dataset: Any
        is_in_train: bool
        current_gradient_accumulation_steps: int
        _prepare_inputs: Callable[[Inputs], Inputs]
        compute_loss_context_manager: Any

    def balance(self, balancer: Balancer) -> None:
        """Train with this balancer from now on; call it before `train`.

        balancer: over parameters of the trainer's model, tasks in a fixed order for checkpoints.
        Raises UsageError for what would go wrong: several devices in one process, DeepSpeed, FSDP,
        fp16 (its loss scaling), label smoothing or a `compute_loss_func` (which would be ignored).
        Other ways to spread a model over processes than DistributedDataParallel are told by
        `train`.
        """
        _check_trainer(self)
        self.balancer = balancer
        self._fed: list[Inputs] = []
        self._evaluated = hooks.Means()
        self._called: tuple[nn.Module, DistributedDataParallel | None] | None = None

    def compute_losses(
        self, model: nn.Module, inputs: Inputs, return_outputs: bool = False
    ) -> Mapping[str, Tensor | None] | tuple[Mapping[str, Tensor | None], Any]:
        """Return the batch's mean loss per task, and the model's outputs where asked for.

        Override it where the model's output has no `losses`.
        """
        outputs = model(**inputs)
        losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
        if losses is None:
            raise UsageError(
                f"{type(self.model).__name__}'s output has no entry 'losses'; return a ModelOutput "
                "or dict with losses={'task': loss, ...}, or override compute_losses(model, "
                "inputs, return_outputs)."
            )
        return (losses, outputs) if return_outputs else losses

    def updates_per_epoch(self) -> int:
        """Return the optimiser's steps in an epoch, for Balancer(..., steps_per_epoch=...).

        Raises UsageError where the data set's length is unknown.
        """
        try:
            rows = len(self.train_dataset)
        except TypeError:
            raise UsageError(
                "updates_per_epoch: the training data's length is unknown; give Balancer(..., "
                "steps_per_epoch=N) a number."
            ) from None
        args = self.args
        batches = _parts(rows, args.train_batch_size, args.dataloader_drop_last)
        if not self.accelerator.dataloader_config.split_batches:  # each process reads its own
            batches = _parts(batches, args.world_size, args.dataloader_drop_last)
        return max(_parts(batches, args.gradient_accumulation_steps), 1)

    # -- what the Trainer calls ----------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the batch's gradients; return its share of the update's unweighted loss.

        num_items_in_batch: the Trainer's count over one column of labels, which says nothing of
            several tasks; the batches of an update count alike instead.
        """
        balancer = self._needed()
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimisers that need no schedule
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        wrapper = self._wrapper_of(model)
        with replicas.unaveraged(wrapper), self.compute_loss_context_manager():
            losses = self._losses(model, inputs)
        micros = self.current_gradient_accumulation_steps
        parts = micros * balancer.processes
        last = self.accelerator.sync_gradients
        if balancer.observes == "after":
            self._fed.append(inputs)

        def again(rows: Rows, tasks: Sequence[str]) -> hooks.ByTask:
            with replicas.unaveraged(wrapper), self.compute_loss_context_manager():
                losses = self._losses(model, hooks.rows_of(inputs, rows))
            return hooks.shares(hooks.of_tasks(losses, tasks), parts)

        looks = balancer.looks_again
        weights = balancer.backward(
            hooks.shares(losses, parts), accumulate=not last, again=again if looks else None
        )
        if last:
            self.weights = weights
            replicas.sum_over(self.model, balancer)
        # The Trainer averages what it logs over the processes.
        return hooks.total(hooks.shares(losses, micros), self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the unweighted sum of the losses, which evaluation reports."""
        losses, outputs = self.compute_losses(model, inputs, return_outputs=True)
        by_task = hooks.losses_by_task(losses, self._needed(), "compute_losses")
        if self._watches_evaluation():
            self._evaluated.add(by_task)
        summed = hooks.total(by_task, self.args.device)
        return (summed, outputs) if return_outputs else summed

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as ever; then show the means to a method that observes validation losses."""
        metrics: dict[str, float] = super().evaluate(  # type: ignore[misc]
            eval_dataset, ignore_keys, metric_key_prefix
        )
        if self._watches_evaluation():
            balancer = self._needed()
            means = self._evaluated.take(balancer, self.args.device)
            # None where eval_dataset is a dict: each of its sets was shown already.
            if means or balancer.processes > 1:
                balancer.observe(means)
        return metrics

    def create_optimizer(self, *model: nn.Module) -> torch.optim.Optimizer:
        """Create the optimiser as ever, with the method's trained parameters in it."""
        optimiser: torch.optim.Optimizer = super().create_optimizer(*model)  # type: ignore[misc]
        hooks.add_trained(
            self._needed(),
            optimiser,
            self.lr_scheduler is not None,
            "Put balancer.parameters() into the optimiser given to optimizers=(...), as a group "
            "with weight_decay 0.0.",
        )
        # A second call of `train` gets the first one's optimiser, in accelerate's wrapping.
        bare = getattr(optimiser, "optimizer", optimiser)
        if bare is not self._watched:
            self._watched = bare
            bare.register_step_post_hook(self._updated)
        return optimiser

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as ever, the weights beside the training loss."""
        if "loss" in logs and self.weights is not None:
            logs |= {f"weight/{task}": weight for task, weight in self.weights.items()}
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save:
            balancer = self._needed()
            tasks = {"tasks": json.dumps(balancer.tasks)}
            content = safetensors.torch.save(balancer.state_dict(), metadata=tasks)
            write_atomic(Path(output_dir) / FILE, content)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / FILE
        if not path.is_file():
            raise RunError(
                f"{checkpoint} has no {FILE}: it was saved without a balancer, or with "
                "save_only_model=True. Resume from a checkpoint of a BalancedTrainer."
            )
        balancer = self._needed()
        with safetensors.safe_open(path, framework="pt") as file:
            hooks.check_tasks(balancer, json.loads(file.metadata()["tasks"]))
            balancer.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    # -- own ------------------------------------------------------------------------------------

    def _needed(self) -> Balancer:
        if self.balancer is None:
            raise UsageError(
                "BalancedTrainer has no balancer; call trainer.balance(Balancer(...)) before "
                "trainer.train()."
            )
        return self.balancer

    def _losses(self, model: nn.Module, inputs: Inputs) -> hooks.ByTask:
        losses = self.compute_losses(model, inputs)
        return hooks.losses_by_task(losses, self._needed(), "compute_losses")

    def _wrapper_of(self, model: nn.Module) -> DistributedDataParallel | None:
        """Return the wrapper by which the Trainer calls the model, which is checked once."""
        if self._called is None or self._called[0] is not model:
            called = getattr(model, "_orig_mod", model)  # of what torch.compile made
            wrapper = replicas.wrapper_of(
                called, self.model, self._needed(), "BalancedTrainer", _PROCESSES
            )
            self._called = model, wrapper
        return self._called[1]

    def _watches_evaluation(self) -> bool:
        return self.is_in_train and self._needed().observes == "validation"

    def _updated(self, optimiser: Any, inputs: Any, options: Any) -> None:
        """Follow an update: its gradients are spent, and the method may look at its batches."""
        balancer = self._needed()
        for parameter in balancer.parameters():  # the Trainer clears the model's alone
            parameter.grad = None
        if balancer.observes != "after":
            return
        fed, self._fed = self._fed, []
        if not self.weights:  # the update was left out, so there is nothing to compare with
            return
        after: dict[str, Tensor] = {}
        with torch.no_grad(), self.compute_loss_context_manager():
            for inputs in fed:
                for task, loss in hooks.detached(self._losses(self.model, inputs)).items():
                    part = loss / (len(fed) * balancer.processes)
                    after[task] = after[task] + part if task in after else part
        balancer.observe(after)


class BalancedTrainer(BalanceMixin, Trainer):
    """A Trainer with a balancer; see `BalanceMixin` for what it does, `balance` to give it one."""


def _check_trainer(trainer: Any) -> None:
    args = trainer.args
    if args.n_gpu > 1:
        raise UsageError(
            f"BalancedTrainer works on one device per process; this one has {args.n_gpu}. Start "
            "with torchrun --nproc-per-node, or set CUDA_VISIBLE_DEVICES to one device."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UsageError(
            f"BalancedTrainer works without DeepSpeed and FSDP; switch them off. {_PROCESSES}"
        )
    if args.fp16:
        raise UsageError(
            "BalancedTrainer: fp16 scales the loss, which methods that weigh by losses must not "
            "see; take bf16=True."
        )
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        raise UsageError(
            "BalancedTrainer takes its losses from the model or from compute_losses alone; leave "
            "out label_smoothing_factor and compute_loss_func."
        )


def _parts(whole: int, size: int, drop_last: bool = False) -> int:
    return whole // size if drop_last else math.ceil(whole / size)
