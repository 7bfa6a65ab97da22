"""Gradients over several processes: summed by the loop, once, and averaged by nobody.

Shapes: K = gradients that are compared, M = numbers that tell one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from polytask.balance.sharded import is_sharded
from polytask.errors import UsageError


def sum_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Sum .grad over the processes, in one message; do nothing where there is only one.

    parameters: all that are trained, in the same order in every process; also a balance method's
        own. Those that FSDP sharded are left out: it has summed them.
    group: the processes; None: all.

    A gradient absent everywhere stays absent: the optimiser must pass by the head of a task
    without labels. One that is absent here alone counts as zero.
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size(group) == 1:
        return
    params = [p for p in parameters if p.requires_grad and not is_sharded(p)]
    if not params:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    given = torch.tensor([float(p.grad is not None) for p in params], device=params[0].device)
    flat = torch.cat([given, *(grad.flatten() for grad in grads)])
    dist.all_reduce(flat, group=group)
    counts, *summed = torch.split(flat, [len(params), *(p.numel() for p in params)])
    for p, grad, count in zip(params, summed, counts.tolist(), strict=True):
        p.grad = grad.view_as(p).to(p.dtype) if count else None


class Watch:
    """Sees whether DistributedDataParallel averages gradients where the balancer runs backward.

    looked: whether a block has been watched.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.looked = False

    @contextlib.contextmanager
    def over(self, marks: Callable[[], Tensor]) -> Iterator[None]:
        """Watch the backward passes of the block; every process enters as often as the others.

        marks: (K, M), M numbers that tell each of this process's K gradients, after the block.
        Raises UsageError, in every process, where a wrapper has averaged one: the passes exchanged
        messages, and left the same gradient, other than zero, of different rows everywhere. The
        first block tells; later ones are not compared.
        """
        before = self._messages()
        yield
        if self.looked:
            return
        self.looked = True
        mine_KM = marks().double()
        if self._messages() == before:  # a process says that it has nothing to compare by zeros
            mine_KM = torch.zeros_like(mine_KM)
        theirs = [torch.empty_like(mine_KM) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(theirs, mine_KM, group=self._group)
        same_K = torch.stack([theirs[0].eq(other).all(1) for other in theirs]).all(0)
        if bool((same_K & theirs[0].any(1)).any()):
            raise UsageError(_ADVICE)

    def _messages(self) -> int:
        """Return how many collective operations this process has taken part in."""
        groups = {group for group in (dist.group.WORLD, self._group) if group is not None}
        # Its setter is in torch's annotations, the getter is not.
        return sum(group._get_sequence_number_for_group() for group in groups)  # type: ignore[attr-defined]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a wrapper cannot be passed backward once per task."""
    try:
        yield
    except RuntimeError as error:
        for said, advice in _TWICE.items():
            if said in str(error):
                raise UsageError(advice) from error
        raise


_ADVICE = (
    "Balancer: DistributedDataParallel averaged the gradients within the backward pass, before "
    "they could be balanced. Run the forward pass under `with model.no_sync():`, and call "
    "sum_gradients(parameters) after balancer.backward(...)."
)

_TWICE = {
    "mark a variable ready only once": _ADVICE,
    "Expected to have finished reduction in the prior iteration": (
        "Balancer: DistributedDataParallel was to average gradients in the backward pass, and the "
        "losses are computed again before. Run every forward pass under `with model.no_sync():`, "
        "that of again(...) too, and call sum_gradients(parameters) after balancer.backward(...)."
    ),
    "donated_buffer=False": (
        "Balancer: the compiled model lets go in a backward pass of what the next task's needs, "
        "since its first one was for a single loss. Set torch._functorch.config.donated_buffer = "
        "False before the first forward pass, or compile the model anew."
    ),
}
"""What torch says of a second backward pass over one forward pass, or a second forward pass before
any: DistributedDataParallel, and torch.compile."""
