"""DTRN: every task reads a row's sequences and weighs its feature fields in its own way.

Source: Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task
    Recommendation", CIKM 2023, https://arxiv.org/abs/2308.05996
Differs from the source: worked out from the paper's abstract and a third party's summary in words
    (a hypernetwork that reads a task and a sequence gives the scales and shifts of a transformer's
    norms; then a squeeze-excitation per task over all fields). Everything that these leave open is
    ours: one linear hypernetwork, one attention head, norms after the sums, interests that are
    means over the sequence, a network per task on what is refined. Where a row has no sequences of
    behaviour, as in the suites here, all its fields are taken as the entries of one; `sequences`
    names those that are.
Shapes: R = rows, F = fields, d = width of a field, L = entries of a sequence, N = sequences, A =
    asked tasks, Q = width of what stands for a task or a sequence, W = width of a task's network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import Gate, check_width, key
from polytask.share.experts import Experts, Stacked, own, run, stack
from polytask.share.squeeze import Excitation, excited, fields_of, stack_excitations
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class DTRN(Trunk):
    """h_t = network_t of [fields, interests_t], each field times its excitation by the task.

    The interest of task t in sequence n is the mean of a transformer layer's outputs over the
    sequence's entries x: u = s1 norm(x + attention(x)) + b1, y = s2 norm(u + C2 relu(C1 u)) + b2.
    Attention and C are of all tasks; only (s1, b1, s2, b2), 4 d numbers, are of the task and the
    sequence: H [task_t, sequence_n] + h, a linear hypernetwork.

    tasks: their names. inputs: F d, the fields side by side. fields: F. sequences: of each, which
    fields are its entries; None: all fields are one. embedding: Q. reduction: of the squeeze.
    widths: of each task's network.
    """

    stands_on = "fields"

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        fields: int,
        sequences: Sequence[Sequence[int]] | None = None,
        embedding: int = 8,
        reduction: int = 2,
        widths: Sequence[int] = (64,),
    ) -> None:
        if not tasks or embedding < 1 or fields < 1 or inputs % fields:
            raise UsageError(
                "DTRN: give at least one task, an embedding of at least 1, and fields that part "
                f"the inputs; got {len(tasks)} tasks, embedding {embedding}, {inputs} inputs in "
                f"{fields} fields."
            )
        entries = [range(fields)] if sequences is None else sequences
        for entry in entries:
            if not len(entry) or not all(0 <= field < fields for field in entry):
                raise UsageError(
                    f"DTRN: a sequence names fields from 0 to {fields - 1}, at least one; got "
                    f"{list(entry)}."
                )
        super().__init__(inputs, widths[-1] if widths else 0)
        self.fields, self._widths, self._reduction = fields, tuple(widths), reduction
        self._entries = tuple(tuple(entry) for entry in entries)
        if not self._entries:
            raise UsageError("DTRN: give at least one sequence, or None for all fields as one.")
        width = inputs // fields
        self.attention = nn.Linear(width, 3 * width, bias=False)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.sequences = nn.Parameter(torch.randn(len(self._entries), embedding))
        self.hyper = nn.Linear(2 * embedding, 4 * width)
        with torch.no_grad():  # scales begin around 1 and shifts around 0
            scale = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(width)
            self.hyper.bias.copy_(scale)
        self._tasks: tuple[str, ...] = ()
        self.own, self.embeddings = nn.ModuleDict(), nn.ParameterDict()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        sequences: Sequence[Sequence[int]] | None = None,
        *,
        fields: int | None = None,
        embedding: int = 8,
        reduction: int = 2,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        sequences: of each, which fields are its entries; None: all fields are one. fields: into how
        many the features part; None: what the encoder tells as its `fields`. embedding: of a task
        and of a sequence. reduction: of the squeeze. widths: of each task's network. towers: of
        each task's layers after it.
        """
        check_width(encoder, width, "DTRN")
        trunk = DTRN(
            tasks.names,
            width,
            fields=fields_of(encoder, width, fields, "DTRN"),
            sequences=sequences,
            embedding=embedding,
            reduction=reduction,
            widths=widths,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked = {
            "attention": own(self.attention, "weight"),
            "first_weight": own(self.first, "weight"),
            "first_bias": own(self.first, "bias"),
            "second_weight": own(self.second, "weight"),
            "second_bias": own(self.second, "bias"),
        }
        # What the hypernetwork gives depends on no row: one task alone is its numbers.
        tasks_AQ = torch.stack([self.embeddings[key(task)] for task in tasks])
        both_AN2Q = torch.cat(
            [
                tasks_AQ[:, None].expand(-1, len(self.sequences), -1),
                self.sequences.expand(len(tasks), -1, -1),
            ],
            -1,
        )
        norms_ANX = functional.linear(both_AN2Q, own(self.hyper, "weight"), own(self.hyper, "bias"))
        device = self.sequences.device
        for n, entry in enumerate(self._entries):
            stacked[f"sequence{n}_norms"] = norms_ANX[:, n]
            stacked[f"sequence{n}_fields"] = torch.tensor(entry, device=device)
        parts = [_modules(self.own[key(task)]) for task in tasks]
        stacked |= stack_excitations("excitation", [_excitation(part) for part in parts])
        return stacked | stack("networks", [_network(part) for part in parts])

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        width = stacked["first_weight"].shape[0]
        fields_RFd = rows_RD.reshape(rows_RD.shape[0], -1, width)
        asked = len(stacked["sequence0_norms"])
        interests, n = [], 0
        while f"sequence{n}_norms" in stacked:  # of a row, a few
            entries_RLd = fields_RFd.index_select(1, stacked[f"sequence{n}_fields"])
            interests.append(_interest(stacked, entries_RLd, stacked[f"sequence{n}_norms"]))
            n += 1
        every_ARFd = torch.cat(
            [fields_RFd.expand(asked, -1, -1, -1), torch.stack(interests, 2)], dim=2
        )
        counts_ARF = excited(stacked, "excitation", every_ARFd)
        if seen is not None:
            seen["counts_ARF"] = counts_ARF
        return run(stacked, "networks", (every_ARFd * counts_ARF[..., None]).flatten(2))

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return each field's part of all that the task's excitation lets through."""
        names = [f"field {f}" for f in range(self.fields)]
        names += [f"interest {n}" for n in range(len(self._entries))]
        counts_RAF = seen["counts_ARF"].transpose(0, 1)
        weights_RAF = counts_RAF / counts_RAF.sum(-1, keepdim=True)
        return [Gate(0, tuple(tasks), tuple(names), (None,) * len(names), weights_RAF)]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the transformer's, the hypernetwork's and the sequences' parameters."""
        modules = (self.attention, self.first, self.second, self.hyper)
        return [self.sequences, *(p for module in modules for p in module.parameters())]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return what stands for the task, and the parameters of its excitation and network."""
        return [self.embeddings[key(task)], *self.own[key(task)].parameters()]

    def add_task(self, task: str) -> None:
        fields = self.fields + len(self._entries)
        inputs = fields * self.first.in_features
        self.embeddings[key(task)] = nn.Parameter(torch.randn(self.sequences.shape[1]))
        self.own[key(task)] = nn.ModuleDict(
            {
                "excitation": Excitation(fields, self._reduction),
                "network": Experts(1, inputs, self._widths),
            }
        )
        self._tasks = (*self._tasks, task)


def _interest(stacked: Stacked, entries_RLd: Tensor, norms_AX: Tensor) -> Tensor:
    """Return every task's interest in one sequence, (A, R, d)."""
    width = entries_RLd.shape[-1]
    query, keys, values = functional.linear(entries_RLd, stacked["attention"]).chunk(3, -1)
    scores_RLL = torch.bmm(query, keys.mT) / math.sqrt(width)
    read_RLd = entries_RLd + torch.bmm(scores_RLL.softmax(-1), values)
    # The same for all tasks up to here.
    scale1, shift1, scale2, shift2 = norms_AX[:, None, None].chunk(4, -1)
    read_ARLd = torch.addcmul(shift1, functional.layer_norm(read_RLd, (width,)), scale1)
    hidden_ARLd = functional.linear(read_ARLd, stacked["first_weight"], stacked["first_bias"])
    change_ARLd = functional.linear(
        hidden_ARLd.relu(), stacked["second_weight"], stacked["second_bias"]
    )
    made_ARLd = functional.layer_norm(read_ARLd + change_ARLd, (width,))
    return torch.addcmul(shift2, made_ARLd, scale2).mean(2)


def _modules(module: nn.Module) -> nn.ModuleDict:
    assert isinstance(module, nn.ModuleDict)
    return module


def _excitation(part: nn.ModuleDict) -> Excitation:
    excitation = part["excitation"]
    assert isinstance(excitation, Excitation)
    return excitation


def _network(part: nn.ModuleDict) -> Experts:
    network = part["network"]
    assert isinstance(network, Experts)
    return network
