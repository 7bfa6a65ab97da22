"""Merges: whole and in pieces, in every precision and order.

Shapes: M = tuned models, P = elements, G = elements of a grain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from polytask.errors import RunError, UsageError
from polytask.merge import Merge, Options, Place, Surveyor, prepare
from polytask.merge.base import GRAIN
from polytask.testing.parts import equal, hold


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
    base_P, tuned_MP = tensors[first]
    base = {first: base_P} if method.needs_base else None
    job = prepare(base, [{first: one_P} for one_P in tuned_MP], method, Options(chunk=GRAIN))
    same = torch.equal(job.tensors()[0][first], alone.to(torch.float32))
    said = "merged as models are, where what it says to the kernels counts, it gives something else"
    _merges(same, name, said)


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
        _merges(equal(state, before), where, "piece changes the state it was given")
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
        _merges(equal(state, before), where, "look changes the state it was given")
        state = method.settle(state, sums)
    raise AssertionError(
        f"The contract of a merge is broken ({where}): its survey is not settled after "
        f"{MOST_PASSES} passes."
    )


def _merges(holds: bool, where: str, otherwise: str) -> None:
    hold(holds, where, otherwise, "a merge")
