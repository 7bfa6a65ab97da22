"""Who uses which expert: what the gates of a model took, averaged over rows, as numbers.

    use = expert_use(model, [batch.inputs for batch in batches])
    use.warnings()  # in plain words

Works for every model that tells its gates in a `Trace`.

Shapes: R = rows, G = readers of a gate, E = experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.records import GateUse as GateUse
from polytask.share.base import Inputs, SharedModel, Trace, looking

DEAD = 0.01
"""An expert with a mean weight below this is not used by the reader."""


@dataclass(frozen=True)
class ExpertUse:
    """What every reader of a model took."""

    gates: tuple[GateUse, ...]

    @property
    def readers(self) -> Mapping[tuple[int, str], frozenset[str | None]]:
        """(level, expert) -> who takes at least `DEAD` of it. An own expert carries its owner."""
        found: dict[tuple[int, str], set[str | None]] = {}
        for gate in self.gates:
            for name, owner, weight in zip(gate.experts, gate.owners, gate.mean, strict=True):
                takers = found.setdefault((gate.level, _named(name, owner)), set())
                if weight >= DEAD:
                    takers.add(gate.reader)
        return {expert: frozenset(takers) for expert, takers in found.items()}

    @property
    def dead_share(self) -> float:
        """The part of all experts that no reader uses; NaN without experts."""
        takers = self.readers
        return sum(not t for t in takers.values()) / len(takers) if takers else float("nan")

    @property
    def of_one(self) -> tuple[tuple[int, str], ...]:
        """The shared experts that one reader alone uses, where there are several readers."""
        several = {level for level, count in self._readers_of_levels().items() if count > 1}
        shared = {
            (gate.level, name)
            for gate in self.gates
            for name, owner in zip(gate.experts, gate.owners, strict=True)
            if owner is None
        }
        takers = self.readers
        return tuple(
            expert
            for expert in takers
            if expert in shared and expert[0] in several and len(takers[expert]) == 1
        )

    @property
    def ignoring_own(self) -> tuple[str, ...]:
        """The readers that hardly use their own experts on some level."""
        found = [
            gate.reader
            for gate in self.gates
            if gate.reader is not None and gate.own is not None and gate.own < DEAD
        ]
        return tuple(dict.fromkeys(found))

    def warnings(self) -> tuple[str, ...]:
        """Return what deserves a look, in plain words; empty where nothing does."""
        said = []
        takers = self.readers
        dead = [_place(*expert) for expert, t in takers.items() if not t]
        if dead:
            said.append(
                f"{len(dead)} of {len(takers)} experts are dead (no task takes 1 % of them): "
                f"{', '.join(dead)}. Fewer experts would do."
            )
        for level, name in self.of_one:
            (reader,) = takers[level, name]
            said.append(
                f"Of all tasks, {_place(level, name)} serves {reader!r} alone: it shares nothing."
            )
        for reader in self.ignoring_own:
            said.append(
                f"{reader!r} ignores its own experts: the shared ones do its work, or its own were "
                "starved."
            )
        return tuple(said)

    def _readers_of_levels(self) -> dict[int, int]:
        levels: dict[int, int] = {}
        for gate in self.gates:
            levels[gate.level] = levels.get(gate.level, 0) + 1
        return levels


def expert_use(
    model: SharedModel, batches: Iterable[Inputs], tasks: Sequence[str] | None = None
) -> ExpertUse:
    """Return how the gates of a model use its experts on these rows, in evaluation mode.

    tasks: whose gates; None: all. A model without gates has no use to tell: `gates` is empty.

    Raises UsageError without a batch.
    """
    meter, any_batch = UseMeter(model), False
    for inputs in batches:
        any_batch = True
        if not meter.add(inputs, tasks):
            break
    if not any_batch:
        raise UsageError("expert_use: give at least one batch of inputs; got none.")
    return meter.compute()


class UseMeter:
    """Adds up what a model's gates take, batch by batch."""

    def __init__(self, model: SharedModel) -> None:
        self.model = model
        self._sums: dict[tuple[int, str | None, tuple[str, ...]], _Sum] = {}

    def add(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> bool:
        """Run these rows in evaluation mode, for these tasks; None: all. Return whether the model
        has gates: where not, more rows tell nothing."""
        if not self.model.traces:
            return False
        trace = Trace()
        with looking(self.model):
            self.model(inputs, tasks=tasks, trace=trace)
        for gate in trace.gates:
            weights_RGE = gate.weights_RGE.double()
            for g, reader in enumerate(gate.readers):
                place = (gate.level, reader, gate.experts)
                self._sums.setdefault(place, _Sum(gate.owners)).add(weights_RGE[:, g])
        return bool(trace.gates)

    def compute(self) -> ExpertUse:
        """Return the means over all rows so far."""
        return ExpertUse(
            tuple(
                GateUse(
                    level,
                    reader,
                    experts,
                    found.owners,
                    tuple((found.weights_E / found.rows).tolist()),
                    float(found.entropy / found.rows),
                    found.rows,
                )
                for (level, reader, experts), found in sorted(
                    self._sums.items(), key=lambda item: item[0][0]
                )
            )
        )


@dataclass
class _Sum:
    owners: tuple[str | None, ...]
    weights_E: Tensor = field(default_factory=lambda: torch.zeros(()))
    entropy: Tensor = field(default_factory=lambda: torch.zeros(()))
    rows: int = 0

    def add(self, weights_RE: Tensor) -> None:
        self.weights_E = self.weights_E.to(weights_RE) + weights_RE.sum(0)
        self.entropy = self.entropy.to(weights_RE) + torch.special.entr(weights_RE).sum()
        self.rows += len(weights_RE)


def _named(expert: str, owner: str | None) -> str:
    return expert if owner is None else f"{expert} of {owner!r}"


def _place(level: int, expert: str) -> str:
    return f"{expert} (level {level})" if level else expert
