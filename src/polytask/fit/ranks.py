"""Several processes, as `torchrun` starts them: the same update as one process on the same batch.

Every process draws the same global batch and takes its own rows of it. A loss is the local sum
over the global count of labels, so gradients add up over processes; they are summed, not averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.errors import UsageError


def start(device: str) -> None:
    """Join the other processes where `torchrun` has set the environment; otherwise do nothing."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


def stop() -> None:
    """Leave the group that `start` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(rows_B: Tensor) -> Tensor:
    """Return this process's rows of the global batch; may be empty for a short last batch."""
    return rows_B[rank() :: world()] if world() > 1 else rows_B


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum .grad over processes, in one message. A gradient absent here counts as zero."""
    if world() == 1:
        return
    params = list(parameters)
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    dist.all_reduce(flat)
    at = 0
    for p in params:
        assert p.grad is not None
        p.grad.copy_(flat[at : at + p.numel()].view_as(p))
        at += p.numel()


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be equal over processes: statistics of a batch that each sees in part."""
    if world() == 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(
            module, nn.SyncBatchNorm
        ):
            raise UsageError(
                f"Layer {name!r} normalises over the batch, and each of the {world()} processes "
                "sees only its part. Use GroupNorm or LayerNorm, convert with "
                "nn.SyncBatchNorm.convert_sync_batchnorm, or run one process."
            )
