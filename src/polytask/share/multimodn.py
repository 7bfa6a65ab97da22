"""MultiModN: a state goes through one encoder per modality; a missing one leaves it as it was.

Source: Swamy et al., "MultiModN: Multimodal, Multi-Task, Interpretable Modular Networks", NeurIPS
    2023, https://arxiv.org/abs/2309.14118
Differs from the source: a missing modality passes its encoder by for that row alone, where the
    published code drops the whole batch. The losses after all steps are summed, where the source
    has their mean; the penalty on changes of the state keeps its ratio to one of them, and is the
    mean over the state's numbers. The order of modalities is fixed.
Shapes: B = rows, S = width of the state, F = features of a modality, M = modalities, O = outputs of
    a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share import heads as run_heads
from polytask.share.base import Inputs, SharedModel, Trace, key
from polytask.share.hard import HardSharing
from polytask.tasks import Task, TaskSet

WHOLE = "inputs"
"""The name of the one modality of an encoder that tells none."""


class Modality(nn.Module):
    """One step: the encoder's features and the state before -> the state after, linear.

    encoder: what the modality's tensor is -> (B, F), or a mapping with it as "row".
    """

    def __init__(self, encoder: nn.Module, features: int, state: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.update = nn.Linear(features + state, state)

    def forward(
        self, inputs: Inputs, state_BS: Tensor, told_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the state, and which rows (B,) made the step; None: all of them did.

        Rows with a NaN anywhere in the inputs keep their state. told_B: bool, the rows that have
        the modality, for inputs that cannot be NaN.
        """
        there_B, filled = _there(inputs)
        if told_B is not None:
            there_B = told_B if there_B is None else told_B & there_B
        features = self.encoder(filled)
        row_BF = features if isinstance(features, Tensor) else features["row"]
        new_BS: Tensor = self.update(torch.cat([row_BF, state_BS], dim=1))
        if there_B is None:
            return new_BS, None
        return torch.where(there_B[:, None], new_BS, state_BS), there_B


