"""What a run costs in memory, counted and not sampled, so that it is the same on every machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.balance import Balancer


class Memory:
    """Counts the bytes an update needs.

    On CUDA: the device's own high-water mark. Elsewhere the sum of what an update holds at once:
    parameters, gradients, optimiser state, what autograd keeps for the backward pass, and the
    tasks' gradients where the balance holds them. The process's own size would say less: it
    depends on what the process did before, and on when the allocator gives memory back.
    """

    def __init__(self, device: str) -> None:
        self._device = device if device.startswith("cuda") else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._kept: dict[int, int] = {}

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Count what autograd keeps for the backward pass of the update made inside."""
        if self._device is not None:
            yield
            return
        self._kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()  # views of one storage count once
        return tensor

    def bytes(self, model: nn.Module, optimiser: Optimizer, balancer: Balancer) -> int:
        """Return the bytes one update needs; call it after the watched one."""
        if self._device is not None:
            return torch.cuda.max_memory_allocated(self._device)
        weights = [*model.parameters(), *model.buffers(), *balancer.parameters()]
        own = {w.untyped_storage().data_ptr() for w in weights}
        state = [
            entry
            for entries in optimiser.state.values()
            for entry in entries.values()
            if isinstance(entry, Tensor)
        ]
        gradients = [w for w in weights if w.requires_grad]
        activations = sum(size for at, size in self._kept.items() if at not in own)
        return sum(map(_bytes, [*weights, *gradients, *state])) + balancer.held_bytes + activations


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
