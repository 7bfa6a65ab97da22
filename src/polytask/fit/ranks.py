"""Several processes, as `torchrun` starts them: the same update as one process on the same batch.

Every process draws the same global batch and takes its own rows of it. A loss is the local sum
over the global count of labels, so gradients add up over processes; they are summed, not averaged.
What random numbers the processes draw themselves (dropout) differs from one to the next.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.errors import UsageError


def start(device: str) -> None:
    """Join the other processes where `torchrun` has set the environment; otherwise do nothing."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    # Before the group is there: the defaults of its functions hold the group of the moment it is
    # loaded (the first optimiser loads it), and a group held to the end aborts the process at exit.
    import torch.distributed.nn

    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # what "cuda" means from here on
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")


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


def agree(answer: bool) -> bool:
    """Return the first process's answer, in every process."""
    if world() == 1:
        return answer
    told = torch.tensor(answer, dtype=torch.uint8, device=_device())
    dist.broadcast(told, 0)
    return bool(told)


def gather(mine: Tensor) -> list[Tensor]:
    """Return every process's tensor, all of one shape, on the CPU and in order."""
    if world() == 1:
        return [mine.cpu()]
    mine = mine.to(_device())
    theirs = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(theirs, mine)
    return [tensor.cpu() for tensor in theirs]


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


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
