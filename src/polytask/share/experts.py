"""Stacked networks: many small networks of one form, run as one batched product per layer.

A network's weights stand in tensors (S, in, out) with its siblings'. Networks that belong to
different owners (a task's experts, shared experts) are groups with tensors of their own, so that a
task's parameters stay its own for optimisers and checkpoints; groups asked for together are laid
side by side for the pass. Either way the number of operators does not depend on S.

Everything here comes in two steps: *stack* what the asked tasks need, then compute with plain
functions of the stacked tensors. `extract` keeps the stacked tensors and nothing else.

Shapes: R = rows, S = networks side by side, I, O = inputs and outputs of a layer, D = width of the
inputs, W = width of the outputs, G = gates, E = experts, A = asked tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError, unknown
from polytask.share.base import key
from polytask.share.one_row import product_of_one

Stacked = dict[str, Tensor]
"""Named tensors, such as "experts_0_weight" (S, I, O): all that a pass for some tasks needs."""

Activation = Callable[[Tensor], Tensor]


class Experts(nn.Module):
    """S networks of one form: rows (R, D), or of each its own (S, R, D), to (S, R, W).

    widths: of each layer, at least one; a layer is linear with a bias, then ReLU. The first
    weights are those of `nn.Linear`.
    out: width of one more layer, without the ReLU; None for none.
    """

    def __init__(
        self, number: int, inputs: int, widths: Sequence[int], out: int | None = None
    ) -> None:
        super().__init__()
        every = (*widths, *(() if out is None else (out,)))
        if number < 1 or inputs < 1 or not widths or min(every) < 1:
            raise UsageError(
                "Experts: their number, the inputs and every width must be at least 1; got "
                f"{number} experts of {inputs} inputs and widths {every}."
            )
        self.number, self.inputs, self.widths, self.out = number, inputs, tuple(widths), out
        # What networks have in common that can run side by side.
        self.form = (self.inputs, self.widths, self.out)
        # The layers' names: "0", "1", ..., and "out" for one without ReLU.
        self.layers = (*map(str, range(len(widths))), *(() if out is None else ("out",)))
        for layer, i, o in zip(self.layers, (inputs, *every), every, strict=False):
            bound = 1 / math.sqrt(i)
            weight = torch.empty(number, i, o).uniform_(-bound, bound)
            bias = torch.empty(number, o).uniform_(-bound, bound)
            self.register_parameter(f"weight_{layer}", nn.Parameter(weight))
            self.register_parameter(f"bias_{layer}", nn.Parameter(bias))

    @property
    def weights(self) -> list[Tensor]:
        """Each layer's weights (S, I, O)."""
        return [own(self, f"weight_{layer}") for layer in self.layers]

    @property
    def biases(self) -> list[Tensor]:
        """Each layer's biases (S, O)."""
        return [own(self, f"bias_{layer}") for layer in self.layers]

    @property
    def width(self) -> int:
        """W."""
        return self.widths[-1] if self.out is None else self.out

    def forward(self, rows: Tensor) -> Tensor:
        return run(stack("experts", [self]), "experts", rows)

    def extra_repr(self) -> str:
        last = () if self.out is None else (f"{self.out} linear",)
        return f"{self.number} x {' -> '.join(map(str, (self.inputs, *self.widths, *last)))}"


def own(module: nn.Module, name: str) -> Tensor:
    """Return a module's own parameter or buffer.

    Straight from the dict: for one row and many tasks nn.Module's look-up costs as much as the
    products.
    """
    found: Tensor | None = module._parameters.get(name)
    if found is None:
        found = module._buffers[name]
    assert found is not None
    return found


def part(module: nn.Module, name: str) -> Any:
    """Return a module's part of this name, straight from the dict, as `own` does."""
    return module._modules[name]


