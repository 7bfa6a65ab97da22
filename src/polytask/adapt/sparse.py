"""Composable sparse fine-tuning: a task changes few of the base's numbers, and changes add up.

    method = SparseTuning(density=0.01)
    start = method.start(model)
    ...                                        # train all of it
    masks = method.select(model, start)        # what moved farthest
    start.rewind(model)
    with method.held(model, masks, optimiser): ...   # train those alone
    change = method.change(model, start, masks)
    compose(base, [task_change, language_change])    # base + both

Source: Ansell, Ponti, Korhonen & Vulić, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer",
    ACL 2022, https://arxiv.org/abs/2110.07560, and the authors' code
Differs from the source: nothing known of the method. The penalty is `l1` times the mean absolute
    change of the numbers that are counted. Files are ours: gaps between the indices of changed
    numbers, in the smallest unsigned type that holds them, beside the changes.
Shapes: P = numbers of one parameter, K = those of them that change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.adapt.files import fingerprint, read_tensors
from polytask.adapt.held import Held
from polytask.adapt.where import glob
from polytask.errors import DataError, UsageError
from polytask.records import write_atomic

FORMAT = 1

Masks = Mapping[str, Tensor]
"""Name of a parameter -> which of its numbers are trained, bool, in its shape."""


@dataclass(frozen=True)
class Start:
    """A model's parameters before training, and their fingerprint without the dense ones."""

    values: Mapping[str, Tensor]
    base: str

    def rewind(self, model: nn.Module) -> None:
        """Put the model's parameters back as they were, bit for bit."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.values[name])


@dataclass(frozen=True)
class SparseChange:
    """What a task changes of a base.

    at: parameter -> int64 (K,), ascending: which numbers of it, flattened. by: parameter -> (K,):
    by how much. whole: parameter -> its values, of dense ones. shapes: of the parameters in `at`.
    base: fingerprint of the base, without the dense parameters.
    """

    at: Mapping[str, Tensor]
    by: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    settings: SparseTuning = field(repr=False)

    @property
    def numbers(self) -> int:
        """How many numbers change, dense parameters left out."""
        return sum(len(at_K) for at_K in self.at.values())


@dataclass(frozen=True)
class SparseTuning:
    """Settings, and the steps of the method as plain functions of any module.

    density: share of the numbers that a task changes, of all that are not dense, in (0, 1].
    iterations: in how many rounds of training, choosing and rewinding they are chosen, the same
    number in each. dense: globs of names of parameters trained in full, as those of heads.
    l1: of the penalty.
    """

    density: float = 0.01
    iterations: int = 1
    dense: tuple[str, ...] = ()
    l1: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(
                f"SparseTuning: density is {self.density}; give a number in (0, 1] (default 0.01)."
            )
        if type(self.iterations) is not int or self.iterations < 1:
            raise UsageError(
                f"SparseTuning: iterations is {self.iterations!r}; give a whole number >= 1."
            )
        if not isinstance(self.dense, tuple):
            raise UsageError(f"SparseTuning: dense is {self.dense!r}; give a tuple of names.")
        if not self.l1 >= 0:
            raise UsageError(f"SparseTuning: l1 is {self.l1}; give a number >= 0 (default 0).")

    def start(self, model: nn.Module) -> Start:
        """Return the model's parameters as they are now."""
        values = {name: p.detach().clone() for name, p in model.named_parameters()}
        return Start(values, fingerprint(model, [n for n in values if self._dense(n)]))

    def penalty(self, model: nn.Module, start: Start) -> Tensor:
        """Return what is added to the loss: l1 * mean |change|, a scalar with its graph."""
        moved, many = [], 0
        for name, parameter in model.named_parameters():
            if not self._dense(name):
                moved.append((parameter - start.values[name]).abs().sum())
                many += parameter.numel()
        return self.l1 * torch.stack(moved).sum() / many

    def select(self, model: nn.Module, start: Start, chosen: Masks | None = None) -> Masks:
        """Return masks of the numbers that moved farthest, with those chosen in rounds before.

        Of equal changes, those first in the model are taken. Raises UsageError where a parameter is
        not finite.
        """
        sparse = [(n, p.detach()) for n, p in model.named_parameters() if not self._dense(n)]
        if not sparse:
            raise UsageError("SparseTuning: every parameter is dense; there is nothing to choose.")
        moved_P = torch.cat([_distance(p, start.values[n]).flatten() for n, p in sparse])
        if not bool(moved_P.isfinite().all()):
            raise UsageError("SparseTuning: a parameter is NaN or infinite; training diverged.")
        before_P = torch.zeros_like(moved_P, dtype=torch.bool)
        if chosen is not None:
            before_P = torch.cat([chosen[n].to(moved_P.device).flatten() for n, _ in sparse])
        whole = round(self.density * len(moved_P))
        more = min(-(-whole // self.iterations), whole - int(before_P.sum()))
        if more < 1:
            raise UsageError(
                f"SparseTuning: {self.density} of {len(moved_P)} numbers leaves none to choose; "
                "give a larger density, or call select once per iteration."
            )
        order = moved_P.masked_fill(before_P, -1.0).sort(descending=True, stable=True).indices
        before_P[order[:more]] = True
        parts = torch.split(before_P, [p.numel() for _, p in sparse])
        return {n: part.view(p.shape) for (n, p), part in zip(sparse, parts, strict=True)}

    def held(self, model: nn.Module, masks: Masks, optimiser: Optimizer | None = None) -> Held:
        """Return the context in which the numbers chosen, and dense parameters, are trained."""
        return Held(model, {**masks}, optimiser)

    def change(self, model: nn.Module, start: Start, masks: Masks) -> SparseChange:
        """Return what training changed. Raises UsageError where numbers beside the masks moved."""
        at, by, whole, shapes = {}, {}, {}, {}
        for name, parameter in model.named_parameters():
            now, before = parameter.detach(), start.values[name]
            if self._dense(name):
                whole[name] = now.cpu().clone()
                continue
            mask = masks[name].to(now.device)
            if bool((now[~mask] != before[~mask]).any()):
                raise UsageError(
                    f"SparseTuning: {name!r} changed where it was not chosen; rewind before the "
                    "last round, and train inside of `held` with the optimiser given."
                )
            if bool(mask.any()):
                at[name] = mask.flatten().nonzero().squeeze(1).cpu()
                by[name] = (now[mask] - before[mask]).cpu()
                shapes[name] = tuple(parameter.shape)
        return SparseChange(at, by, whole, shapes, start.base, self)

    def _dense(self, name: str) -> bool:
        return any(glob(name, dense) for dense in self.dense)


def compose(
    model: nn.Module, changes: Sequence[SparseChange], weights: Sequence[float] | None = None
) -> None:
    """Add changes to the base they were trained from, in place: base + sum of weight * change.

    All at once, as a changed model is no base any more. Dense parameters are those of the last
    change that has them. weights: 1 each without them. Sums are formed in float64.
    Raises DataError where the model is another base.
    """
    weights = [1.0] * len(changes) if weights is None else list(weights)
    if not changes or len(weights) != len(changes):
        raise UsageError(f"compose: {len(changes)} changes and {len(weights)} weights were given.")
    parameters = dict(model.named_parameters())
    for change in changes:
        own = fingerprint(model, [n for n in parameters if change.settings._dense(n)])
        if own != change.base:
            raise DataError(
                f"compose: a change is of another base: its fingerprint is {change.base[:12]}…, "
                f"this model's is {own[:12]}…. Give the base that it was trained from, unchanged."
            )
    totals: dict[str, Tensor] = {}
    for change, weight in zip(changes, weights, strict=True):
        for name, at_K in change.at.items():
            parameter = parameters[name]
            total_P = totals.setdefault(name, parameter.detach().double().flatten())
            total_P[at_K.to(total_P.device)] += weight * change.by[name].to(total_P)
    with torch.no_grad():
        for name, total_P in totals.items():
            parameters[name].copy_(total_P.view_as(parameters[name]))
        for change in changes:
            for name, value in change.whole.items():
                if name in parameters:
                    parameters[name].copy_(value)


def save_sparse(path: str | Path, change: SparseChange) -> None:
    """Write a change into one safetensors file, atomically: 1 to 4 bytes for each index.

    Raises RunError where it cannot be written.
    """
    import safetensors.torch

    tensors = {f"whole/{name}": value.contiguous() for name, value in change.whole.items()}
    for name, at_K in change.at.items():
        tensors[f"gaps/{name}"] = _small(torch.diff(at_K, prepend=at_K.new_full((1,), -1)) - 1)
        tensors[f"by/{name}"] = change.by[name].contiguous()
    about = {
        "format": FORMAT,
        "base": change.base,
        "shapes": change.shapes,
        "settings": {
            "density": change.settings.density, "iterations": change.settings.iterations,
            "dense": change.settings.dense, "l1": change.settings.l1,
        },
    }  # fmt: skip
    write_atomic(Path(path), safetensors.torch.save(tensors, {"polytask": json.dumps(about)}))


def load_sparse(path: str | Path) -> SparseChange:
    """Return the change that `save_sparse` wrote. Raises DataError where the file holds none."""
    path = Path(path)
    metadata, tensors = read_tensors(path)
    try:
        about = json.loads(metadata["polytask"])
        form, base, shapes, raw = (about[k] for k in ("format", "base", "shapes", "settings"))
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{path} holds no change that `save_sparse` wrote.") from None
    if form != FORMAT:
        raise DataError(f"{path} has the format {form}; this polytask reads {FORMAT}. Update it.")
    at, by = {}, {}
    for name, shape in shapes.items():
        if not {f"gaps/{name}", f"by/{name}"} <= tensors.keys():
            raise DataError(f"{path} lacks the change of {name!r}; it is damaged.")
        at[name] = (tensors[f"gaps/{name}"].long() + 1).cumsum(0) - 1
        by[name] = tensors[f"by/{name}"]
        if len(at[name]) != len(by[name]) or int(at[name][-1]) >= torch.Size(shape).numel():
            raise DataError(f"{path}: the indices of {name!r} do not fit its shape; it is damaged.")
    whole = {n.removeprefix("whole/"): v for n, v in tensors.items() if n.startswith("whole/")}
    settings = SparseTuning(**{**raw, "dense": tuple(raw["dense"])})
    return SparseChange(at, by, whole, {n: tuple(s) for n, s in shapes.items()}, base, settings)


def _distance(now: Tensor, before: Tensor) -> Tensor:
    """Return |now - before|, of 32 bits at least."""
    wide = torch.promote_types(now.dtype, torch.float32)
    return (now.to(wide) - before.to(wide)).abs()


def _small(gaps_K: Tensor) -> Tensor:
    """Return the same numbers in the smallest unsigned type that holds them."""
    most = int(gaps_K.max())
    for dtype in (torch.uint8, torch.uint16, torch.uint32):
        if most <= torch.iinfo(dtype).max:
            return gaps_K.to(dtype)
    return gaps_K
