"""TaskExpert: at several layers, experts' features mixed per task, with a memory as one more.

Source: Ye & Xu, "TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial
    Mixture-of-Experts", ICCV 2023, https://arxiv.org/abs/2307.15324
Differs from the source: the abstract alone was read. It says that experts decompose the features
    of a layer into generic ones, that a dynamic gate per task mixes them, and that a memory per
    task is read as one more expert, updated at each layer and used for the prediction; the
    equations below were worked out from that. Layers are the scales the encoder names, and the
    memory is brought to the size of each. Experts read a position each.
Shapes: B = rows of the batch, L = layers, C, H, W = channels, height and width of a layer,
    R = B * H * W positions, A = asked tasks, E = experts, M = width of experts and memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.between import Seen
from polytask.share.experts import Experts, Stacked, product, run, stack
from polytask.share.mixture import mixed
from polytask.share.pictures import PictureModel
from polytask.share.staged import (
    Channels,
    Decoder,
    Stage,
    picture,
    positions,
    resized,
    side_by_side,
    staged,
)
from polytask.tasks import TaskSet


class TaskExpert(Decoder):
    """h_t = sum_e g_te f_e(F_l) + g_tm m_t, then m_t <- m_t + U_tl h_t, over the layers l.

    F_l are the encoder's features at layer l, f_e its experts, shared by all tasks, and
    (g_t1, ..., g_tE, g_tm) = softmax(G_tl F_l + H_tl m_t) at every position. The memory m_t begins
    as a trained vector, the same everywhere; at the end a linear map of it is what the task has.

    tasks: their names. at: positions of the layers among the encoder's stages. channels: of these
    stages, before and after. experts: of each layer. memory: M.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        at: Sequence[int],
        channels: Channels,
        *,
        experts: int = 4,
        memory: int = 32,
    ) -> None:
        super().__init__(at, channels)
        if not tasks or memory < 1:
            raise UsageError(
                f"TaskExpert: give at least one task and a memory of at least 1; got {len(tasks)} "
                f"tasks and memory {memory}."
            )
        self._memory, self._number = memory, experts
        self.experts = nn.ModuleList(Experts(experts, c, (memory,)) for _, c in channels)
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in channels)
        self.ends = nn.ModuleDict()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module, width: int, tasks: TaskSet, *, experts: int = 4, memory: int = 32
    ) -> PictureModel:
        """Return the model on an encoder of pictures that shows its stages.

        experts: of each layer. memory: width of the experts and of the tasks' memories.
        """
        told = staged(encoder, "TaskExpert")
        channels = tuple(told.stage_channels[at] for at in told.scales)
        trunk = TaskExpert(tasks.names, told.scales, channels, experts=experts, memory=memory)
        return PictureModel.build(encoder, trunk, tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        ends = (end for end in self.ends.values() if isinstance(end, End))
        return tuple(end.task for end in ends)

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked = side_by_side("end", [self.ends[key(task)] for task in tasks])
        for at, (experts, of_tasks) in enumerate(self._levels()):
            stacked |= stack(f"experts_{at}", [experts])
            stacked |= side_by_side(f"layer_{at}", [of_tasks[key(task)] for task in tasks])
        return stacked

    @staticmethod
    def mix(stacked: Stacked, stages: Sequence[Stage], seen: Seen | None = None) -> Tensor:
        memory_ARM, before = stacked["end_first"], None
        for at, (_, features) in enumerate(stages):
            rows_RC = positions(features)
            if before is None:
                memory_ARM = memory_ARM.expand(-1, rows_RC.shape[0], -1)
            else:
                resized_ = positions(resized(picture(memory_ARM, before), features))
                memory_ARM = resized_.view(memory_ARM.shape[0], -1, memory_ARM.shape[2])
            before = features
            parts = {n: stacked[f"layer_{at}_{n}"] for n in ("gate", "recall", "write")}
            logits_ARE = product(rows_RC, parts["gate"])
            logits_ARE = torch.baddbmm(logits_ARE, memory_ARM, parts["recall"])
            weights_ARE = logits_ARE.softmax(-1)
            if seen is not None:
                seen[f"weights_{at}"] = weights_ARE.transpose(0, 1)
            experts_ERM = run(stacked, f"experts_{at}", rows_RC)
            given_ARM = mixed(weights_ARE[..., :-1].transpose(0, 1), experts_ERM)
            given_ARM = torch.addcmul(given_ARM, weights_ARE[..., -1:], memory_ARM)
            memory_ARM = torch.baddbmm(memory_ARM, given_ARM, parts["write"])
        return product(memory_ARM, stacked["end_weight"], stacked["end_bias"])

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return each layer's gates as a level, positions as rows; the memory is the task's own."""
        found = []
        names = (*(f"expert {e}" for e in range(self._number)), "memory")
        for at in range(len(self.layers)):
            for a, task in enumerate(tasks):
                owners = (*(None,) * self._number, task)
                weights_R1E = seen[f"weights_{at}"][:, a : a + 1]
                found.append(Gate(at, (task,), names, owners, weights_R1E))
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters."""
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's gates and of its memory."""
        layers = [p for _, of in self._levels() for p in of[key(task)].parameters()]
        return [*layers, *self.ends[key(task)].parameters()]

    def add_task(self, task: str) -> None:
        for (experts, of_tasks), (_, channels) in zip(self._levels(), self.channels, strict=True):
            of_tasks[key(task)] = Layer(channels, experts.number, self._memory)
        self.ends[key(task)] = End(task, self._memory, self.channels[-1][1])

    def _levels(self) -> Iterator[tuple[Experts, nn.ModuleDict]]:
        for experts, of_tasks in zip(self.experts, self.layers, strict=True):
            assert isinstance(experts, Experts)
            assert isinstance(of_tasks, nn.ModuleDict)
            yield experts, of_tasks


class Layer(nn.Module):
    """The parameters of one task at one layer: G, H and U."""

    def __init__(self, channels: int, experts: int, memory: int) -> None:
        super().__init__()
        self.gate = _uniform(channels, experts + 1)
        self.recall = _uniform(memory, experts + 1)
        self.write = _uniform(memory, memory)


class End(nn.Module):
    """The parameters of one task at the ends: what its memory begins as, and the last map."""

    def __init__(self, task: str, memory: int, channels: int) -> None:
        super().__init__()
        self.task = task
        self.first = nn.Parameter(torch.empty(1, memory).uniform_(-1, 1) / math.sqrt(memory))
        self.weight = _uniform(memory, channels)
        self.bias = nn.Parameter(torch.zeros(channels))


def _uniform(inputs: int, outputs: int) -> nn.Parameter:
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
