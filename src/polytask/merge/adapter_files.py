"""Folders of PEFT adapters in, one folder of a PEFT adapter out."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.adapters import AdapterMerge
from polytask.merge.files import FileModel, Model, Source, open_model
from polytask.merge.headers import read_header
from polytask.merge.peft_adapters import Adapter, merge_adapters, read_adapter, write_adapter
from polytask.merge.window import window
from polytask.records import read_json, write_atomic, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class _Tensors(Mapping[str, Tensor]):
    """A model's tensors by name, each read when it is asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        entry = self._model.entries[name]
        values_P = torch.empty(entry.shape, dtype=entry.dtype).reshape(-1)
        if len(values_P):
            self._model.read(name, 0, window(values_P))
        return values_P.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.entries)

    def __len__(self) -> int:
        return len(self._model.entries)


def load_adapter(folder: Path, base: Mapping[str, Tensor] | None = None) -> Adapter:
    """Return the adapter of a PEFT folder. Raises UsageError where it is none, or not of LoRA."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote, with "
                "safetensors."
            )
    weights = FileModel(str(folder), folder, {folder / WEIGHTS: read_header(folder / WEIGHTS)[0]})
    return read_adapter(read_json(folder / CONFIG), _Tensors(weights), base, str(folder))


def merge_adapter_folders(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: AdapterMerge,
    base: Source | None = None,
) -> dict[str, float]:
    """Write the merged adapter of several PEFT folders, and return what reducing its rank lost.

    out: a folder that does not exist yet; it appears when it is complete. base: the base model,
        which DoRA needs, and tensors trained as a whole where its difference does not cancel.
    Returns the relative error of every layer whose rank was reduced, see `MergedChange`.
    """
    target = Path(out)
    if target.exists():
        raise UsageError(f"{target} exists; give a folder that does not.")
    tensors = None if base is None else _Tensors(open_model(base, "the base"))
    adapters = [load_adapter(Path(folder), tensors) for folder in folders]
    merged, errors = merge_adapters(adapters, method, tensors)
    config, values = write_adapter(merged, tensors)
    import safetensors.torch  # not every merge needs it

    content = safetensors.torch.save(values, metadata={"format": "pt"})
    part = target.with_name(f".{target.name}.part-{secrets.token_hex(8)}")
    try:
        write_atomic(part / WEIGHTS, content)
        write_json(part / CONFIG, config)
        part.rename(target)
    except BaseException:  # Ctrl-C too must leave nothing behind
        shutil.rmtree(part, ignore_errors=True)
        raise
    return errors
