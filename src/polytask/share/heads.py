"""Heads that are alike run as one: a batched product per layer, whatever their number.

Alike are heads made of plain `nn.Linear` of the same sizes with parameterless activations between
them. They stay modules of their own, in `state_dict`, for optimisers and for whoever replaces
one. Every other head is called as the module it is.

Shapes: A = asked tasks, R = rows, W = width of the features, I, O = inputs and outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.share.experts import own, product
from polytask.share.mixture import Mixture

Form = tuple[object, ...]
"""What two heads must have in common to run as one."""

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def with_tower(head: nn.Module, width: int, towers: Sequence[int]) -> nn.Module:
    """Return the head behind a tower of linear layers with ReLU, from `width` on.

    head: for features of width towers[-1].
    """
    layers: list[nn.Module] = []
    for before, after in zip((width, *towers), towers, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, head) if layers else head


def each(
    heads: Mapping[str, nn.Module],
    given: Tensor | Mixture,
    form: Callable[[Tensor], Tensor],
    *,
    apart: bool,
) -> dict[str, Tensor]:
    """Return every head's output for its own features; those that are alike run as one.

    given: (A, R, W), or of what it is to be mixed.
    form: rows (R, W) -> the same in the shape a head takes and gives, such as a sequence.
    apart: call each head as the module it is, as heads that read a "map" are.
    """
    outputs: dict[str, Tensor] = {}
    # One head is quicker as the module it is.
    groups = alike(heads) if len(heads) > 1 and not apart else [((task,), False) for task in heads]
    if isinstance(given, Mixture) and not all(as_one for _, as_one in groups):
        given = given.rows()
    position = {task: a for a, task in enumerate(heads)}
    for group, as_one in groups:
        at = [position[task] for task in group]
        if not as_one:
            assert isinstance(given, Tensor)
            outputs[group[0]] = heads[group[0]](form(given[at[0]]))
            continue
        mine = given if len(at) == len(heads) else _of(given, at)
        together_ARO = together([heads[task] for task in group], mine)
        for task, output in zip(group, together_ARO.unbind(), strict=True):
            outputs[task] = form(output)
    return outputs


def alike(heads: Mapping[str, nn.Module]) -> list[tuple[tuple[str, ...], bool]]:
    """Return the tasks in groups, and of each whether its heads run as one."""
    groups: dict[Form, list[str]] = {}
    alone: list[tuple[tuple[str, ...], bool]] = []
    for task, head in heads.items():
        form = _form(head)
        if form is None:
            alone.append(((task,), False))
        else:
            groups.setdefault(form, []).append(task)
    return [(tuple(tasks), True) for tasks in groups.values()] + alone


def together(heads: Sequence[nn.Module], features: Tensor | Mixture) -> Tensor:
    """Return the outputs (A, R, O) of heads that are alike, for (A, R, W)."""
    layers = [_layers(head) for head in heads]
    rows = features
    for same in zip(*layers, strict=True):
        first = same[0]
        if not isinstance(first, nn.Linear):
            rows = first(_rows(rows))
            continue
        weight_AIO = _stacked([own(layer, "weight") for layer in same]).mT
        bias_AO = None
        if first.bias is not None:
            bias_AO = _stacked([own(layer, "bias") for layer in same])
        if isinstance(rows, Mixture) and first.out_features == 1:
            made_AR1 = rows.numbers(weight_AIO)
            rows = made_AR1 if bias_AO is None else made_AR1 + bias_AO[:, None]
        else:
            rows = product(_rows(rows), weight_AIO, bias_AO)
    return _rows(rows)


def _rows(given: Tensor | Mixture) -> Tensor:
    return given.rows() if isinstance(given, Mixture) else given


def _of(given: Tensor | Mixture, at: list[int]) -> Tensor | Mixture:
    return given.of(at) if isinstance(given, Mixture) else given[at]


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _layers(head: nn.Module) -> list[nn.Module]:
    if type(head) is nn.Sequential:
        return [layer for part in head for layer in _layers(part)]
    return [head]


def _form(head: nn.Module) -> Form | None:
    if type(head) is nn.Sequential and not _hooked(head):
        parts = [_form(part) for part in head]
        return None if any(part is None for part in parts) else tuple(parts)
    if plain_linear(head):
        return (nn.Linear, head.in_features, head.out_features, head.bias is None)
    if type(head) in ELEMENTWISE and not _hooked(head):
        return (type(head), repr(head))
    return None


def plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether the head is its product and nothing else."""
    # Subclasses (parametrised, quantised, adapted) and hooked layers do more.
    return type(head) is nn.Linear and not _hooked(head)


def called(head: nn.Module, features: Tensor) -> Tensor:
    """Return one head's output; for a row a module's call would cost as much as the product."""
    if plain_linear(head):
        table = head._parameters
        return functional.linear(features, cast("Tensor", table["weight"]), table["bias"])
    output: Tensor = head(features)
    return output


def _hooked(head: nn.Module) -> bool:
    return bool(
        head._forward_hooks
        or head._forward_pre_hooks
        or head._backward_hooks
        or head._backward_pre_hooks
    )