def stack(name: str, groups: Sequence[Experts]) -> Stacked:
    """Return the groups' networks side by side, in the order given.

    Raises UsageError where their forms differ.
    """
    first, stacked = groups[0], {}
    if len(groups) == 1:  # as it is: for one row even this many lines count
        table = cast("Stacked", first._parameters)  # see `own`
        for layer in first.layers:
            stacked[f"{name}_{layer}_weight"] = table[f"weight_{layer}"]
            stacked[f"{name}_{layer}_bias"] = table[f"bias_{layer}"]
        return stacked
    for group in groups:
        if group.form != first.form:
            raise UsageError(
                "Experts that run side by side need one form; got "
                f"{first.extra_repr()} and {group.extra_repr()}."
            )
    tables = [cast("Stacked", group._parameters) for group in groups]
    for layer in first.layers:
        for part in ("weight", "bias"):
            its = f"{part}_{layer}"
            stacked[f"{name}_{layer}_{part}"] = joined([table[its] for table in tables])
    return stacked


def run(stacked: Stacked, name: str, rows: Tensor, activate: Activation = torch.relu_) -> Tensor:
    """Return every network's output (S, R, W) for shared rows (R, D), or for each its own.

    activate: what follows each layer but one called "out"; it may work in place.
    """
    layer = 0
    while (weight_SIO := stacked.get(f"{name}_{layer}_weight")) is not None:
        bias_SO = stacked[f"{name}_{layer}_bias"]
        if activate is torch.relu_:
            rows = product(rows, weight_SIO, bias_SO, relu=True)
        else:
            rows = activate(product(rows, weight_SIO, bias_SO))
        layer += 1
    last_SIO = stacked.get(f"{name}_out_weight")
    return rows if last_SIO is None else product(rows, last_SIO, stacked[f"{name}_out_bias"])


