"""Balance methods and what stands around them.

Shapes: T = tasks, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from polytask.balance import (
    Balance,
    Balancer,
    Observer,
    Rows,
    Signal,
    State,
    Update,
    Weights,
    Wrapper,
)
from polytask.errors import UsageError
from polytask.testing.parts import equal, hold, layout


def check_balance(method: Balance, tasks: int = 4, seed: int = 0) -> None:
    """Return nothing if `method` keeps the contract of `polytask.balance.Balance`.

    method: fresh; one with trained parts is started anew, so do not check one that is in use.
    tasks: T >= 3 of the made-up problems. seed: of their gradients.

    Tried on gradients that conflict, agree, depend on each other, vanish, and span scales from
    1e-10 to 1e15, with every set of tasks present. Raises AssertionError that names the broken
    rule and the problem.
    """
    if tasks < 3:
        raise UsageError(f"check_balance: tasks is {tasks}; give at least 3.")
    name = type(method).__name__
    hold(isinstance(method, Balance), name, "it lacks a member of Balance")
    hold(method.needs in ("losses", "gramian", "rows"), name, f"needs is {method.needs!r}")
    hold(
        isinstance(method, torch.nn.Module) or dataclasses.is_dataclass(method),
        name,
        "it is neither an nn.Module nor a dataclass of settings",
    )
    for problem, rows_TP in _gradients(tasks, seed):
        state = method.start(tasks)
        for step in range(6):  # three epochs of two steps
            losses_T = _losses(tasks, seed + step)
            before = {key: value.clone() for key, value in state.items()}
            for present in _subsets(tasks):
                signal = _signal(method, losses_T, rows_TP, present, step)
                update = method(signal, state)
                where = f"{name}, {problem} gradients, tasks {present} of {tasks}, step {step}"
                _check_update(method, signal, state, update, where)
                again = method(signal, state)
                hold(torch.equal(update.weights_K, again.weights_K), where, "it is not repeatable")
                hold(equal(state, before), where, "it changed the state it was given")
                if method.foresees:
                    full = _signal(method, losses_T * 3, rows_TP, tuple(range(tasks)), step)
                    foreseen_K = method(full, state).weights_K[list(present)]
                    hold(
                        torch.allclose(update.weights_K, foreseen_K),
                        where,
                        "it says foresees, but weights depend on the losses or on who is present",
                    )
                if isinstance(method, Observer):
                    _check_observation(method, signal, update.state, where)
            state = update.state  # of the last subset, all tasks
            if isinstance(method, Observer):
                observed = _signal(method, losses_T * 0.9, rows_TP, tuple(range(tasks)), step)
                state = method.observe(observed, state)


def _check_update(
    method: Balance, signal: Signal, state: State, update: Update, where: str
) -> None:
    present = len(signal.index_K)
    shape = tuple(update.weights_K.shape)
    hold(shape == (present,), where, f"weights have shape {shape}, expected ({present},)")
    hold(bool(torch.isfinite(update.weights_K).all()), where, "a weight is not finite")
    hold(
        isinstance(method, torch.nn.Module) or not update.weights_K.requires_grad,
        where,
        "the weights carry a graph, but the method is no nn.Module",
    )
    # A state that starts without elements takes its size at the first step.
    sized = {key for key, value in state.items() if value.numel()}
    layout = {key: (state[key].shape, state[key].dtype) for key in sized}
    after = {
        key: (value.shape, value.dtype)
        for key, value in update.state.items()
        if key in sized or key not in state
    }
    hold(layout == after, where, f"the state's layout changed from {layout} to {after}")
    direction_P = update.direction_P
    if direction_P is not None:
        hold(signal.rows_KP is not None, where, "a direction needs rows; say needs = 'rows'")
        hold(bool(torch.isfinite(direction_P).all()), where, "the direction is not finite")


def _check_observation(method: Observer, signal: Signal, state: State, where: str) -> None:
    before = {key: value.clone() for key, value in state.items()}
    after = method.observe(signal, state)
    hold(equal(state, before), where, "observe changed the state it was given")
    hold(layout(state) == layout(after), where, "observe changed the state's layout")
    hold(equal(after, method.observe(signal, state)), where, "observe is not repeatable")


def _signal(
    method: Balance, losses_T: Tensor, rows_TP: Tensor, present: tuple[int, ...], step: int
) -> Signal:
    index_K = torch.tensor(present)
    rows_KP = rows_TP[index_K]
    return Signal(
        losses_T[index_K],
        index_K,
        tasks=len(losses_T),
        step=step,
        epoch=step // 2 if method.by_epoch else None,
        gram_KK=rows_KP @ rows_KP.T if method.needs != "losses" else None,
        rows_KP=rows_KP if method.needs == "rows" else None,
    )


def _gradients(tasks: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows_TP = torch.randn(tasks, 3 * tasks, generator=generator, dtype=torch.float64)
    yield "random", rows_TP
    yield "agreeing", rows_TP.abs()
    yield "opposed", rows_TP[:1] * (-1.0) ** torch.arange(tasks)[:, None]
    yield "low-rank", rows_TP[:, :2] @ torch.ones(2, 3 * tasks, dtype=torch.float64).tril()
    yield "partly zero", rows_TP * (torch.arange(tasks) > 0)[:, None]
    yield "zero", torch.zeros_like(rows_TP)
    yield "tiny", rows_TP * 1e-10
    yield "huge", rows_TP * 1e15
    yield "unlike", rows_TP * torch.logspace(-10, 15, tasks, dtype=torch.float64)[:, None]


def _losses(tasks: int, seed: int) -> Tensor:
    return torch.rand(tasks, generator=torch.Generator().manual_seed(seed)) + 0.1


def _subsets(tasks: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, tasks + 1):
        yield from combinations(range(tasks), size)


def check_wrapper(wrapper: Wrapper, tasks: int = 4, seed: int = 0) -> None:
    """Return nothing if `wrapper` keeps the contract of `polytask.balance.Wrapper`.

    wrapper: around a fresh method. tasks: T >= 3 of the made-up model. seed: of its numbers.

    Tried on a small model with heads, over a few updates, with all tasks and with some absent.
    Raises AssertionError that names the broken rule.
    """
    if tasks < 3:
        raise UsageError(f"check_wrapper: tasks is {tasks}; give at least 3.")
    name = type(wrapper).__name__
    _wraps(isinstance(wrapper, Wrapper), name, "it lacks a member of Wrapper")
    _wraps(
        isinstance(wrapper, torch.nn.Module) or dataclasses.is_dataclass(wrapper),
        name,
        "it is neither an nn.Module nor a dataclass of settings",
    )
    state = wrapper.start(tasks)
    for path, method in wrapper.methods().items():
        kept = {key for key in state if key.startswith(f"{path}.")}
        expected = {f"{path}.{key}" for key in method.start(tasks)}
        _wraps(kept == expected, name, f"its state keeps {kept} of {path!r}, not {expected}")
    names = tuple(f"task {t}" for t in range(tasks))
    present = [names, names[1:], names, names[:1], names]
    with torch.random.fork_rng(devices=[]):
        whole = _Wrapped(wrapper, names, seed)
        for tasks_here in present:
            _check_wrapped_step(whole, tasks_here, name)
        torch.manual_seed(seed)
        # Stopped in the middle and taken up from its state, it ends the same.
        first, second = _Wrapped(wrapper, names, seed), _Wrapped(wrapper, names, seed)
        for tasks_here in present[:2]:
            first.step(tasks_here)
        second.balancer.load_state_dict(first.balancer.state_dict())
        second.model.load_state_dict(first.model.state_dict())
        for tasks_here in present[2:]:
            second.step(tasks_here)
        for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
            _wraps(torch.equal(one, other), name, "taken up from its state it goes another way")


class _Wrapped:
    """A small model trained by plain descent, to try a wrapper on."""

    def __init__(self, wrapper: Wrapper, names: tuple[str, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)
        )
        self.heads = torch.nn.ModuleDict({n: torch.nn.Linear(4, 1) for n in names})
        self.model = torch.nn.ModuleList([self.encoder, self.heads]).double()
        self.balancer = Balancer(wrapper, self.encoder.parameters(), names, steps_per_epoch=2)
        self.inputs = torch.randn(16, 5, dtype=torch.float64)
        self.targets = {n: torch.randn(16, 1, dtype=torch.float64) for n in names}

    def losses(self, rows: Rows, tasks: Sequence[str]) -> dict[str, Tensor]:
        features = self.encoder(rows(self.inputs))
        return {
            n: (self.heads[n](features) - rows(self.targets[n])).square().mean() + 0.1
            for n in tasks
        }

    def step(self, tasks: tuple[str, ...]) -> Weights:
        weights = self.balancer.backward(self.losses(Rows(), tasks), again=self.losses)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)
                parameter.grad = None
        return weights


def _check_wrapped_step(made: _Wrapped, tasks: tuple[str, ...], name: str) -> None:
    balancer, model = made.balancer, made.model
    values = [parameter.detach().clone() for parameter in model.parameters()]
    state = balancer.state
    found: list[list[Tensor | None]] = []
    for _ in range(2):
        again = Balancer(balancer.method, balancer.shared, balancer.tasks, steps_per_epoch=2)
        again.load_state_dict(balancer.state_dict())
        given = again.state
        weights = again.backward(made.losses(Rows(), tasks), again=made.losses)
        found.append([parameter.grad for parameter in model.parameters()])
        for parameter in model.parameters():
            parameter.grad = None
    where = f"{name}, tasks {tasks}, update {balancer.step}"
    _wraps(weights.tasks == tasks, where, f"weights came for {weights.tasks}")
    _wraps(bool(weights.weights_K.isfinite().all()), where, "a weight is not finite")
    for parameter, value in zip(model.parameters(), values, strict=True):
        _wraps(torch.equal(parameter, value), where, "it left a parameter changed")
    _wraps(equal(given, state), where, "it changed the state it was given")
    _wraps(layout(again.state) == layout(state), where, "it changed the layout of its state")
    for one, other in zip(*found, strict=True):
        same = one is other is None or (
            one is not None and other is not None and torch.equal(one, other)
        )
        _wraps(same, where, "it is not repeatable")
    for n, head in made.heads.items():
        grads = [found[0][i] for i, p in enumerate(model.parameters()) if _holds(head, p)]
        reached = all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
        if n in tasks:
            _wraps(reached, where, f"the head of {n!r} has no finite gradient")
        else:
            _wraps(
                not any(g is not None and bool(g.any()) for g in grads),
                where,
                f"the head of {n!r}, which is absent, has a gradient",
            )
    shared = [found[0][i] for i, p in enumerate(model.parameters()) if _holds(made.encoder, p)]
    finite = all(grad is not None and bool(grad.isfinite().all()) for grad in shared)
    _wraps(finite, where, "a shared parameter has no finite gradient")
    made.step(tasks)


def _holds(module: torch.nn.Module, parameter: Tensor) -> bool:
    return any(own is parameter for own in module.parameters())


def _wraps(holds: bool, where: str, otherwise: str) -> None:
    hold(holds, where, otherwise, "a wrapper")
