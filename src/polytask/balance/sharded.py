"""Shared parameters of which each process holds a part: FSDP2's `fully_shard`, as DTensors.

A backward pass of one task leaves, in each process, its part of that task's gradient, summed over
the processes already. So rows are parts of rows, their products add up over processes, and the
update is the weighted sum of the parts: nothing whole is ever formed. Methods that need the rows
themselves get them whole, in every process.

Shapes: K = tasks present, P = shared parameters, L = the numbers of them that this process holds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from polytask.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether the tensor is a DTensor."""
    # Loading that module takes a third of a second, and nobody has a DTensor before it is loaded.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of the tensor: all of it where it is no DTensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def check_shards(shared: Sequence[Tensor], processes: int) -> bool:
    """Return whether any parameter is sharded; raise where one is in a way that is not FSDP's."""
    found = [parameter for parameter in shared if is_sharded(parameter)]
    for parameter in found:
        placed = parameter.placements
        usual = placed[-1].is_shard() and all(p.is_replicate() for p in placed[:-1])
        if not usual or len(placed) > 2:
            raise UsageError(
                f"Balancer: a shared parameter is placed as {placed}; expected FSDP's (Shard,), or "
                "(Replicate, Shard) of hybrid sharding. Tensor parallelism is not supported."
            )
        if parameter.device_mesh.size() != processes:
            raise UsageError(
                f"Balancer: a shared parameter lies on a mesh of {parameter.device_mesh.size()} "
                f"processes, the balancer's group has {processes}; give Balancer(..., "
                "process_group=...) the mesh's processes."
            )
    return bool(found)


def sum_not_mean(model: nn.Module) -> None:
    """Make every FSDP module in `model` sum gradients over the processes, as the losses ask for.

    Their own rule is to average. Call it once, after `fully_shard`.
    Raises UsageError where the model has none.
    """
    from torch.distributed.fsdp import FSDPModule

    found = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not found:
        raise UsageError("sum_not_mean: the model has no FSDP module; call fully_shard(...) first.")
    for module in found:
        module.set_gradient_divide_factor(1.0)
        # gloo knows no other reduction, and scaling by 1 is nothing elsewhere.
        module.set_force_sum_reduction_for_comms(True)


def refuse_mean(losses: Sequence[Tensor]) -> None:
    """Raise UsageError where the losses' graph shows an FSDP module that averages gradients."""
    stack: list[Node | None] = [loss.grad_fn for loss in losses]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [child for child, _ in node.next_functions]
        group = getattr(node, "param_group", None)  # of the node that starts FSDP's reduction
        if group is None or not hasattr(group, "gradient_divide_factor"):
            continue
        if group.gradient_divide_factor != 1.0:
            raise UsageError(
                "Balancer: an FSDP module averages its gradients over the processes; the losses "
                "are shares of the whole batch's, so they have to be summed. Call "
                "sum_not_mean(model) once, after fully_shard."
            )
        if not group.reduce_grads:
            raise UsageError(
                "Balancer: an FSDP module has set_requires_gradient_sync(False), so its parameters "
                "get no gradient; leave it on. For micro-batches give backward(accumulate=True)."
            )


def pieces(shared: Sequence[Tensor], whole: bool = False) -> Iterator[tuple[int, Tensor, slice]]:
    """Yield each parameter's position, itself and its columns: of the parts here, or whole."""
    start = 0
    for i, parameter in enumerate(shared):
        stop = start + (parameter if whole else local(parameter)).numel()
        yield i, parameter, slice(start, stop)
        start = stop


def copies(parameter: Tensor, processes: int) -> int:
    """Return how many processes hold the same part of the parameter."""
    if not is_sharded(parameter):
        return processes
    mesh = parameter.device_mesh
    return math.prod(
        mesh.size(d) for d, placed in enumerate(parameter.placements) if placed.is_replicate()
    )


def whole_rows(rows_KL: Tensor, shared: Sequence[Tensor]) -> Tensor:
    """Return the rows of all the shared parameters, (K, P), the same in every process."""
    from torch.distributed.tensor import DTensor, Shard

    parts_KP = []
    for _, parameter, at in pieces(shared):
        part_KL = rows_KL[:, at]
        if is_sharded(parameter):
            tasks, shape = len(part_KL), parameter.shape
            placed = [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in parameter.placements]
            part = DTensor.from_local(
                part_KL.reshape(tasks, *parameter.to_local().shape),
                parameter.device_mesh,
                placed,
                run_check=False,
                shape=torch.Size((tasks, *shape)),
                stride=(parameter.numel(), *torch.empty(shape, device="meta").stride()),
            )
            part_KL = part.full_tensor().flatten(1)
        parts_KP.append(part_KL)
    return torch.cat(parts_KP, dim=1)


def part_of(direction_P: Tensor, shared: Sequence[Tensor]) -> Tensor:
    """Return this process's part of a direction that every process holds whole."""
    from torch.distributed.tensor import DTensor, Replicate

    parts_L = []
    for _, parameter, at in pieces(shared, whole=True):
        part = direction_P[at]
        if is_sharded(parameter):
            mesh = parameter.device_mesh
            everywhere = [Replicate()] * mesh.ndim
            whole = DTensor.from_local(
                part.view(parameter.shape), mesh, everywhere, run_check=False
            )
            part = whole.redistribute(placements=parameter.placements).to_local().flatten()
        parts_L.append(part)
    return torch.cat(parts_L)


def placed_like(part: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient for the parameter from this process's part of it."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
