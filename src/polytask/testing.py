"""Checkers for plug-ins: a contract, tried on an object of yours.

    from polytask.testing import check_kind
    check_kind(MyKind(), target, width=8)

Each returns nothing where the contract holds, and raises AssertionError with the broken rule where
it does not.

Shapes: B = rows of the target given, L = positions, H, W = height and width;
    T = tasks, K = tasks present, P = shared parameters; of merges, M = tuned models, P = elements.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import combinations, cycle

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
from polytask.errors import RunError, UsageError
from polytask.merge import Merge, Place, Surveyor
from polytask.merge.base import GRAIN
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
    _hold(holds, where, otherwise, "a mix")


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


def _hold(holds: bool, where: str, otherwise: str, of: str = "a balance") -> None:
    if not holds:
        raise AssertionError(f"The contract of {of} is broken ({where}): {otherwise}.")


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
    _hold(holds, where, otherwise, "a wrapper")


def check_merge(method: Merge, seed: int = 0) -> None:
    """Return nothing if `method` keeps the contract of `polytask.merge.Merge`.

    method: with its settings. seed: of the made-up models.

    Tried on models that differ at random, by equal sizes, against each other, not at all, and by
    scales from 1e-10 to 1e10; whole and in pieces, in float64, float32 and 16 bits, in every order
    that it says does not matter. Raises AssertionError that names the broken rule and the models.
    """
    name = type(method).__name__
    _merges(isinstance(method, Merge), name, "it is no Merge")
    _merges(dataclasses.is_dataclass(method), name, "it is no dataclass of settings")
    try:
        hash(method)
    except TypeError:
        _merges(False, name, "it cannot be hashed; its fields must be frozen")
    _merges(method.reach in ("elements", "tensor"), name, f"reach is {method.reach!r}")
    wide = method.dtype in (torch.float32, torch.float64)
    _merges(wide, name, f"dtype is {method.dtype}, not float32 or float64")
    before = torch.get_rng_state()
    _check_mixture(method, name, seed)  # its survey is bounded: one without end is caught here
    for problem, base_P, tuned_MP in _families(method, seed):
        _check_merged(method, base_P, tuned_MP, f"{name}, {problem} models")
    _check_counts(method, name, seed)
    _check_pieces(method, name, seed)
    _check_spoiled(method, name, seed)
    _merges(torch.equal(before, torch.get_rng_state()), name, "it draws from torch's own generator")


Tuned = tuple[Tensor, Tensor]
"""A base (P,) and the models tuned from it, (M, P)."""


def _count(method: Merge) -> int:
    weights: tuple[float, ...] = getattr(method, "weights", ())
    return len(weights) or method.most or max(4, method.least)


def _tuned(method: Merge, shape: tuple[int, ...], seed: int) -> Tuned:
    generator = torch.Generator().manual_seed(seed)
    base_P = torch.randn(shape, generator=generator)
    return base_P, base_P + 0.1 * torch.randn((_count(method), *shape), generator=generator)


def _families(method: Merge, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    base_P, tuned_MP = _tuned(method, (40, 31), seed)
    tau_MP = tuned_MP - base_P
    models = len(tau_MP)
    turns_M = (-1.0) ** torch.arange(models)[:, None, None]
    yield "random", base_P, tuned_MP
    yield "equal-sized", base_P.round(), base_P.round() + (tau_MP * 10).round()
    yield "opposed", base_P, base_P + tau_MP[:1] * turns_M
    yield "unchanged", base_P, base_P.expand_as(tau_MP)
    yield "zero", base_P * 0, tau_MP * 0
    yield "negative", -base_P.abs(), -base_P.abs() - tau_MP.abs()
    yield "tiny", base_P * 1e-10, tuned_MP * 1e-10
    yield "huge", base_P * 1e10, tuned_MP * 1e10
    yield "unlike", base_P, base_P + tau_MP * torch.logspace(-10, 10, models)[:, None, None]
    yield "rank-one", base_P, base_P + tau_MP[:, :, :1] * tau_MP[:, :1]


def _called(method: Merge, base_P: Tensor, tuned_MP: Tensor, where: str) -> Tensor:
    try:
        return method(base_P, tuned_MP, "a tensor")
    except RunError as error:  # what leaves the range is found where results are rounded
        raise AssertionError(
            f"The contract of a merge is broken ({where}): a merged value is not finite, or out of "
            "the range of models like these."
        ) from error


def _check_merged(method: Merge, base_P: Tensor, tuned_MP: Tensor, where: str) -> None:
    given = base_P.clone(), tuned_MP.clone()
    merged_P = _called(method, base_P, tuned_MP, where)
    same = torch.equal(base_P, given[0]) and torch.equal(tuned_MP, given[1])
    _merges(same, where, "it changes the models it was given")
    again_P = method(base_P, tuned_MP, "a tensor")
    _merges(torch.equal(merged_P, again_P), where, "it is not repeatable")
    if not method.draws:
        other_P = method(base_P, tuned_MP, "another")
        _merges(torch.equal(merged_P, other_P), where, "the name matters, but it does not draw")
    if not method.needs_base:
        alone_P = method(None, tuned_MP, "a tensor")
        _merges(torch.equal(merged_P, alone_P), where, "the base matters, but it needs none")
    # What rounding may move: of elements a unit, of singular vectors what a solver finds.
    unit = float((tuned_MP - base_P).norm()) + float(base_P.norm()) * 1e-3
    if bool((tuned_MP == base_P).all()):
        far = float((merged_P - base_P).abs().max())
        least = 4 * torch.finfo(base_P.dtype).eps * float(base_P.abs().max())
        _merges(far <= least, where, f"nobody changed, but it leaves the base, by {far:.3g}")
    weights = getattr(method, "weights", ())
    if method.order_free and len(set(weights)) < 2:
        models = len(tuned_MP)
        orders = list(range(models))[::-1], [*range(1, models), 0]
        for order in orders:
            other_P = method(base_P, tuned_MP[order], "a tensor")
            if method.reach == "elements":
                free = torch.equal(other_P, merged_P)
            else:
                free = float((other_P - merged_P).norm()) <= 1e-3 * unit
            _merges(free, where, "the order of the models matters, but it says order_free")


def _check_counts(method: Merge, name: str, seed: int) -> None:
    base_P, tuned_MP = _tuned(method, (6, 5), seed)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        base, tuned = base_P.to(dtype), tuned_MP.to(dtype)
        merged_P = _called(method, base, tuned, name)
        _merges(merged_P.dtype == dtype, name, f"{dtype} models give {merged_P.dtype}")
        _merges(merged_P.shape == base.shape, name, f"the shape became {tuple(merged_P.shape)}")
        wide_P = _called(method, base.double(), tuned.double(), name)
        gap = float((merged_P.double() - wide_P).norm())
        near = gap <= max(torch.finfo(dtype).eps, 1e-6) * float(wide_P.norm()) * 2
        _merges(near, name, f"{dtype} models are {gap:.3g} off the merge of the same in float64")
    for shape in ((0, 4), (), (1,)):
        base, tuned = _tuned(method, shape, seed)
        merged_P = method(base, tuned)
        fits = merged_P.shape == shape and bool(merged_P.isfinite().all())
        _merges(
            fits, name, f"a tensor of shape {shape} is not merged to finite values of its shape"
        )
    for count in (method.least - 1, *([] if method.most is None else [method.most + 1])):
        try:
            method(base_P, tuned_MP[:1].expand(count, *base_P.shape))
        except UsageError:
            continue
        _merges(False, name, f"{count} models are taken, against its least and most")


def _check_mixture(method: Merge, name: str, seed: int) -> None:
    base_P, tuned_MP = (x.double().flatten(x.dim() - 1) for x in _tuned(method, (200,), seed))
    at = Place("a tensor", 0, tuple(base_P.shape), alone=True)
    state = _surveyed(method, [(base_P, tuned_MP, at)], len(tuned_MP), name)
    mixture = method.mixture(len(tuned_MP), state)
    if mixture is None:
        return
    factors_M = torch.tensor(mixture.tuned, dtype=torch.float64)
    mixed_P = (factors_M @ tuned_MP + mixture.base * base_P) / mixture.over
    if mixture.scale is not None:
        mixed_P = base_P + mixture.scale * mixed_P
    piece_P = method.piece(base_P, tuned_MP, at, state)
    near = torch.allclose(mixed_P, piece_P, rtol=1e-12, atol=1e-12)
    _merges(near, name, "its mixture gives something else than its piece")


Piece = tuple[Tensor, Tensor, Place]


def _check_pieces(method: Merge, name: str, seed: int) -> None:
    """Check that neither cuts, nor samples, nor the order of tensors matter, to the last bit."""
    if method.reach != "elements":
        return
    shapes = [(2 * GRAIN + 77,), (), (7, 3), (GRAIN,)]
    tensors = {str(s): _tuned(method, s, seed + k) for k, s in enumerate(shapes)}
    base_P, tuned_MP = tensors["(7, 3)"]
    tensors["(7, 3)"] = base_P, base_P.expand_as(tuned_MP).clone()
    whole = _streamed(method, tensors, (3,), name)
    for cuts in ((1,), (2, 1)):
        pieces = _streamed(method, tensors, cuts, name)
        same = all(torch.equal(pieces[n], whole[n]) for n in tensors)
        _merges(same, name, f"pieces of {cuts} grains give something else than the whole")
    thin = _streamed(method, tensors, (1,), name, thin=True)
    same = all(torch.equal(thin[n], whole[n]) for n in tensors)
    _merges(same, name, "what it finds depends on the sample that it looks at first")
    back = _streamed(method, dict(reversed(tensors.items())), (1,), name)
    same = all(torch.equal(back[n], whole[n]) for n in tensors)
    _merges(same, name, "the order of the tensors matters")
    first = next(iter(tensors))
    alone = _streamed(method, {first: tensors[first]}, (1,), name)[first]
    same = torch.equal(method(*tensors[first], first), alone.to(torch.float32))
    _merges(same, name, "calling it gives something else than pieces do")


def _check_spoiled(method: Merge, name: str, seed: int) -> None:
    """Check that what is not finite in one model shows in the result: the engine looks for it
    there, unless the method surveys the models first."""
    if method.reach != "elements" or isinstance(method, Surveyor):
        return
    base_P, tuned_MP = _tuned(method, (200,), seed)
    for value in (math.nan, math.inf, -math.inf):
        for row in range(len(tuned_MP) + method.needs_base):
            base, tuned = base_P.clone(), tuned_MP.clone()
            (base if row == len(tuned) else tuned[row])[:] = value
            merged_P = method.piece(base, tuned, Place("a tensor", 0, (200,)), {})
            said = f"a model full of {value} leaves finite values in what it merges"
            _merges(not bool(merged_P.isfinite().any()), name, said)


def _streamed(
    method: Merge,
    tensors: dict[str, Tuned],
    cuts: tuple[int, ...],
    where: str,
    thin: bool = False,
) -> dict[str, Tensor]:
    """Return every tensor merged, given to the method in pieces of so many grains, as from files.

    cuts: sizes of the pieces in grains, in turn. thin: looks get no more than they ask for.
    """

    def pieces(name: str) -> Iterator[Piece]:
        base_P, tuned_MP = (x.to(method.dtype) for x in tensors[name])
        shape = tuple(base_P.shape)
        base_P, tuned_MP = base_P.reshape(-1), tuned_MP.reshape(len(tuned_MP), -1)
        start = 0
        for cut in cycle(cuts):
            piece = slice(start, start + cut * GRAIN)
            yield base_P[piece], tuned_MP[:, piece], Place(name, start, shape)
            start = piece.stop
            if start >= base_P.numel():
                return

    models = _count(method)
    over_model = isinstance(method, Surveyor) and method.over == "model"
    every = [piece for name in tensors for piece in pieces(name)] if over_model else []
    joint = _surveyed(method, every, models, where, thin)
    merged = {}
    for name, (base_P, _) in tensors.items():
        own = list(pieces(name))
        state = joint if over_model else _surveyed(method, own, models, where, thin)
        before = {key: value.clone() for key, value in state.items()}
        parts = [method.piece(*piece, state) for piece in own]
        _merges(_same(state, before), where, "piece changes the state it was given")
        kept = all(part.dtype in (method.dtype, torch.float64) for part in parts)
        _merges(kept, where, "piece returns neither the precision of what came nor float64")
        merged[name] = torch.cat(parts).reshape(base_P.shape)
    return merged


MOST_PASSES = 100
"""Passes over everything that a survey may take before it counts as one that never settles."""


def _surveyed(
    method: Merge, pieces: Sequence[Piece], models: int, where: str, thin: bool = False
) -> dict[str, Tensor]:
    """Return what a method learns from the pieces, in as many passes as it wants."""
    if not isinstance(method, Surveyor) or not pieces:
        return {}
    state = method.begin(models, pieces[0][0].dtype)
    for _ in range(MOST_PASSES):
        if method.settled(state):
            return state
        sums = method.blank(state)
        # A tensor that comes in one piece is never thinned: it is all there is to see.
        step = method.sample(state) if thin and (len(pieces) > 1 or method.over == "model") else 1
        before = {key: value.clone() for key, value in state.items()}
        for base_P, tuned_MP, at in pieces:
            count = tuned_MP.shape[1]
            part = -(-count // step)
            seen = dataclasses.replace(at, stands_for=count if step > 1 else 0)
            method.look(base_P[:part], tuned_MP[:, :part], seen, state, sums)
        _merges(_same(state, before), where, "look changes the state it was given")
        state = method.settle(state, sums)
    raise AssertionError(
        f"The contract of a merge is broken ({where}): its survey is not settled after "
        f"{MOST_PASSES} passes."
    )


def _merges(holds: bool, where: str, otherwise: str) -> None:
    _hold(holds, where, otherwise, "a merge")
