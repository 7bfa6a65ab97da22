"""The loop: epochs of updates, a validation after each, the best weights kept, resumable.

It is made of plain functions that anybody can call in a loop of their own: `Feed.step`,
`train_step`, `validate`, `probe`.

Shapes: T = tasks of the run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balance import Balance, Balancer, Wrapper
from polytask.errors import RunError, UsageError
from polytask.fit import checkpoint, ranks
from polytask.fit.config import FitConfig
from polytask.fit.cost import Memory
from polytask.fit.data import Feed
from polytask.fit.experts import used_experts
from polytask.fit.looks import StreamLosses
from polytask.fit.probe import probe
from polytask.fit.progress import Progress, Silent
from polytask.fit.state import State
from polytask.fit.step import step_losses, train_step
from polytask.fit.sums import LossSums
from polytask.fit.validate import Meters, evaluating, primary, validate
from polytask.fit.watched import MakeWatch, Watched
from polytask.mix import Mix, Schedule, Uniform, optimiser_for, steps_per_epoch
from polytask.records import (
    Cost,
    Point,
    Record,
    claim,
    file_name,
    to_json,
    versions,
    write_atomic,
    write_json,
)
from polytask.share import SharedModel
from polytask.suites import Suite

Score = Callable[[Mapping[str, float], Mapping[str, float]], float]
"""Primary metrics per task, now and at the run's first validation -> one number, up is better.
Chooses the best weights."""

RECORD = "record.json"
RESTING = "resting.json"
"""The record so far of a run that was told to rest; a run that is done has none."""
WEIGHTS = "best.safetensors"


def fit(
    suite: Suite,
    model: SharedModel,
    balance: Balance | Wrapper,
    mix: Mix,
    config: FitConfig,
    score: Score,
    *,
    method: str,
    folder: Path | None = None,
    progress: Progress | None = None,
    watches: Mapping[str, MakeWatch] | None = None,
    until: int | None = None,
    earlier: Sequence[Record] = (),
) -> Record:
    """Train `model` on the suite's training streams; return the record, the best weights loaded.

    score: chooses the best weights from the primary metrics on the validation streams (and
        those of the run's first validation); the first one is kept where no score is better.
    method: the name the record carries.
    folder: where checkpoints, `record.json` and `best.safetensors` go; None keeps nothing. A
        folder of the same run is taken up where it was left, bit for bit; a finished one is
        returned as it is. A folder of another run raises RunError.
    watches: by a name of your choice, what makes a watch of `relate`; what it finds is in the
        folder, see `affinity_of`, or in the object that you kept.
    until: rest after so many epochs, if the run is not done by then: the record so far is returned
        (and is `resting.json`), the best weights so far are in the folder, and the same call with a
        larger number, or none, goes on from there. It needs a folder. The run itself is the same
        to the last bit however often it rests.
    earlier: records of stages that this run goes on from, whose time and updates count as its own.

    Several processes, as torchrun starts them (see `ranks.start`): each calls this with the same
    arguments; the first one writes. Seeds torch's global generator.

    Raises RunError where a loss is not finite, naming task and update, unless config.nonfinite is
    "skip".
    """
    progress = progress or Silent()
    if until is not None and (until < 1 or folder is None):
        raise UsageError(
            f"until is {until} and folder is {folder}; a run rests after 1 epoch or more, and "
            "needs a folder to go on from."
        )
    _check_device(config.device)
    ranks.check_model(model)
    identity = _identity(suite, config, method, sorted(watches or ()))
    if folder is not None:
        _claim(folder, identity)
        if (folder / RECORD).exists():
            record = Record.load(folder / RECORD)
            model.load_state_dict(load_weights(folder))
            model.to(config.device)  # where it is after training, too
            if ranks.rank() == 0 and any(folder.glob("checkpoint*")):  # killed before it was gone
                checkpoint.remove(folder)
                (folder / RESTING).unlink(missing_ok=True)
            return record
    run = _Run(suite, model, balance, mix, config, score, folder, watches or {})
    run.resume()
    progress.begin(run.last_step, run.state.step)
    run.train(progress, until)
    run.load_best()
    record = run.record(method, identity["settings"], earlier)
    if folder is not None and ranks.rank() == 0:
        write_atomic(folder / WEIGHTS, checkpoint.pack(dict(model.state_dict())))
        for task, tensors in run.best_of_task.items():
            write_atomic(_weights_of(folder, task), tensors)
        run.watched.save(folder)
        record.save(folder / (RECORD if record.stopped else RESTING))
        if record.stopped:
            checkpoint.remove(folder)
            (folder / RESTING).unlink(missing_ok=True)
    ranks.barrier()
    return record


class _Run:
    """One run in progress."""

    def __init__(
        self,
        suite: Suite,
        model: SharedModel,
        balance: Balance | Wrapper,
        mix: Mix,
        config: FitConfig,
        score: Score,
        folder: Path | None,
        watches: Mapping[str, MakeWatch],
    ) -> None:
        self.suite, self.model, self.config, self.score = suite, model, config, score
        self.folder = folder
        self.memory = Memory(config.device)
        model.to(config.device)
        sizes = {stream.name: len(stream) for stream in suite.train}
        self.epoch_steps = max(steps_per_epoch(sizes, config.batch_size), config.min_epoch_steps)
        self.last_step = self.epoch_steps * config.epochs
        self.schedule = Schedule(mix, sizes, config.batch_size, config.seed, steps=self.last_step)
        self.feed = Feed(
            suite.train,
            suite.tasks,
            self.schedule,
            config.accumulate,
            config.device,
            config.length_groups,
        )
        self.looks = StreamLosses(suite, config) if mix.observes else None
        self.balancer = Balancer(
            balance,
            model.shared_parameters(),
            tasks=suite.tasks.names,
            steps_per_epoch=self.epoch_steps,
            branches=model.branches() or None,
            nonfinite=config.nonfinite,
        )
        # Where the mix wants one of its own, it is told before each step whose that is.
        self.by_stream = optimiser_for(
            mix,
            parameter_groups(model, self.balancer),
            self.schedule.streams,
            lr=config.lr,
            weight_decay=config.weight_decay,
        )
        self.optimiser: torch.optim.Optimizer = self.by_stream or build_optimiser(
            model, self.balancer, config
        )
        self.watched = Watched(watches, model, self.optimiser)
        self.observed = _Observed(suite, config) if self.balancer.observes == "validation" else None
        self.meters = Meters(suite.tasks, primary_only=True)
        self.sums = LossSums(suite.tasks.names)
        self.cursors_S = self.schedule.start()
        self.state = State()
        self.best: dict[str, Tensor] = {}
        self.best_of_task: dict[str, bytes] = {}
        # Of its own in every process: rows of one batch must not share their dropout.
        torch.manual_seed(config.seed * ranks.world() + ranks.rank())
        # Where nothing is trained together, tasks' gradients have nothing to meet on.
        meets = len(suite.tasks) > 1 and any(p.requires_grad for p in model.shared_parameters())
        count = min(config.probes, config.epochs) if meets else 0
        self.probe_epochs = _spread(count, config.epochs)

    def train(self, progress: Progress, until: int | None = None) -> None:
        """Train to the end, or to the end of epoch `until` and leave a checkpoint."""
        config, state = self.config, self.state
        self.model.train()
        saved, counted = time.monotonic(), False
        rest = self.last_step if until is None else min(until * self.epoch_steps, self.last_step)
        while state.step < rest and not state.stopped:
            begun, waited = time.perf_counter(), self._waited()
            if config.schedule == "cosine":
                self._set_lr()
            self.model.at(state.step / self.last_step)
            fed, self.cursors_S = self.feed.step(state.step, self.cursors_S)
            epoch, into = divmod(state.step, self.epoch_steps)
            if into == 0 and epoch in self.probe_epochs:
                paused = time.perf_counter()
                state.probes.append(probe(self.model, fed, state.step))
                begun += time.perf_counter() - paused
            if self.by_stream is not None:
                fed_S = self.schedule.counts(state.step)
                self.by_stream.at(self.schedule.streams.names[int(fed_S.argmax())])
            paused = time.perf_counter()
            self.watched.observe(fed, config.precision)
            begun += time.perf_counter() - paused
            if self.observed is not None:
                tasks, losses_K = self.observed.losses(self.model, state.step)
                self.balancer.observe(losses_K, tasks=tasks)
            # The first update of this process is counted: its batch is as large as any.
            watch = contextlib.nullcontext() if counted else self.memory.watch()
            with watch:
                weights = train_step(
                    self.model, self.balancer, self.optimiser, fed, config.precision, config.clip
                )
            if not counted:
                counted = True
                self._count_memory()
            self.sums.add(weights)
            state.step += 1
            now = time.perf_counter()
            state.seconds += now - begun
            state.waited += self._waited() - waited
            progress.step(state.step, lambda: self.sums.means()[0])
            if state.step % self.epoch_steps == 0:
                self._validate(progress)
                if self.looks is not None:
                    self.schedule.observe(self.looks.losses(self.model), state.step)
                state.validation_seconds += time.perf_counter() - now
            due = time.monotonic() - saved >= config.checkpoint_seconds
            # Clocks differ, and all processes take part in a checkpoint.
            if self.folder is not None and ranks.agree(due):
                self._save()
                saved = time.monotonic()
        if not state.stopped and state.step >= self.last_step:
            state.stopped = "epochs"
        if not state.stopped:
            self._save()

    def _waited(self) -> float:
        return self.feed.waited + (0.0 if self.observed is None else self.observed.feed.waited)

    def _count_memory(self) -> None:
        needed = self.memory.bytes(self.model, self.optimiser, self.balancer)
        self.state.peak_memory = max(self.state.peak_memory, needed)

    def _set_lr(self) -> None:
        part = self.state.step / self.last_step
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * part))

    def _validate(self, progress: Progress) -> None:
        config, state = self.config, self.state
        values = validate(
            self.model,
            self.suite.val,
            self.meters,
            max(config.batch_size, 256),
            config.device,
            config.precision,
        )
        chosen = primary(values, self.suite.tasks)
        train, weights = self.sums.means()
        self.sums.reset()
        epoch = state.step // self.epoch_steps
        first = primary(state.points[0].val, self.suite.tasks) if state.points else chosen
        score = self.score(chosen, first)
        point = Point(state.step, epoch, state.seconds, train, values, weights, score)
        state.points.append(point)
        best = None if state.best is None else state.points[state.best].score
        if best is None or score > best or (math.isnan(best) and not math.isnan(score)):
            state.best = len(state.points) - 1
            self.best = {n: v.detach().clone() for n, v in self.model.state_dict().items()}
            state.stale = 0
        else:
            state.stale += 1
        for task in self.suite.tasks:
            value = chosen[task.name]
            _, before = state.best_per_task.get(task.name, (0, math.nan))
            if task.name not in state.best_per_task or task.primary.better(value, before):
                state.best_per_task[task.name] = (state.step, value)
                if config.per_task_best:
                    self.best_of_task[task.name] = checkpoint.pack(self._reached_by(task.name))
        if config.patience and state.stale >= config.patience:
            state.stopped = "patience"
        progress.point(point)

    def _reached_by(self, task: str) -> dict[str, Tensor]:
        """Return the part of the model's state that the task's output can depend on."""
        others = {
            id(p) for t in self.model.tasks if t != task for p in self.model.task_parameters(t)
        }
        kept = self.model.state_dict(keep_vars=True)
        return {name: value for name, value in kept.items() if id(value) not in others}

    def record(self, method: str, settings: dict[str, Any], earlier: Sequence[Record]) -> Record:
        """Return what the run leaves behind; the model has its best weights."""
        self._count_memory()
        state, config = self.state, self.config
        assert state.best is not None
        use = used_experts(self.model, self.suite.val, max(config.batch_size, 256), config.device)
        cost = Cost(
            seconds=state.seconds + sum(r.cost.seconds for r in earlier),
            validation_seconds=state.validation_seconds
            + sum(r.cost.validation_seconds for r in earlier),
            steps=state.step + sum(r.cost.steps for r in earlier),
            parameters=_count(self.model.parameters()),
            shared_parameters=_count(self.model.shared_parameters()),
            peak_memory=state.peak_memory,
            waiting=state.waited / state.seconds if state.seconds else 0.0,
            trained=_count(p for p in self.model.parameters() if p.requires_grad),
        )
        return Record(
            suite=self.suite.name,
            method=method,
            tasks=self.suite.tasks.names,
            seed=config.seed,
            settings=settings,
            points=tuple(state.points),
            probes=tuple(state.probes),
            best=state.points[state.best],
            best_per_task=dict(state.best_per_task),
            stopped=state.stopped,
            cost=cost,
            engine=self.balancer.engine,
            versions=versions(),
            notes=dict(self.balancer.notes),
            experts=use.gates,
            warnings=use.warnings(),
        )

    def load_best(self) -> None:
        self.model.load_state_dict(self.best)

    def _save(self) -> None:
        assert self.folder is not None
        rng = checkpoint.numbered("cpu", ranks.gather(torch.get_rng_state()))
        if self.config.device.startswith("cuda"):
            on_device = ranks.gather(torch.cuda.get_rng_state(self.config.device))
            rng |= checkpoint.numbered("device", on_device)
        if ranks.rank() != 0:
            return
        tensors = {
            **checkpoint.named("model", dict(self.model.state_dict())),
            **checkpoint.named("optimiser", checkpoint.optimiser_tensors(self.optimiser)),
            **checkpoint.named("balance", self.balancer.state_dict()),
            **checkpoint.named("sums", self.sums.tensors),
            **checkpoint.named("rng", rng),
            **checkpoint.named("best", self.best),
            **checkpoint.named("mix", self.schedule.memory),
            **checkpoint.named("watched", self.watched.state_dict()),
            "cursors": self.cursors_S,
        }
        if self.observed is not None:
            tensors["observed_cursors"] = self.observed.cursors_S
        for task, content in self.best_of_task.items():
            tensors[f"best_of_task/{task}"] = torch.frombuffer(
                bytearray(content), dtype=torch.uint8
            )
        self.state.notes = dict(self.balancer.notes)
        checkpoint.save(self.folder, self.state.step, tensors, to_json(self.state))

    def resume(self) -> None:
        """Take up the folder's checkpoint, if it has one."""
        found = checkpoint.load(self.folder) if self.folder is not None else None
        if found is None:
            return
        tensors, raw = found
        rng = checkpoint.under("rng", tensors)
        processes = len(checkpoint.under("cpu", rng))
        if processes != ranks.world():
            raise RunError(
                f"The checkpoint in {self.folder} is of {processes} processes, this run has "
                f"{ranks.world()}. Start {processes}, or delete {checkpoint.NAME} there to begin "
                "again."
            )
        try:
            self.state = State.from_json(raw)
            self.model.load_state_dict(checkpoint.under("model", tensors))
            checkpoint.restore_optimiser(self.optimiser, checkpoint.under("optimiser", tensors))
            self.balancer.load_state_dict(checkpoint.under("balance", tensors))
            self.balancer.notes = dict(self.state.notes)
            for name, value in checkpoint.under("sums", tensors).items():
                self.sums.tensors[name].copy_(value)
            self.cursors_S = tensors["cursors"]
            memory = checkpoint.under("mix", tensors)
            self.schedule.memory = {name: memory[name] for name in self.schedule.memory}
            self.watched.load_state_dict(checkpoint.under("watched", tensors))
            if self.observed is not None:
                self.observed.cursors_S = tensors["observed_cursors"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"The checkpoint in {self.folder} does not fit this run ({error}). Delete "
                f"{checkpoint.NAME} there to begin again."
            ) from error
        self.best = checkpoint.under("best", tensors)
        self.best_of_task = {
            task: value.numpy().tobytes()
            for task, value in checkpoint.under("best_of_task", tensors).items()
        }
        torch.set_rng_state(rng[f"cpu/{ranks.rank()}"])
        if self.config.device.startswith("cuda"):
            torch.cuda.set_rng_state(rng[f"device/{ranks.rank()}"], self.config.device)


class _Observed:
    """A batch of validation rows before every update, for methods that observe their losses.

    The rows of every stream alike, so that each task is seen in nearly every batch.
    """

    def __init__(self, suite: Suite, config: FitConfig) -> None:
        sizes = [len(stream) for stream in suite.val]
        schedule = Schedule(Uniform(), sizes, config.batch_size, config.seed)
        self.feed = Feed(
            suite.val,
            suite.tasks,
            schedule,
            config.accumulate,
            config.device,
            config.length_groups,
        )
        self.cursors_S = schedule.start()
        self._precision = config.precision

    def losses(self, model: SharedModel, step: int) -> tuple[tuple[str, ...], Tensor]:
        """Return the tasks of the next batch and this process's share of their mean losses."""
        fed, self.cursors_S = self.feed.step(step, self.cursors_S)
        with evaluating(model):
            return step_losses(model, fed, self._precision)


def build_optimiser(
    model: nn.Module, balancer: Balancer, config: FitConfig
) -> torch.optim.Optimizer:
    """Return AdamW over the model and the balancer's own parameters, which do not decay."""
    groups = parameter_groups(model, balancer)
    # Fused: one kernel for all tensors, so that many heads cost no more than one.
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def parameter_groups(model: nn.Module, balancer: Balancer) -> list[dict[str, Any]]:
    """Return the parameters as optimisers take them: the balancer's own do not decay."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    own = list(balancer.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0})
    return groups


def load_weights(folder: Path, task: str | None = None) -> dict[str, Tensor]:
    """Return the best weights of a finished run, as a state dict.

    task: those that were best for this task alone, of a run with `per_task_best`; the heads of
        other tasks are left out, so load them with `strict=False`.
    Raises RunError where the file is missing or damaged.
    """
    file = folder / WEIGHTS if task is None else _weights_of(folder, task)
    return checkpoint.unpack(file, f"Delete {folder / RECORD} to run it again.")


def _weights_of(folder: Path, task: str) -> Path:
    return folder / "best" / f"{file_name(task)}.safetensors"


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: torch built without CUDA
        reason = str(error).splitlines()[0]
        raise UsageError(f"device is {device!r}: {reason}. Give cpu, cuda or cuda:N.") from None


def _identity(
    suite: Suite, config: FitConfig, method: str, watches: Sequence[str]
) -> dict[str, Any]:
    identity = {
        "suite": suite.name,
        "tasks": list(suite.tasks.names),
        "rows": {s.name: len(s) for s in suite.train},
        "method": method,
        "settings": to_json(config.identity()),
    }
    return identity | ({"watches": list(watches)} if watches else {})


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark the folder as this run's. Raises RunError where it is another's."""
    path = folder / "run.json"
    if ranks.rank() == 0 and not path.exists():
        write_json(path, identity)
    ranks.barrier()
    claim(path, identity, "run")


def _spread(count: int, epochs: int) -> frozenset[int]:
    """Return `count` epochs from 0, denser at the start, where gradients change most."""
    if count < 2:
        return frozenset(range(count))
    return frozenset(round(epochs ** (i / (count - 1))) - 1 for i in range(count))


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)