def product(
    rows: Tensor, weight_SIO: Tensor, bias_SO: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """Return (S, R, O) of shared rows (R, I), or of each network its own (S, R, I)."""
    if (made := product_of_one(rows, weight_SIO, bias_SO, relu=relu)) is not None:
        return made
    if rows.ndim == 2:
        rows = rows.expand(weight_SIO.shape[0], -1, -1)
    elif weight_SIO.shape[2] == 1:
        # Element by element: BLAS would take a matrix and a vector at a time, five times slower.
        made = (rows * weight_SIO.mT).sum(-1, keepdim=True)
        made = made if bias_SO is None else made + bias_SO[:, None]
        return torch.relu_(made) if relu else made
    if bias_SO is None:
        made = torch.bmm(rows, weight_SIO)
    else:
        made = torch.baddbmm(bias_SO.unsqueeze(1), rows, weight_SIO)
    # In place: what a product gives is needed by nobody before the ReLU.
    return torch.relu_(made) if relu else made


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts along dim 0; without a copy where it is one, or where no gradient is asked
    for and they lie one behind the other, see `OwnExperts`."""
    if len(parts) == 1:
        return parts[0]
    whole = None if torch.is_grad_enabled() else _as_they_lie(parts)
    return torch.cat(list(parts)) if whole is None else whole


def _as_they_lie(parts: Sequence[Tensor]) -> Tensor | None:
    first = parts[0]
    try:
        begin = end = first.data_ptr()
        for part in parts:
            if part.data_ptr() != end or not part.is_contiguous():
                return None
            end += part.nbytes
        storage = first.untyped_storage()
        if storage.data_ptr() + storage.nbytes() < end or not first.nbytes:
            return None  # neighbours by chance
        number = first.shape[0] * (end - begin) // first.nbytes
    except RuntimeError:  # no memory to look at: while a model is traced, or under vmap
        return None
    return first.as_strided((number, *first.shape[1:]), first.stride())


class OwnExperts(nn.ModuleDict):
    """Task -> its experts. In memory the tasks' weights lie one behind the other, layer by layer.

    So all of them side by side are there without a copy, which for one row would cost more than
    the row. They stay parameters of their own; `lay` after tasks were added.
    """

    def of(self, tasks: Sequence[str]) -> list[Experts]:
        """Return these tasks' experts."""
        return [cast("Experts", self._modules[key(task)]) for task in tasks]

    def lay(self) -> None:
        """Bring the weights into this order; the parameters and their numbers stay the same."""
        for parts in zip(*(group.parameters() for group in self.values()), strict=True):
            first = parts[0].data
            if type(first) is not Tensor or (first.device.type == "cpu" and first.is_shared()):  # type: ignore[no-untyped-call]
                continue  # parted among processes: where they lie is not ours to choose
            whole = torch.cat([part.data for part in parts])
            pieces = torch.split(whole, [len(p) for p in parts])
            for part, piece in zip(parts, pieces, strict=True):
                part.data = piece

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # To another device or type every parameter goes by itself.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.lay()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy's parameters lie apart
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lay()


class Gates(nn.Module):
    """Softmax gates: rows to weights (R, G, E), one gate per reader, linear without bias.

    rows: (R, D), or of each reader its own (G, R, D).
    readers: names, of tasks as a rule.
    closed: reader -> experts (positions on E) it never takes from: their logits are -inf, so that
        the weight is exactly 0, and its gradient too. Saved with the weights. None: gates that
        never close anything.
    """

    def __init__(
        self,
        readers: Sequence[str],
        inputs: int,
        experts: int,
        closed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise UsageError(f"Gates: the number of experts is {experts}; give at least 1.")
        for reader in closed or {}:
            if reader not in readers:
                raise unknown("reader", reader, readers, f"The gates are {', '.join(readers)}'s.")
        self.inputs, self.experts, self.closes = inputs, experts, closed is not None
        self.readers: tuple[str, ...] = ()
        self.linears = nn.ModuleDict()
        for reader in readers:
            self.add(reader, () if closed is None else closed.get(reader, ()))

    def add(self, reader: str, closed: Sequence[int] = ()) -> None:
        """Add the gate of one more reader."""
        if reader in self.readers:
            raise UsageError(f"Gates: {reader!r} has a gate already; name every reader once.")
        if any(not 0 <= expert < self.experts for expert in closed):
            raise UsageError(
                f"Gates: {reader!r} closes experts {sorted(set(closed))}, but there are "
                f"{self.experts}, from 0 to {self.experts - 1}."
            )
        if len(set(closed)) == self.experts:
            raise UsageError(f"Gates: every expert is closed for {reader!r}; leave one open.")
        linear = nn.Linear(self.inputs, self.experts, bias=False)
        if self.closes:
            closed_E = torch.zeros(self.experts, dtype=torch.bool)
            closed_E[list(closed)] = True
            linear.register_buffer("closed_E", closed_E)
        self.linears[key(reader)] = linear
        self.readers = (*self.readers, reader)

    def parameters_of(self, reader: str) -> list[nn.Parameter]:
        """Return the parameters of one reader's gate."""
        return list(self.linears[key(reader)].parameters())

    def stack(self, name: str, readers: Sequence[str]) -> Stacked:
        """Return these readers' weights (E, G, D), and what is closed where anything may be."""
        every = part(self, "linears")
        linears = [part(every, key(reader)) for reader in readers]
        weights = [own(one, "weight") for one in linears]
        together = weights[0].unsqueeze(1) if len(weights) == 1 else torch.stack(weights, dim=1)
        stacked = {f"{name}_weight": together}
        if self.closes:
            closed = [one.get_buffer("closed_E") for one in linears]
            stacked[f"{name}_closed"] = torch.stack(closed)
        return stacked

    def forward(self, rows: Tensor, readers: Sequence[str]) -> Tensor:
        return opened(self.stack("gates", readers), "gates", rows)


def opened(stacked: Stacked, name: str, rows: Tensor) -> Tensor:
    """Return the gates' weights (R, G, E); see `Gates`.

    Gates of one weight (E, 1, D) and several biases `{name}_bias` (G, E) are G gates.
    """
    weight_EGD = stacked[f"{name}_weight"]
    if rows.ndim == 2:  # one product for all gates, which are too narrow to be quick one by one
        logits_RX = functional.linear(rows, weight_EGD.flatten(0, 1))
        logits_REG = logits_RX.view(-1, *weight_EGD.shape[:2])
    else:
        weight_GDE = weight_EGD.permute(1, 2, 0).expand(len(rows), -1, -1)
        logits_REG = torch.bmm(rows, weight_GDE).permute(1, 2, 0)
    bias_GE = stacked.get(f"{name}_bias")
    if bias_GE is not None:
        logits_REG = logits_REG + bias_GE.mT
    closed_GE = stacked.get(f"{name}_closed")
    if closed_GE is not None:
        logits_REG = logits_REG.masked_fill(closed_GE.mT, -math.inf)
    # Gates last: a softmax over a short last dimension takes ten times as long.
    return logits_REG.softmax(1).transpose(1, 2)
