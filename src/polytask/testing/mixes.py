"""Mixes: shares that sum to 1, states that go in and out.

Shapes: S = streams.
"""

from __future__ import annotations

import dataclasses

import torch

from polytask.balance import State
from polytask.mix import Mix, Now, Optimised, StreamOptimiser, Streams
from polytask.mix import Observer as MixObserver
from polytask.testing.parts import equal, hold, layout


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
    _mixes(equal(state, mix.start(streams)), name, "a second start is another")
    if mix.observes:
        _mixes(isinstance(mix, MixObserver), name, "it says observes and has no observe")
        state = _check_looks(mix, streams, state, steps)
    if isinstance(mix, Optimised):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(2))]}]
        own = mix.optimiser_for(groups, streams, lr=0.1, weight_decay=0.0)
        fits = own is None or isinstance(own, StreamOptimiser)
        _mixes(fits, name, f"its optimiser is a {type(own).__name__}, no StreamOptimiser")
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
        _mixes(equal(state, before), where, "it changed the state it was given")
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
        _mixes(equal(state, before), where, "observe changed the state it was given")
        _mixes(layout(after) == layout(state), where, "observe changed the state's layout")
        again = mix.observe(losses_S, streams, Now(step, steps), state)
        _mixes(equal(after, again), where, "observe is not repeatable")
        state = after
    return state


def _mixes(holds: bool, where: str, otherwise: str) -> None:
    hold(holds, where, otherwise, "a mix")
