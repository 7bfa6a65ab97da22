"""Checkpoints: tensors in safetensors, the rest in JSON, each written whole or not at all.

`checkpoint.json` names the tensors' file and its SHA-256, and is written last: a kill at any
moment leaves the old checkpoint or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
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
    content = pack(tensors)
    file = folder / f"checkpoint-{step}.safetensors"
    write_atomic(file, content)
    digest = hashlib.sha256(content).hexdigest()
    write_json(folder / NAME, {"file": file.name, "sha256": digest, "step": step, "state": state})
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the folder's checkpoint, None where it has none. A damaged one raises RunError."""
    if not (folder / NAME).exists():
        return None
    entry = read_json(folder / NAME)
    mend = f"Delete {folder / NAME} to begin this run again."
    try:
        file, digest, state = folder / entry["file"], entry["sha256"], entry["state"]
    except (TypeError, KeyError) as error:
        raise RunError(f"{folder / NAME} is not a checkpoint: {error} is missing. {mend}") from None
    return unpack(file, digest, mend), state


def remove(folder: Path) -> None:
    """Remove the checkpoint of a run that is done: JSON first, so that half of it is none."""
    (folder / NAME).unlink(missing_ok=True)
    for old in folder.glob("checkpoint-*.safetensors"):
        old.unlink(missing_ok=True)


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as safetensors; views and shared storage are written out."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return bytes(safetensors.torch.save(plain))


def unpack(file: Path, sha256: str | None, mend: str) -> dict[str, Tensor]:
    """Return the tensors of a file whose checksum is `sha256`; RunError, with `mend`, if not."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}. {mend}") from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise RunError(
            f"{file} is damaged: its SHA-256 is {found[:12]}…, {sha256[:12]}… was written. {mend}"
        )
    try:
        return dict(safetensors.torch.load(content))
    except SafetensorError as error:
        raise RunError(f"{file} is no safetensors file: {error}. {mend}") from None


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
