"""One file for all tasks: which base, which methods where, every adapter, and the heads.

A safetensors file. Its tensors are those of `Adapted.adapter_state()`, and of each task's head as
`heads./TASK.NAME` (with %2E for a dot in the task's name); its metadata says the rest in JSON. It
holds nothing of the frozen base but a fingerprint: the SHA-256 of its parameters' names, types,
shapes and bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt.base import Method
from polytask.adapt.engine import (
    Adapted,
    At,
    Part,
    build_parts,
    left_as_it_was,
    off_again,
    plans_of,
)
from polytask.adapt.where import Where
from polytask.catalog import METHODS, load
from polytask.errors import DataError, UsageError
from polytask.records import write_atomic

FORMAT = 1


def fingerprint(model: nn.Module, without: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a model's parameters, in order of their names; buffers are left out.

    without: names of parameters left out, as those that are trained.
    """
    digest = hashlib.sha256()
    left = set(without)
    for name, parameter in sorted(model.named_parameters()):
        if name not in left:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            plain = parameter.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapted(
    path: str | Path, adapted: Adapted, heads: Mapping[str, nn.Module] | None = None
) -> None:
    """Write the adapters of all tasks, and their heads, into one file, atomically.

    heads: task -> module. Raises UsageError where a task is folded into the base, RunError where
    the file cannot be written.
    """
    import safetensors.torch

    if adapted.folded is not None:
        raise UsageError(f"{adapted.folded!r} is folded into the base; unfold() before saving.")
    tensors = adapted.adapter_state()
    for task, head in (heads or {}).items():
        adapted.index([task])  # raises where there is no such task
        tensors |= {f"{_of_head(task)}{n}": v for n, v in head.state_dict().items()}
    trained = [n for n, p in adapted.base.named_parameters() if p.requires_grad]
    about = {
        "format": FORMAT,
        "tasks": adapted.names,
        "base": fingerprint(adapted.base, trained),
        "trained": trained,
        "dtype": None if adapted.dtype is None else str(adapted.dtype).removeprefix("torch."),
        "parts": [_described(part) for part in adapted.parts],
    }
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(held, {"polytask": json.dumps(about)})
    write_atomic(Path(path), content)


def load_adapted(
    path: str | Path,
    model: nn.Module,
    heads: Mapping[str, nn.Module] | None = None,
    method: Method | Sequence[At] | None = None,
) -> Adapted:
    """Return the model adapted as the file says.

    model: the base the adapters were trained on, not adapted. heads: modules to fill with the heads
    of these tasks; the others stay in the file. method: with its places, where it is none of
    polytask's own; places are the file's unless given with `At`.
    Raises DataError where the file is missing, damaged, of another base, or does not hold what its
    methods need; UsageError where something given does not fit.
    """
    path = Path(path)
    about, tensors = read_file(path)
    trained = about["trained"]
    own = fingerprint(model, trained)
    if own != about["base"]:
        raise DataError(
            f"{path} holds adapters for another base: its fingerprint is {about['base'][:12]}…, "
            f"this model's is {own[:12]}…. Load the weights they were trained on first."
        )
    names, dtype = about["tasks"], about["dtype"]
    plans = plans_of(method, None) if method is not None else _plans(path, about["parts"])
    wheres = [_where(part["where"]) for part in about["parts"]]
    if len(plans) != len(wheres):
        raise UsageError(f"{path} holds {len(wheres)} methods; {len(plans)} were given.")
    plans = tuple(
        At(plan.method, where if plan.where is None else plan.where)
        for plan, where in zip(plans, wheres, strict=True)
    )
    kept = getattr(torch, dtype) if dtype else None
    with left_as_it_was(model):
        # Built for one task, as the values drawn are replaced: a thousand tasks load in no more
        # time than reading takes.
        adapted = Adapted(model, build_parts(model, plans, 1, 0, None, kept), names, kept)
        with off_again(adapted):
            _fill(path, adapted, tensors, trained)
            for task, head in (heads or {}).items():
                _fill_head(path, task, head, tensors)
    return adapted


