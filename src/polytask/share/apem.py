"""APEM: patterns of a row's feature fields, and for each task those that its indicator selects.

Source: Tao et al., "Adaptive Pattern Extraction Multi-Task Learning for Multi-Step Conversion
    Estimations", 2023, https://arxiv.org/abs/2301.02494
Differs from the source: worked out from the paper's abstract, which names a group transformer with
    a modified set attention and a squeeze-excitation, and a pattern selector with task-indicator
    vectors; all equations below are ours. The set attention is that of Lee et al., "Set
    Transformer", ICML 2019, with trained queries, one per pattern, and one head. What a task
    selects is weighed and not cut off.
Shapes: R = rows, F = fields, d = width of a field, G = patterns, H = width of a pattern, A = asked
    tasks, W = width of a task's network.
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


class APEM(Trunk):
    """h_t = network_t(G w_1 z_1, ..., G w_G z_G), with w = softmax(z u_t / sqrt(H)).

    The patterns z are of all tasks: the fields x, each times its excitation, are keys and values of
    a set attention with a trained query q_g per pattern,
    y_g = norm(q_g + sum_f softmax(q_g k_f / sqrt(H))_f v_f) and z_g = norm(y_g + relu(C y_g + c)).
    A task's indicator u_t weighs them; the factor G keeps their mean weight 1.

    tasks: their names. inputs: F d, the fields side by side. fields: F. patterns: G. pattern_width:
    H. reduction: of the squeeze. widths: of each task's network.
    """

    stands_on = "fields"

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        fields: int,
        patterns: int = 8,
        pattern_width: int = 16,
        reduction: int = 2,
        widths: Sequence[int] = (64,),
    ) -> None:
        if not tasks or patterns < 2 or pattern_width < 1 or fields < 1 or inputs % fields:
            raise UsageError(
                "APEM: give at least one task, two patterns to select from, of at least one unit, "
                f"and fields that part the inputs; got {len(tasks)} tasks, {patterns} patterns of "
                f"width {pattern_width}, {inputs} inputs in {fields} fields."
            )
        super().__init__(inputs, widths[-1] if widths else 0)
        self.fields, self.patterns, self._widths = fields, patterns, tuple(widths)
        self.pattern_width = pattern_width
        self.excitation = Excitation(fields, reduction)
        self.queries = nn.Parameter(torch.randn(patterns, pattern_width))
        self.keys_values = nn.Linear(inputs // fields, 2 * pattern_width, bias=False)
        self.attended = nn.LayerNorm(pattern_width)
        self.change = nn.Linear(pattern_width, pattern_width)
        self.changed = nn.LayerNorm(pattern_width)
        self._tasks: tuple[str, ...] = ()
        self.indicators, self.networks = nn.ParameterDict(), nn.ModuleDict()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        fields: int | None = None,
        patterns: int = 8,
        pattern_width: int = 16,
        reduction: int = 2,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        fields: into how many the features part; None: what the encoder tells as its `fields`.
        patterns, pattern_width, reduction: of what all tasks share. widths: of each task's network.
        towers: of each task's layers after it.
        """
        check_width(encoder, width, "APEM")
        trunk = APEM(
            tasks.names,
            width,
            fields=fields_of(encoder, width, fields, "APEM"),
            patterns=patterns,
            pattern_width=pattern_width,
            reduction=reduction,
            widths=widths,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked = stack_excitations("excitation", [self.excitation])
        stacked["queries"] = self.queries
        stacked["keys_values"] = own(self.keys_values, "weight")
        for name, module in (
            ("attended", self.attended),
            ("change", self.change),
            ("changed", self.changed),
        ):
            stacked[f"{name}_weight"] = own(module, "weight")
            stacked[f"{name}_bias"] = own(module, "bias")
        stacked["indicators"] = torch.stack([self.indicators[key(task)] for task in tasks])
        return stacked | stack("networks", [self._network(task) for task in tasks])

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        queries_GH, indicators_AH = stacked["queries"], stacked["indicators"]
        patterns, width = queries_GH.shape
        fields_RFd = rows_RD.reshape(rows_RD.shape[0], -1, stacked["keys_values"].shape[1])
        counts_1RF = excited(stacked, "excitation", fields_RFd)
        both_RFX = functional.linear(fields_RFd * counts_1RF[0][..., None], stacked["keys_values"])
        keys_RFH, values_RFH = both_RFX.chunk(2, -1)
        scores_RGF = functional.linear(keys_RFH, queries_GH).mT / math.sqrt(width)
        read_RGH = queries_GH + torch.bmm(scores_RGF.softmax(-1), values_RFH)
        patterns_RGH = _normed(stacked, "attended", read_RGH)
        change_RGH = functional.linear(
            patterns_RGH, stacked["change_weight"], stacked["change_bias"]
        )
        patterns_RGH = _normed(stacked, "changed", patterns_RGH + change_RGH.relu())
        logits_RAG = functional.linear(patterns_RGH, indicators_AH).mT / math.sqrt(width)
        weights_RAG = logits_RAG.softmax(-1)
        if seen is not None:
            seen["weights_RAG"] = weights_RAG
        selected_ARGH = patterns_RGH * (patterns * weights_RAG).transpose(0, 1)[..., None]
        return run(stacked, "networks", selected_ARGH.flatten(2))

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return what the tasks' indicators take of each pattern."""
        names = tuple(f"pattern {g}" for g in range(self.patterns))
        return [Gate(0, tuple(tasks), names, (None,) * len(names), seen["weights_RAG"])]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that make the patterns."""
        modules = (self.excitation, self.keys_values, self.attended, self.change, self.changed)
        return [self.queries, *(p for module in modules for p in module.parameters())]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the task's indicator and the parameters of its network."""
        return [self.indicators[key(task)], *self._network(task).parameters()]

    def add_task(self, task: str) -> None:
        self.indicators[key(task)] = nn.Parameter(torch.randn(self.pattern_width))
        inputs = self.patterns * self.pattern_width
        self.networks[key(task)] = Experts(1, inputs, self._widths)
        self._tasks = (*self._tasks, task)

    def _network(self, task: str) -> Experts:
        network = self.networks[key(task)]
        assert isinstance(network, Experts)
        return network


def _normed(stacked: Stacked, name: str, values: Tensor) -> Tensor:
    weight, bias = stacked[f"{name}_weight"], stacked[f"{name}_bias"]
    return functional.layer_norm(values, weight.shape, weight, bias)
