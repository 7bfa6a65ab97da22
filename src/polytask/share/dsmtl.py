"""DSMTL: every task mixes a shared model with one of its own, so that it need not lose by sharing.

Source: Yue, Ye, Zhang, Liang & Tsang, "Deep Safe Multi-Task Learning", 2021,
    https://arxiv.org/abs/2111.10601
Differs from the source: worked out from its abstracts. The gate stands after the decoders, which
    the source has as a variant: its own model's output is then what it is alone. Individual
    learning is one loop and no second stage: the own model's loss trains it as if it were alone,
    and the mixture's loss, to which the own model is a constant, trains the shared model and the
    gate. The light scheme draws either model in every pass, by a hard Gumbel-softmax, and keeps
    the likelier one.
Shapes: A = asked tasks, 2 = shared and own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, Inputs, SharedModel, Trace, key, looking
from polytask.share.choice import Cooling, drawn, likeliest
from polytask.share.hard import HardSharing
from polytask.tasks import Task, TaskSet

Scheme = Literal["joint", "individual", "light"]


class DSMTL(SharedModel):
    """output_t = a_t * shared_t(x) + (1 - a_t) * own_t(x), a_t = sigmoid of a trained number.

    scheme: "joint" trains all by the output's loss; "individual" trains the own models as if alone
    and the rest around them; "light" ends with one of the two models for each task. temperature:
    > 0, of light's draws at first, see `Cooling`.

    The own models are models of any sort and run one after another, those of the asked tasks.

    public: of all tasks. private: task -> a model of this task.
    """

    traces = True

    def __init__(
        self,
        public: HardSharing,
        private: Mapping[str, HardSharing],
        *,
        scheme: Scheme = "joint",
        temperature: float = 5.0,
    ) -> None:
        super().__init__()
        if set(public.tasks) != set(private) or any(m.tasks != (t,) for t, m in private.items()):
            raise UsageError(
                f"DSMTL: the shared model's tasks are {', '.join(public.tasks)}, but own models "
                f"came for {', '.join(private) or 'none'}; give each task one of it alone."
            )
        self.scheme: Scheme = scheme
        self._cooling = Cooling("DSMTL", temperature)
        self.public = public
        self.private = nn.ModuleDict({key(task): private[task] for task in public.tasks})
        first = next(public.parameters())
        self.gating = nn.ParameterDict(
            {key(task): nn.Parameter(first.new_zeros(())) for task in public.tasks}
        )

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        scheme: Scheme = "joint",
        temperature: float = 5.0,
    ) -> DSMTL:
        """Return the model on `width` features; own models begin with copies of the encoder."""
        private = {
            task.name: HardSharing.build(copy.deepcopy(encoder), width, TaskSet([task]))
            for task in tasks
        }
        public = HardSharing.build(encoder, width, tasks)
        return DSMTL(public, private, scheme=scheme, temperature=temperature)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.public.tasks

    @property
    def penalises(self) -> bool:  # type: ignore[override]  # a fact of the scheme
        return self.scheme == "individual"

    def at(self, part: float) -> None:
        """Take note how far the training is, for the draws of the light scheme."""
        self._cooling.at(part)

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the gates, and under the individual scheme the own models' outputs.
        """
        asked = tuple(dict.fromkeys(self._asked(tasks)))
        if not asked:
            return {}
        parts_A2 = self._parts(asked)
        public, private = set(asked), set(asked)
        if self.scheme == "light" and not self.training:  # the model not chosen does not run
            public = {t for t, part in zip(asked, parts_A2[:, 0].tolist(), strict=True) if part}
            private = set(asked) - public
        shared = self.public(inputs, tasks=[task for task in asked if task in public])
        own = {task: self._own(task)(inputs)[task] for task in asked if task in private}
        outputs: dict[str, Tensor] = {}
        for task, part_2 in zip(asked, parts_A2.unbind(), strict=True):
            if task not in own or task not in shared:
                outputs[task] = shared[task] if task in shared else own[task]
                continue
            mine = own[task].detach() if self.scheme == "individual" else own[task]
            outputs[task] = part_2[0] * shared[task] + part_2[1] * mine
        if trace is not None:
            rows = len(outputs[asked[0]])
            trace.gates += [
                Gate(0, (task,), ("shared", "own"), (None, task), part_2.expand(rows, 1, 2))
                for task, part_2 in zip(asked, parts_A2.unbind(), strict=True)
            ]
            if self.scheme == "individual":
                trace.further.append(own)
        return outputs

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the shared model's encoder."""
        return self.public.shared_parameters()

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's own model, of its shared head, and its gate."""
        (name,) = self._asked((task,))
        own = [*self.public.task_parameters(name), *self._own(name).parameters()]
        return [*own, self.gating[key(name)]]

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return those of the shared model."""
        return self.public.branches()

    def add_task(self, task: Task, head: nn.Module | None = None) -> None:
        """Add a task; asked as before, every other output is the same bits.

        Its own model begins with copies of the shared encoder, as it is by now, and of its head.
        head: see `HardSharing.add_task`.
        """
        self.public.add_task(task, head)
        own = {task.name: copy.deepcopy(self.public.head(task.name))}
        encoder, name = copy.deepcopy(self.public.encoder), key(task.name)
        self.private[name] = HardSharing(encoder, own, {task.name: task.kind.reads})
        self.gating[name] = nn.Parameter(next(self.public.parameters()).new_zeros(()))

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        Under the light scheme it is the one model the task has chosen.
        """
        (name,) = self._asked((task,))
        with looking(self):
            part_2 = self._parts((name,))[0].clone()
        public, private = self.public.extract(name), self._own(name).extract(name)
        if self.scheme == "light":
            return public if part_2[0] else private
        return Mixture(public, private, part_2)

    def _parts(self, tasks: Sequence[str]) -> Tensor:
        """Return what each task takes of the shared and of its own model, (A, 2)."""
        logit_A = torch.stack([self.gating[key(task)] for task in tasks])
        logit_A2 = torch.stack([logit_A, torch.zeros_like(logit_A)], dim=1)
        if self.scheme != "light":
            return logit_A2.softmax(1)
        return drawn(logit_A2, self._cooling.temperature) if self.training else likeliest(logit_A2)

    def _own(self, task: str) -> HardSharing:
        model = self.private[key(task)]
        assert isinstance(model, HardSharing)
        return model


class Mixture(nn.Module):
    """Inputs -> a fixed mixture of two models' outputs."""

    part_2: Tensor

    def __init__(self, first: nn.Module, second: nn.Module, part_2: Tensor) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("part_2", part_2)

    def forward(self, inputs: Inputs) -> Tensor:
        mixed: Tensor = self.part_2[0] * self.first(inputs) + self.part_2[1] * self.second(inputs)
        return mixed