def _described(part: nn.Module) -> dict[str, Any]:
    assert isinstance(part, Part)
    kind = type(part.method)
    target = f"{kind.__module__}:{kind.__qualname__}"
    known = next((m.name for m in METHODS if m.room == "adapt" and m.target == target), "")
    settings = {
        field.name: getattr(part.method, field.name)
        for field in dataclasses.fields(part.method)  # type: ignore[arg-type]
        if field.init
    }
    if not all(_plain(value) for value in settings.values()):
        known, settings = "", {}
    return {
        "method": known,
        "name": kind.__name__,
        "settings": settings,
        "where": dataclasses.asdict(part.where),
    }


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _plans(path: Path, parts: Sequence[Mapping[str, Any]]) -> tuple[At, ...]:
    plans = []
    for part in parts:
        known = {m.name: m for m in METHODS if m.room == "adapt"}
        name, settings = part["method"], {k: _frozen(v) for k, v in part["settings"].items()}
        if name not in known:
            raise UsageError(
                f"{path} was made with {part['name']}, which the catalog does not build; give it: "
                "load_adapted(path, model, method=...)."
            )
        try:
            method = load(known[name].target)(**settings)
            if not isinstance(method, Method):
                raise TypeError(f"it makes a {type(method).__name__}")
            plans.append(At(method))
        except TypeError as error:
            raise DataError(
                f"{path} was written by another version of polytask: {name} does not take its "
                f"settings ({error})."
            ) from None
    return tuple(plans)


def _where(raw: Mapping[str, Any]) -> Where:
    return Where(**{name: _frozen(value) for name, value in raw.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a safetensors file's metadata and tensors. Raises DataError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}.") from None


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says of its adapters, and its tensors.

    Raises DataError where it is missing, damaged, or none that `save_adapted` wrote.
    """
    metadata, tensors = read_tensors(path)
    try:
        about = json.loads(metadata["polytask"])
        wanted = {"format", "tasks", "base", "trained", "dtype", "parts"}
        if not isinstance(about, dict) or not wanted <= about.keys():
            raise KeyError("polytask")
    except (KeyError, ValueError):
        raise DataError(f"{path} holds no adapters that `save_adapted` wrote.") from None
    if about["format"] != FORMAT:
        raise DataError(
            f"{path} has the format {about['format']}; this polytask reads {FORMAT}. Update it."
        )
    return about, tensors


def _fill(
    path: Path, adapted: Adapted, tensors: Mapping[str, Tensor], trained: Sequence[str]
) -> None:
    many = len(adapted.names)
    own = {f"parts.{name}" for name in adapted.parts.state_dict()}
    own |= {f"base.{name}" for name in trained}
    held = {name for name in tensors if not name.startswith("heads./")}
    for missing in sorted(own - held):
        raise DataError(f"{path} lacks the tensor {missing!r} that its methods need.")
    for extra in sorted(held - own):
        raise DataError(f"{path} holds {extra!r}, which none of its methods has.")
    for prefix, module in adapted.parts.named_modules(prefix="parts"):
        stacked = getattr(module, "per_task", ())
        values = (*module._parameters.items(), *module._buffers.items())
        for name, value in values:
            full = f"{prefix}.{name}"
            if value is None or full not in tensors:
                continue
            shape = (many, *value.shape[1:]) if name in stacked else tuple(value.shape)
            loaded = _fitting(path, full, tensors[full], shape, value.dtype)
            # Copied: a file's tensors are not aligned in memory, and products of such round in
            # another way than those of the model that was saved.
            value.data = loaded.to(value.device, copy=True)
    parameters = dict(adapted.base.named_parameters())
    for name in trained:
        value = parameters[name]
        given = _fitting(path, f"base.{name}", tensors[f"base.{name}"], value.shape, value.dtype)
        value.data.copy_(given)
        value.requires_grad_(True)


def _fill_head(path: Path, task: str, head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    prefix = _of_head(task)
    held = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    own = head.state_dict()
    if held.keys() != own.keys():
        differ = sorted(held.keys() ^ own.keys())
        raise DataError(
            f"{path}: the head of {task!r} there and the one given differ in "
            f"{', '.join(differ) if held else 'everything: it holds none'}."
        )
    for name, value in own.items():
        value.copy_(_fitting(path, prefix + name, held[name], value.shape, value.dtype))


def _of_head(task: str) -> str:
    """Return what the names of a head's tensors begin with; any text is the name of a task."""
    return f"heads./{task.replace('%', '%25').replace('.', '%2E')}."


def _fitting(
    path: Path, name: str, value: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    if tuple(value.shape) != tuple(shape) or value.dtype != dtype:
        raise DataError(
            f"{path}: {name!r} is {value.dtype} of shape {tuple(value.shape)}; its method needs "
            f"{dtype} of shape {tuple(shape)}. The file is damaged, or mixes what belongs to "
            "several models."
        )
    return value
