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
from polytask.mix import Mix, Now, Streams
from polytask.mix import Observer as MixObserver
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


def check_mix(mix: Mix, streams: Streams, steps: int = 12) -> None:
    """Return nothing if `mix` keeps the contract of `polytask.mix.Mix` on these streams.

    steps: of the made-up run. A method that observes is shown losses, some of them missing.

    Raises AssertionError that names the broken rule, and UsageError where the method's settings do
    not fit the streams.
    """
    name = type(mix).__name__
    _mixes(isinstance(mix, Mix), name, "it lacks a member of Mix")
    _mixes(dataclasses.is_dataclass(mix), name, "it is no dataclass of settings")
    _mixes(hash(mix) == hash(mix), name, "it cannot be hashed; its fields must be frozen")
    _mixes(mix.varies in ("never", "by step", "by run"), name, f"varies is {mix.varies!r}")
    state = mix.start(streams)
    _mixes(_same(state, mix.start(streams)), name, "a second start is another")
    if mix.observes:
        _mixes(isinstance(mix, MixObserver), name, "it says observes and has no observe")
        state = _check_looks(mix, streams, state, steps)
    found = []
    for step in range(steps):
        where = f"{name}, step {step} of {steps}"
        now = Now(step, steps if mix.varies == "by run" else None)
        before = {key: value.clone() for key, value in state.items()}
        shares_S = mix(streams, now, state)
        shape, kind = tuple(shares_S.shape), shares_S.dtype
        _mixes(shape == (len(streams),), where, f"shares have shape {shape}")
        _mixes(kind == torch.float64, where, f"shares are {kind}, not float64")
        _mixes(bool((shares_S >= 0).all()), where, "a share is negative or no number")
        _mixes(abs(float(shares_S.sum()) - 1) < 1e-12, where, "the shares do not sum to 1")
        _mixes(torch.equal(shares_S, mix(streams, now, state)), where, "it is not repeatable")
        _mixes(_same(state, before), where, "it changed the state it was given")
        found.append(shares_S)
    if mix.varies == "never":
        still = all(torch.equal(shares_S, found[0]) for shares_S in found)
        _mixes(still, name, "varies is 'never', but shares differ by step")


def _check_looks(mix: Mix, streams: Streams, state: State, steps: int) -> State:
    assert isinstance(mix, MixObserver)
    where = f"{type(mix).__name__}, looks"
    draw = torch.Generator().manual_seed(0)
    for step in range(4):
        losses_S = torch.rand(len(streams), generator=draw, dtype=torch.float64)
        losses_S[torch.arange(len(streams)) % 3 == step] = torch.nan
        before = {key: value.clone() for key, value in state.items()}
        after = mix.observe(losses_S, streams, Now(step, steps), state)
        _mixes(_same(state, before), where, "observe changed the state it was given")
        _mixes(_layout(after) == _layout(state), where, "observe changed the state's layout")
        again = mix.observe(losses_S, streams, Now(step, steps), state)
        _mixes(_same(after, again), where, "observe is not repeatable")
        state = after
    return state


def _mixes(holds: bool, where: str, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a mix is broken ({where}): {otherwise}.")


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
