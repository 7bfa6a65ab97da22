"""Folders of PEFT adapters in, one folder of a PEFT adapter out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.merge.adapters import AdapterMerge
from polytask.merge.checksums import check_sums
from polytask.merge.companions import RECIPE
from polytask.merge.files import FileModel, Model, Source, open_model
from polytask.merge.headers import read_header
from polytask.merge.output import check_free
from polytask.merge.peft_adapters import Adapter, merge_adapters, read_adapter, write_adapter
from polytask.merge.progress import Progress, Silent
from polytask.merge.window import window
from polytask.peft_folders import CONFIG, WEIGHTS, check_folder, write_folder
from polytask.records import read_json


class _Tensors(Mapping[str, Tensor]):
    """A model's tensors by name, each read when it is asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        entry = self._model.entries[name]
        values_P = torch.empty(entry.shape, dtype=entry.dtype).reshape(-1)
        if len(values_P):
            self._model.read(name, 0, window(values_P))
        if not bool(values_P.isfinite().all()):
            raise DataError(
                f"Tensor {name!r} of {self._model.label} holds values that are NaN or infinite. "
                "Leave that model out, or save it again."
            )
        return values_P.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.entries)

    def __len__(self) -> int:
        return len(self._model.entries)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def load_adapter(folder: Path, base: Mapping[str, Tensor] | None = None) -> Adapter:
    """Return the adapter of a PEFT folder. Raises UsageError where it is none, or not of LoRA."""
    return _read(_weights(folder), folder, base)


def _weights(folder: Path) -> FileModel:
    check_folder(folder)
    return FileModel(str(folder), folder, {folder / WEIGHTS: read_header(folder / WEIGHTS)[0]})


def _read(weights: FileModel, folder: Path, base: Mapping[str, Tensor] | None) -> Adapter:
    return read_adapter(read_json(folder / CONFIG), _Tensors(weights), base, str(folder))


@dataclass(frozen=True)
class LayerRank:
    """A merged layer. rank: that it has now. of: that of all its adapters side by side.
    lost: share of its length that reducing the rank lost, in [0, 1]; see `MergedChange`."""

    rank: int
    of: int
    lost: float


@dataclass(frozen=True)
class AdapterWritten:
    """What a merge of adapters left behind. tensors: of the file, factors and others."""

    out: Path
    adapters: tuple[str, ...]
    layers: Mapping[str, LayerRank]
    tensors: int
    seconds: float


@dataclass(frozen=True)
class AdapterJob:
    """A merge of PEFT folders into one; `run` does it.

    base: the base model, which DoRA needs, and tensors trained as a whole where its difference does
        not cancel. dtype: of the result. recipe: a text to write with it, "" for none.
    checksums: check files against the SHA-256 beside them.
    """

    folders: tuple[Path, ...]
    method: AdapterMerge
    base: Source | None = None
    dtype: torch.dtype = torch.float32
    recipe: str = ""
    checksums: bool = True

    def run(self, out: Path, progress: Progress | None = None) -> AdapterWritten:
        """Write the merged adapter to `out`, a folder that appears when it is complete.

        Raises UsageError where `out` exists, where an adapter needs what is not here, or is of a
        kind that cannot be merged; DataError for damaged files; RunError where a value leaves the
        dtype's range or the result cannot be written.
        """
        begun = time.monotonic()
        progress = progress or Silent()
        if out.suffix == ".safetensors":
            raise UsageError(f"{out} is a file's name; an adapter is a folder, give one.")
        check_free(out)
        base = None if self.base is None else open_model(self.base, "the base")
        weights = [_weights(folder) for folder in self.folders]
        if self.checksums:
            read = weights if base is None else [*weights, base]
            check_sums([model for model in read if isinstance(model, FileModel)], progress)
        tensors = None if base is None else _Tensors(base)
        adapters = [_read(*pair, tensors) for pair in zip(weights, self.folders, strict=True)]
        merged, errors = merge_adapters(adapters, self.method, tensors, progress)
        config, values = write_adapter(merged, tensors, self.dtype)
        self._write(out, config, values)
        layers = {
            layer: LayerRank(
                rank=change.rank,
                of=sum(a.changes[layer].rank for a in adapters if layer in a.changes),
                lost=errors.get(layer, 0.0),
            )
            for layer, change in merged.changes.items()
        }
        labels = tuple(map(str, self.folders))
        return AdapterWritten(out, labels, layers, len(values), time.monotonic() - begun)

    def _write(self, out: Path, config: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        import safetensors.torch  # not every merge needs it

        content = safetensors.torch.save(dict(values), metadata={"format": "pt"})
        write_folder(out, config, content, {RECIPE: self.recipe.encode()} if self.recipe else None)


def merge_adapter_folders(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: AdapterMerge,
    base: Source | None = None,
) -> dict[str, float]:
    """Write the merged adapter of several PEFT folders, and return what reducing its rank lost.

    out: a new folder; see `AdapterJob` for it and the base.
    Returns the relative error of every layer whose rank was reduced, see `MergedChange`.
    """
    done = AdapterJob(tuple(map(Path, folders)), method, base).run(Path(out))
    return {name: layer.lost for name, layer in done.layers.items() if layer.lost}
