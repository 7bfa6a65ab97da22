"""Checkpoints: tensors in safetensors, the rest in JSON, each written whole or not at all.

`checkpoint.json` names the tensors' file and is written last: a kill at any moment leaves the old
checkpoint or the new one. Every file of tensors holds a SHA-256 of them in its metadata, so a
flipped byte is found. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from polytask.errors import RunError
from polytask.records import read_json, write_atomic, write_json

NAME = "checkpoint.json"


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint of update number `step` and remove the one before."""
    file = folder / f"checkpoint-{step}.safetensors"
    write_atomic(file, pack(tensors))
    write_json(folder / NAME, {"file": file.name, "step": step, "state": state})
    _sweep(folder, file)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the folder's checkpoint, None where it has none. A damaged one raises RunError."""
    if not (folder / NAME).exists():
        return None
    entry = read_json(folder / NAME)
    mend = f"Delete {folder / NAME} to begin this run again."
    try:
        file, state = folder / entry["file"], dict(entry["state"])
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{folder / NAME} is not a checkpoint ({error!r}). {mend}") from None
    return unpack(file, mend), state


def remove(folder: Path) -> None:
    """Remove the checkpoint of a run that is done: JSON first, so that half of it is none."""
    (folder / NAME).unlink(missing_ok=True)
    _sweep(folder, None)


def _sweep(folder: Path, kept: Path | None) -> None:
    """Remove tensors of other checkpoints, and what a kill in the middle of a write left."""
    for pattern in ("checkpoint-*.safetensors", ".*.part-*"):
        for old in folder.glob(pattern):
            if old != kept:
                old.unlink(missing_ok=True)


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as safetensors; views and shared storage are written out."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return bytes(safetensors.torch.save(plain, metadata={"sha256": _digest(plain)}))


def unpack(file: Path, mend: str) -> dict[str, Tensor]:
    """Return the tensors of a file that `pack` made; RunError, ending in `mend`, if damaged."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}. {mend}") from None
    try:
        tensors = dict(safetensors.torch.load(content))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:  # torch's, of a shape
        raise RunError(f"{file} is damaged, no safetensors file: {error}. {mend}") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    written, found = header.get("__metadata__", {}).get("sha256", "none"), _digest(tensors)
    if found != written:
        raise RunError(
            f"{file} is damaged: the SHA-256 of its tensors is {found[:12]}…, {written[:12]}… was "
            f"written. {mend}"
        )
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as flat tensors, named `<parameter number>/<entry>`."""
    return {
        f"{i}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, entries in optimiser.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned; the settings stay as they were built."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        i, name = key.split("/", 1)
        state.setdefault(int(i), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors named `<prefix>/...`, without the prefix."""
    start = f"{prefix}/"
    return {n[len(start) :]: v for n, v in tensors.items() if n.startswith(start)}


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with `<prefix>/` before their names."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def numbered(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors as `<prefix>/<number>`, from 0."""
    return named(prefix, {str(i): tensor for i, tensor in enumerate(tensors)})
