"""What a Balancer cannot do, said before anything is computed: what came, and what to do instead.

Every function returns nothing, or raises UsageError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from polytask.balance.base import Balance
from polytask.balance.exact import GramianBy
from polytask.balance.wrapper import Wrapper, label, plain, wrappers
from polytask.errors import UsageError

NonFinite = Literal["stop", "skip"]


def check_method(method: Balance | Wrapper) -> None:
    """Refuse what is no method of this room."""
    if not isinstance(method, (Balance, Wrapper)):
        raise UsageError(
            f"Balancer: {label(method)} is no balance method; it lacks one of needs, foresees, "
            "by_epoch, start and __call__ (see polytask.balance.Balance)."
        )


def check_settings(
    method: Balance | Wrapper,
    shared: Sequence[object],
    steps_per_epoch: int | None,
    gramian: GramianBy,
    nonfinite: NonFinite,
) -> None:
    """Refuse settings that do not exist, or that the method cannot work with."""
    name = label(method)
    if any(m.by_epoch for _, m in plain(method)) and steps_per_epoch is None:
        raise UsageError(f"{name} compares epochs; give Balancer(..., steps_per_epoch=N).")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise UsageError(f"Balancer: steps_per_epoch is {steps_per_epoch}; give at least 1.")
    if not shared and (isinstance(method, Wrapper) or method.needs != "losses"):
        raise UsageError(f"{name} balances shared parameters; Balancer was given none.")
    if gramian not in get_args(GramianBy):
        raise UsageError(f"Balancer: gramian is {gramian!r}; give 'auto' or 'rows'.")
    if nonfinite not in get_args(NonFinite):
        raise UsageError(f"Balancer: nonfinite is {nonfinite!r}; give 'stop' or 'skip'.")


def check_parts(method: Balance) -> None:
    """Refuse micro-batches where a method of the losses cannot weigh them as they come."""
    if method.needs == "losses" and not method.foresees:
        raise UsageError(
            f"{label(method)} weighs by the whole step's losses, so it cannot "
            "weigh a part of them: accumulate=True does not work with it. Take a smaller "
            "batch without accumulation, or a method with foresees = True."
        )


def check_processes(method: Balance | Wrapper, processes: int, sharded: bool) -> None:
    """Refuse wrappers that do not span processes."""
    if sharded and isinstance(method, Wrapper):
        raise UsageError(
            f"{label(method)} does not work with parameters that FSDP shards; use the "
            "method without the wrapper, or DistributedDataParallel."
        )
    if processes == 1:
        return
    for wrapper in wrappers(method):
        if not wrapper.spans_processes:
            raise UsageError(
                f"{type(wrapper).__name__} works in one process, not in "
                f"{processes}; use one, or the method without it."
            )


def check_again(method: Balance | Wrapper, given: object) -> None:
    """Refuse a method that looks again without the function to compute losses with."""
    if given is None and any(wrapper.looks_again for wrapper in wrappers(method)):
        raise UsageError(
            f"{label(method)} computes losses again; give balancer.backward(..., "
            "again=again), with again(rows, tasks) -> losses (see Balancer.backward)."
        )


def check_observed(method: Balance | Wrapper, waiting: bool) -> None:
    """Refuse an update before the losses after the last one were shown. waiting: they were not."""
    if waiting:
        raise UsageError(
            f"{label(method)} must see each batch's losses after the update too; "
            "compute them again after optimizer.step(), under torch.no_grad(), and give them "
            "to balancer.observe(losses)."
        )
