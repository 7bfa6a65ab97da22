"""Checkers for plug-ins: a contract, tried on an object of yours.

    from polytask.testing import check_kind
    check_kind(MyKind(), target, width=8)

Each returns nothing where the contract holds, and raises AssertionError with the broken rule where
it does not.

Shapes: B = rows of the target given, L = positions, H, W = height and width;
    T = tasks, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
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
from polytask.errors import DataError, UsageError
from polytask.relate import Affinity, Groups, Watch, hoa, member_of
from polytask.tasks import IGNORE, Kind


def check_kind(kind: Kind, target: Tensor, width: int = 8, seed: int = 0) -> None:
    """Return nothing if `kind` keeps the contract of `polytask.tasks.Kind` on this target.

    kind: not fitted yet. target: a raw target as a training split has it, 4 rows or more, at least
        two rows with a label in each half. width: channels of the features its head is tried on.
    seed: of the features and the head; the caller's random state is left as it was.

    Raises AssertionError that names the broken rule, and UsageError where the target is too small
    to try the rules on.
    """
    fitted = _check_fit(kind, target)
    encoded = _check_encode(fitted, target)
    half = len(target) // 2
    if half < 2 or not all(
        bool(fitted.present(part).any()) for part in (encoded[:half], encoded[half:])
    ):
        raise UsageError(
            f"check_kind needs 4 rows or more with labels in both halves; got {len(target)} rows."
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        output = fitted.head(width)(_features(fitted, target, width))
    _expect(len(output) == len(target), f"the head returns {len(output)} rows of {len(target)}")
    _check_loss(fitted, output, target, half)
    if fitted.stacks:
        _check_stacks(fitted, output, encoded)
    _check_metrics(fitted, output, target, half)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a kind is broken: {otherwise}.")


def _near(value: Tensor, reference: Tensor) -> bool:
    return torch.allclose(value, reference, rtol=1e-4, atol=1e-6)


def _check_fit(kind: Kind, target: Tensor) -> Kind:
    _expect(dataclasses.is_dataclass(kind), "it is no dataclass")
    fitted = kind.fit(target, "checked")
    _expect(type(fitted) is type(kind), f"fit returns a {type(fitted).__name__}")
    _expect(fitted.fit(target, "checked") == fitted, "a second fit learns something else")
    _expect(hash(fitted) == hash(fitted), "it cannot be hashed; its fields must be frozen")
    fitted.check(target, "checked", "train")
    return fitted


def _check_encode(kind: Kind, target: Tensor) -> Tensor:
    before = target.clone()
    encoded = kind.encode(target)
    present = kind.present(encoded)
    _expect(torch.equal(target.nan_to_num(), before.nan_to_num()), "encode changes its argument")
    _expect(len(encoded) == len(target), "encode changes the number of rows")
    _expect(present.dtype == torch.bool, f"present returns {present.dtype}, not bool")
    _expect(present.shape == encoded.shape, "present differs in shape from the encoded target")
    gone = kind.present(kind.encode(_erased(target, slice(None))))
    _expect(not bool(gone.any()), "present finds labels where all are missing")
    return encoded


def _check_loss(kind: Kind, output: Tensor, target: Tensor, half: int) -> None:
    encoded = kind.encode(target)
    whole, count = kind.loss(output, encoded)
    labels = kind.present(encoded)
    expected = labels.sum(0) if kind.stacks else labels.sum()
    _expect(whole.shape == count.shape == expected.shape, "the loss's sum has the wrong shape")
    _expect(torch.equal(count.long(), expected), "the loss's count is not that of labels present")
    _expect(bool(whole.isfinite().all()), "the loss of finite outputs is not finite")

    first, second = (kind.loss(output[r], encoded[r]) for r in (slice(half), slice(half, None)))
    added = _near(first[0] + second[0], whole)
    _expect(added, "the losses of two halves do not add up to that of all rows; return a sum")

    leaf = output.clone().requires_grad_()
    partly = kind.encode(_erased(target, slice(half, None)))
    total, count = kind.loss(leaf, partly)
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    _expect(_near(total, first[0]), "rows without a label change the loss of the others")
    _expect(torch.equal(count, first[1]), "rows without a label are counted")
    _expect(not bool(gradient[half:].any()), "rows without a label have a gradient")
    _expect(bool(gradient[:half].any()), "rows with labels have no gradient")

    nothing, none = kind.loss(leaf, kind.encode(_erased(target, slice(None))))
    (gradient,) = torch.autograd.grad(nothing.sum(), leaf)
    _expect(not bool(nothing.any()) and not bool(none.any()), "no label at all is not a loss of 0")
    _expect(not bool(gradient.any()), "no label at all has a gradient")

    reduced = kind.loss(output.bfloat16(), encoded)[0]
    _expect(reduced.dtype == torch.float32, f"bfloat16 outputs are summed in {reduced.dtype}")


def _check_stacks(kind: Kind, output: Tensor, encoded: Tensor) -> None:
    _expect(output.shape == (len(encoded), 1), "it stacks, but its head does not return (B, 1)")
    _expect(encoded.ndim == 1, "it stacks, but its encoded target is not (B,)")
    side = kind.loss(torch.cat([output, -output], 1), torch.stack([encoded, encoded.flip(0)], 1))
    alone = [kind.loss(output, encoded), kind.loss(-output, encoded.flip(0))]
    for at, name in ((0, "sums"), (1, "counts")):
        same = _near(side[at], torch.stack([one[at] for one in alone]))
        _expect(same, f"the loss's {name} of two columns are not those of each alone")


def _check_metrics(kind: Kind, output: Tensor, target: Tensor, half: int) -> None:
    metrics = kind.metrics()
    _expect(len(metrics) > 0, "it has no metric")
    names = [metric.name for metric in metrics]
    _expect(len(set(names)) == len(names), f"two of its metrics share a name: {names}")

    nothing = kind.scores(output, _erased(target, slice(None)))
    _expect(len(nothing[0]) == len(nothing[1]) == 0, "scores keep rows that have no label")
    # Rows without a label must not reach a metric, whatever the model says of them.
    partly = _erased(target, slice(half, None))
    unlabelled = output.new_zeros(output.shape)
    count = unlabelled[half:].numel()
    # Uneven, so that it moves the most probable class as well as the mean.
    unlabelled[half:] = torch.linspace(-5.0, 25.0, count).reshape(unlabelled[half:].shape)
    for metric in metrics:
        _expect(metric.direction in ("max", "min"), f"{metric.name} has no direction")
        _expect(bool(metric.unit), f"{metric.name} has no unit")
        _expect(metric.build() is not metric.build(), f"{metric.name} is not built anew")
        values = []
        for shift in (0, unlabelled, -unlabelled):
            meter = metric.build()
            meter.update(*kind.scores(output + shift, partly))
            meter.update(*nothing)
            value = meter.compute()
            _expect(value.ndim == 0, f"{metric.name} is no scalar")
            values.append(float(value))
        same = len(set(values)) == 1 or all(map(math.isnan, values))
        _expect(same, f"{metric.name} depends on outputs whose labels are missing")
        meter = metric.build()
        meter.update(*nothing)
        _expect(bool(meter.compute().isnan()), f"{metric.name} of no labels is not NaN")


def _features(kind: Kind, target: Tensor, width: int) -> Tensor:
    rows, rest = len(target), tuple(target.shape[1:])
    shapes = {
        "row": (rows, width),
        "sequence": (rows, *rest[:1], width),
        "map": (rows, width, *rest),
    }
    return torch.randn(shapes[kind.reads])


def _erased(target: Tensor, rows: slice) -> Tensor:
    """Return a copy of the raw target without the labels of these rows."""
    erased = target.long() if target.dtype == torch.bool else target.clone()
    erased[rows] = torch.nan if erased.is_floating_point() else IGNORE
    return erased


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
    _hold(isinstance(method, Balance), name, "it lacks a member of Balance")
    _hold(method.needs in ("losses", "gramian", "rows"), name, f"needs is {method.needs!r}")
    _hold(
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
                _hold(torch.equal(update.weights_K, again.weights_K), where, "it is not repeatable")
                _hold(_same(state, before), where, "it changed the state it was given")
                if method.foresees:
                    full = _signal(method, losses_T * 3, rows_TP, tuple(range(tasks)), step)
                    foreseen_K = method(full, state).weights_K[list(present)]
                    _hold(
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
    _hold(shape == (present,), where, f"weights have shape {shape}, expected ({present},)")
    _hold(bool(torch.isfinite(update.weights_K).all()), where, "a weight is not finite")
    _hold(
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
    _hold(layout == after, where, f"the state's layout changed from {layout} to {after}")
    direction_P = update.direction_P
    if direction_P is not None:
        _hold(signal.rows_KP is not None, where, "a direction needs rows; say needs = 'rows'")
        _hold(bool(torch.isfinite(direction_P).all()), where, "the direction is not finite")


def _check_observation(method: Observer, signal: Signal, state: State, where: str) -> None:
    before = {key: value.clone() for key, value in state.items()}
    after = method.observe(signal, state)
    _hold(_same(state, before), where, "observe changed the state it was given")
    _hold(_layout(state) == _layout(after), where, "observe changed the state's layout")
    _hold(_same(after, method.observe(signal, state)), where, "observe is not repeatable")


def _layout(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in state.items()}


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


def _same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(value.nan_to_num(nan=-1.0), other[key].nan_to_num(nan=-1.0))
        for key, value in state.items()
    )


def _hold(holds: bool, where: str, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a balance is broken ({where}): {otherwise}.")


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
    _wraps(_same(given, state), where, "it changed the state it was given")
    _wraps(_layout(again.state) == _layout(state), where, "it changed the layout of its state")
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
    if not holds:
        raise AssertionError(f"The contract of a wrapper is broken ({where}): {otherwise}.")


def check_grouping(rule: Callable[[Affinity, int], Groups], seed: int = 0) -> None:
    """Return nothing if a rule of grouping keeps the contract of `polytask.relate`.

    rule: an affinity and a budget of models -> groups. seed: of the made-up affinities.

    Tried on tasks that help, hurt and do nothing, of scales from 1e-9 to 1e9, with budgets from one
    model to more than there are tasks. Raises AssertionError that names the broken rule.
    """
    generator = torch.Generator().manual_seed(seed)
    for tasks in (2, 3, 7):
        drawn_TT = torch.randn(tasks, tasks, generator=generator).double()
        kinds = {"mixed": drawn_TT, "helping": drawn_TT.abs(), "hurting": -drawn_TT.abs(),
                 "flat": 0 * drawn_TT, "tiny": 1e-9 * drawn_TT, "huge": 1e9 * drawn_TT}  # fmt: skip
        names = tuple(f"task {t}" for t in range(tasks))
        unknown_TT = torch.full((tasks, tasks), torch.nan)
        for kind, values_TT in kinds.items():
            affinity = Affinity(names, values_TT, unknown_TT)
            for budget in (1, 2, tasks, tasks + 3):
                where = f"{kind} tasks, {budget} models for {tasks}"
                _check_groups(rule, affinity, budget, where)
        holes_TT = drawn_TT.clone()
        holes_TT[0, 1] = torch.nan
        try:
            rule(Affinity(names, holes_TT, unknown_TT), 2)
        except DataError:
            continue
        _groups(False, f"{tasks} tasks", "a value is missing and it raises no DataError")


def _check_groups(
    rule: Callable[[Affinity, int], Groups], affinity: Affinity, budget: int, where: str
) -> None:
    before = affinity.values_TT.clone()
    found = rule(affinity, budget)
    _groups(torch.equal(affinity.values_TT, before), where, "it changed the affinity")
    _groups(found.tasks == affinity.tasks, where, f"it is of the tasks {found.tasks}")
    _groups(len(found.groups) <= budget, where, f"it uses {len(found.groups)} models")
    idle = set(range(len(found.groups))) - set(found.serve)
    _groups(not idle, where, f"groups {sorted(idle)} serve nobody")
    expected_KT = hoa(affinity, member_of(found.tasks, found.groups)).gain_GT
    for t, (k, value) in enumerate(zip(found.serve, found.value, strict=True)):
        same = math.isclose(value, float(expected_KT[k, t]), rel_tol=1e-6, abs_tol=1e-15)
        _groups(same or math.isnan(value), where, f"a value is {value}, not {expected_KT[k, t]}")
    _groups(rule(affinity, budget).groups == found.groups, where, "a second call finds others")


def _groups(holds: bool, where: str, otherwise: str) -> None:
    if not holds:
        raise AssertionError(
            f"The contract of a rule of grouping is broken ({where}): {otherwise}."
        )


def check_watch(
    make: Callable[
        [torch.nn.Module, Sequence[Tensor], torch.optim.Optimizer, tuple[str, ...]], Watch
    ],
    seed: int = 0,
) -> None:
    """Return nothing if a watch keeps the contract of `polytask.relate.Watch`.

    make: model, shared parameters, optimiser, task names -> the watch, looking at every step.
    seed: of the made-up model. Tried on one with batch-norm and dropout, over a few steps of Adam.

    Raises AssertionError that names the broken rule.
    """
    with torch.random.fork_rng(devices=[]):
        plain, watched, resumed = (_Watched(make if m else None, seed) for m in (0, 1, 1))
        for one in (plain, watched, resumed):
            torch.manual_seed(seed)
            for step in range(6):
                if one is resumed and step == 3:
                    one.restart(make)
                one.step()
            one.random = torch.get_rng_state()
    first, second = watched.watch, resumed.watch
    assert first is not None
    assert second is not None
    _watch(isinstance(first, Watch), "it lacks a member of Watch")
    _watch(torch.equal(plain.random, watched.random), "it moves the random state")
    for name, value in plain.model.state_dict().items():
        same = torch.equal(value, watched.model.state_dict()[name])
        _watch(same, f"a watched run ends otherwise, first seen in {name!r}")
    _watch(first.affinity().tasks == watched.names, "its affinity is of other tasks")
    _watch(first.affinity() == second.affinity(), "taken up from its state it goes another way")


class _Watched:
    """A small model in training, with a watch or without."""

    def __init__(self, make: Callable[..., Watch] | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.names = ("task 0", "task 1", "task 2")
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Dropout(0.2)
        )
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 1) for _ in self.names)
        self.model = torch.nn.ModuleList([self.trunk, self.heads])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.random = torch.get_rng_state()
        self.watch: Watch | None = None
        if make is not None:
            self.restart(make)

    def restart(self, make: Callable[..., Watch]) -> None:
        before = self.watch
        self.watch = make(self.model, list(self.trunk.parameters()), self.optimizer, self.names)
        if before is not None:
            self.watch.load_state_dict(before.state_dict())

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            name: (head(features)[:, 0] - x[:, t]).square().mean()
            for t, (name, head) in enumerate(zip(self.names, self.heads, strict=True))
        }

    def step(self) -> None:
        x = torch.randn(16, 4)
        losses = self.losses(x)
        if self.watch is not None:
            self.watch.observe(losses, again=lambda: self.losses(x))
        self.optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        self.optimizer.step()


def _watch(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a watch is broken: {otherwise}.")
