"""DistributedDataParallel in somebody else's loop: the loop wraps the model, nobody averages.

Its own averaging would run within the backward pass, once per task. So forward passes run as under
its `no_sync()`, every process hands in its share of the losses, and gradients are summed by
`sum_gradients` after an update's last backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polytask.balance.engine import Balancer
from polytask.balance.world import World
from polytask.balance.wrapped import sum_gradients
from polytask.balance.wrapper import Wrapper, label
from polytask.errors import UsageError


def wrapper_of(
    model: nn.Module, bare: nn.Module, balancer: Balancer, who: str, advice: str
) -> DistributedDataParallel | None:
    """Return the wrapper around `bare` by which the loop calls it; None where it calls `bare`.

    model: what the loop calls. who: the hook, advice: what to tell its loop, for the error.
    Raises UsageError for any other wrapper, for several processes without one, and for what a
    DistributedDataParallel was told that its own averaging alone can do.
    """
    processes = World().size
    wrapper = model if isinstance(model, DistributedDataParallel) else None
    if wrapper is None and model is not bare:
        raise UsageError(
            f"{who} works on a bare module or with DistributedDataParallel; the module is wrapped "
            f"in {type(model).__name__}. {advice}"
        )
    if wrapper is None and processes > 1:
        raise UsageError(
            f"{who} works over several processes with DistributedDataParallel; this run has "
            f"{processes} processes, and the module is not wrapped in it. {advice}"
        )
    if balancer.processes != processes:
        raise UsageError(
            f"{who}: the balancer's process group has {balancer.processes} processes, the loop "
            f"has {processes}; leave out Balancer(..., process_group=...)."
        )
    if wrapper is not None:
        _check(wrapper, balancer, who)
    return wrapper


def _check(wrapper: DistributedDataParallel, balancer: Balancer, who: str) -> None:
    told = {
        "a communication hook": bool(wrapper._comm_hooks),
        "static_graph=True": wrapper.static_graph,
        "mixed_precision=...": wrapper.mixed_precision is not None,
    }
    for what, given in told.items():
        if given:
            raise UsageError(
                f"{who} sums gradients itself, after they are balanced, so {what} of "
                "DistributedDataParallel would do nothing; leave it out."
            )
    compares = isinstance(balancer.method, Wrapper) or balancer.method.needs != "losses"
    if compares and any(isinstance(module, nn.SyncBatchNorm) for module in wrapper.modules()):
        raise UsageError(
            f"{who}: SyncBatchNorm exchanges messages in every backward pass, of which "
            f"{label(balancer.method)} may run other numbers in other processes; leave the model "
            "with BatchNorm, or take a method that needs losses alone."
        )


@contextlib.contextmanager
def unaveraged(wrapper: DistributedDataParallel | None) -> Iterator[None]:
    """Return a context for forward passes whose gradients the wrapper leaves as they are."""
    if wrapper is None:
        yield
        return
    try:
        with wrapper.no_sync():
            yield
    finally:
        # Buffers are spread by the forward pass after a synchronised one, which this stands for.
        wrapper.require_forward_param_sync = True


def sum_over(bare: nn.Module, balancer: Balancer) -> None:
    """Sum the gradients of the model and of the method over the processes, after an update."""
    sum_gradients(dict.fromkeys((*bare.parameters(), *balancer.parameters())))