class Chain(nn.Module):
    """Inputs -> the state after the last modality, (B, S).

    modalities: name -> its step, in order. The inputs are a mapping with tensors by these names;
    one that is not among them is missing for every row, and its encoder does not run. A row lacks
    a modality where its tensor has a NaN, or where a tensor "<name>_there" (B,) is False. A lone
    modality `WHOLE` is all of the inputs.
    """

    def __init__(self, modalities: Mapping[str, Modality], state: int) -> None:
        super().__init__()
        self.width = state
        self.names = tuple(modalities)
        self.initial_1S = nn.Parameter(torch.randn(1, state))
        self.modalities = nn.ModuleDict({key(name): step for name, step in modalities.items()})

    def forward(self, inputs: Inputs) -> Tensor:
        return self.steps(inputs)[0][-1]

    def steps(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the state at first and after every step, (B, S), and of every step who made it.

        The steps of modalities that are among the inputs; see `Modality` for who made one.
        """
        parts = self._parts(inputs)
        first = next(iter(parts.values()))
        rows = (first if isinstance(first, Tensor) else next(iter(first.values()))).shape[0]
        states = [self.initial_1S.expand(rows, -1)]
        made: list[Tensor | None] = []
        for name, part in parts.items():
            told_B = inputs.get(f"{name}_there") if isinstance(inputs, Mapping) else None
            state_BS, made_B = self.modalities[key(name)](part, states[-1], told_B)
            states.append(state_BS)
            made.append(made_B)
        return states, made

    def _parts(self, inputs: Inputs) -> dict[str, Inputs]:
        if self.names == (WHOLE,):
            return {WHOLE: inputs}
        if isinstance(inputs, Tensor) or not any(name in inputs for name in self.names):
            given = "one tensor" if isinstance(inputs, Tensor) else ", ".join(inputs) or "nothing"
            raise UsageError(
                f"MultiModN reads the modalities {', '.join(self.names)}, at least one of them by "
                f"its name; the inputs are {given}."
            )
        return {name: inputs[name] for name in self.names if name in inputs}


class MultiModN(SharedModel):
    """s_0 is trained; s_m = linear([encoder_m(x_m), s_{m-1}]); output_t = head_t(s_M).

    In training every head also reads every earlier state, s_0 included, and its losses there are
    trained beside the output's. What no modality tells, the state of the rows before does. A state
    that a row left as it was is trained on once: were it read again, heads would learn from rows
    that lack a modality more often than from others, and so that its lack tells something. Later
    steps still read from the state whether a step was made: where a modality's lack goes with the
    label, let it come last (experiments/share/results.md).

    chain: the encoders. heads: task -> module from (B, S). penalty: >= 0, of the mean squared
    change of the state, summed over steps.
    """

    traces = True
    penalises = True

    def __init__(
        self, chain: Chain, heads: Mapping[str, nn.Module], *, penalty: float = 0.01
    ) -> None:
        super().__init__()
        if penalty < 0:
            raise UsageError(f"MultiModN: penalty is {penalty}; give a number >= 0 (default 0.01).")
        self.penalty = penalty
        self.model = HardSharing(chain, heads)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        state: int = 64,
        penalty: float = 0.01,
        towers: tuple[int, ...] = (),
    ) -> MultiModN:
        """Return the model of an encoder on `width` features.

        An encoder whose ModuleDict `branches` names modules, each with its `width`, has a modality
        for each, the input of that name; any other one is a single modality. state: width of the
        state. towers: of each task's layers above it.
        """
        for task in tasks:
            if task.kind.reads != "row":
                raise UsageError(
                    f"MultiModN: its state is of a row, but {task.name!r} reads a "
                    f"{task.kind.reads!r}. Leave it out, or use another sharing."
                )
        if state < 1:
            raise UsageError(f"MultiModN: state is {state}; give a width of at least 1.")
        branches = getattr(encoder, "branches", None)
        widths = {WHOLE: (encoder, width)}
        if isinstance(branches, nn.ModuleDict):
            widths = {name: (part, _width(name, part)) for name, part in branches.items()}
        steps = {name: Modality(part, wide, state) for name, (part, wide) in widths.items()}
        top = towers[-1] if towers else state
        heads = {
            task.name: run_heads.with_tower(task.kind.head(top), state, towers) for task in tasks
        }
        return MultiModN(Chain(steps, state), heads, penalty=penalty)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.model.tasks

    @property
    def chain(self) -> Chain:
        """The encoders."""
        chain = self.model.encoder
        assert isinstance(chain, Chain)
        return chain

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the outputs from earlier states, the first one first, and the penalty.
        """
        if trace is None:
            return self.model(inputs, tasks)  # type: ignore[no-any-return]
        asked = self._asked(tasks)
        if not asked:
            return {}
        states, made = self.chain.steps(inputs)
        outputs = self.model.read(states[-1], asked)
        earlier = self.model.read(torch.cat(states[:-1]), asked)
        state_MBS = torch.stack(states)
        before, rows = len(states) - 1, state_MBS.shape[1]
        steps = {task: o.reshape(before, rows, *o.shape[1:]) for task, o in earlier.items()}
        trace.further += [
            {task: _once(of[m], made_B) for task, of in steps.items()}
            for m, made_B in enumerate(made)
        ]
        # A process may have no row of a short batch.
        change = state_MBS.diff(dim=0).square().sum() / (max(rows, 1) * self.chain.width)
        trace.penalties |= dict.fromkeys(asked, self.penalty * change)
        return outputs

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the first state and of every modality."""
        return self.model.shared_parameters()

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of this task's head."""
        return self.model.task_parameters(task)

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each modality, where there are several."""
        if self.chain.names == (WHOLE,):
            return {}
        steps = zip(self.chain.names, self.chain.modalities.values(), strict=True)
        return {name: list(step.parameters()) for name, step in steps}

    def add_task(self, task: Task, head: nn.Module | None = None) -> None:
        """Add a task with a new head; asked as before, every other output is the same bits."""
        if head is None:
            head = task.kind.head(self.chain.width).to(self.chain.initial_1S)
        self.model.add_task(task, head)

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights."""
        return self.model.extract(task)


def _once(output_BO: Tensor, made_B: Tensor | None) -> Tensor:
    """Return the outputs, without gradient for rows that the same state gives them again."""
    if made_B is None:
        return output_BO
    return torch.where(made_B[:, None], output_BO, output_BO.detach())


def _width(name: str, part: nn.Module) -> int:
    width = getattr(part, "width", None)
    if not isinstance(width, int):
        raise UsageError(
            f"MultiModN: the encoder's branch {name!r}, a {type(part).__name__}, does not tell its "
            "`width`; set it to the number of its features."
        )
    return width


def _there(inputs: Inputs) -> tuple[Tensor | None, Inputs]:
    """Return which rows have no NaN, and the inputs with 0 for NaN; None where none can have."""
    if not isinstance(inputs, Tensor):
        parts = {name: _there(value) for name, value in inputs.items()}
        known = [there_B for there_B, _ in parts.values() if there_B is not None]
        there_B = torch.stack(known).all(0) if known else None
        return there_B, {name: filled for name, (_, filled) in parts.items()}  # type: ignore[misc]
    if not inputs.is_floating_point():
        return None, inputs
    gone = inputs.isnan()
    # Filled, or the gradient of a row that is passed by would be NaN too.
    return ~gone.flatten(1).any(1), inputs.masked_fill(gone, 0.0)
