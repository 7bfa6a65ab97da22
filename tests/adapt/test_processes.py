"""DistributedDataParallel over two processes is one process with the whole batch.

This file is also the program of each process.
"""

import json

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

INDEX_B = torch.tensor([0, 2, -1, 1, 1, 1])
"""The second process has no row of the first task."""


def made():
    from polytask.adapt import SSF, At, LoRA, adapt

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    adapted = adapt(model, [At(LoRA(2), "0"), At(SSF(), "2")], ("a", "b", "c"))
    for p in adapted.parts.parameters():
        p.data += 0.2
    return adapted


def steps(adapted, module, rows: slice) -> list[float]:
    optimiser = torch.optim.AdamW(adapted.trainable_parameters(), lr=1e-2)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimiser.zero_grad()
        with adapted.tasks(INDEX_B[rows]):
            module(x[rows]).square().mean().backward()
        optimiser.step()
    return [float(p.detach().double().sum()) for p in adapted.parts.parameters()]


def test_two_processes_are_one(run_pair):
    adapted = made()
    alone = steps(adapted, adapted, slice(0, 6))
    for apart in run_pair(__file__):
        assert torch.allclose(torch.tensor(apart), torch.tensor(alone), atol=1e-5)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    adapted = made()
    rank = dist.get_rank()
    module = DistributedDataParallel(adapted)
    print(json.dumps(steps(adapted, module, slice(3 * rank, 3 * rank + 3))))
    dist.destroy_process_group()
