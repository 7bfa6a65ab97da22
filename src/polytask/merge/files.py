"""Models as named tensors that are read stretch by stretch: files, folders, modules, state dicts.

Nothing is unpickled. Bytes go by `preadv` into a buffer that the caller reuses, or are looked at
where the system maps them (see `mapped`); what that needs does not depend on the model's size.

Shapes: P = elements of a stretch; 2 = the two that are compared.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from polytask.errors import DataError, UsageError
from polytask.merge.headers import Entry, read_header
from polytask.merge.mapped import Mapped, Trails, cut_short
from polytask.merge.window import Arena, Window
from polytask.records import read_json

Source = str | Path | nn.Module | Mapping[str, Tensor]
"""What a model may be given as: a file or folder, a module, a state dict."""

INDEX = ".safetensors.index.json"
COMPARED = 1 << 18
"""Bytes of two tensors that are compared at once."""

OPEN_FILES = 64
"""Of one model at a time; a process may have 1,024 in most systems."""


class Model(Protocol):
    """Named tensors, and how to read a stretch of one."""

    @property
    def label(self) -> str:
        """What errors call it."""

    @property
    def folder(self) -> Path | None:
        """Where its configuration and tokenizer may lie; None for a model in memory."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The tensors in the order they lie in."""

    def read(self, name: str, start: int, out: Window) -> None:
        """Fill `out`, of the tensor's dtype, with elements from `start` on. Raises DataError."""

    def place(self, name: str, start: int, count: int, trails: Trails) -> int | None:
        """Return where so many elements from `start` on lie in memory; None where they do not."""


class FileModel:
    """A model in one or several safetensors files."""

    def __init__(self, label: str, folder: Path, files: Mapping[Path, Mapping[str, Entry]]) -> None:
        self.label, self.folder = label, folder
        self._files = tuple(files)
        self.entries: dict[str, Entry] = {}
        self._file_of: dict[str, int] = {}
        self._open: dict[int, _Open] = {}
        for number, (path, entries) in enumerate(files.items()):
            for name, entry in entries.items():
                if name in self.entries:
                    first = self._files[self._file_of[name]]
                    raise DataError(
                        f"{label}: tensor {name!r} lies in {first.name} and {path.name}."
                    )
                self.entries[name] = entry
                self._file_of[name] = number

    @property
    def files(self) -> tuple[Path, ...]:
        """The files its tensors lie in."""
        return self._files

    def read(self, name: str, start: int, out: Window) -> None:
        """Fill `out` from the file; see `Model`."""
        entry = self.entries[name]
        at = entry.start + start * entry.dtype.itemsize
        self._fill(self._file_of[name], name, at, out.bytes)

    def place(self, name: str, start: int, count: int, trails: Trails) -> int | None:
        """Return where elements lie in memory; see `Model`."""
        number, entry = self._file_of[name], self.entries[name]
        begin = entry.start + start * entry.dtype.itemsize
        end = begin + count * entry.dtype.itemsize
        try:
            file = self._opened(number)  # held here: another thread may let it go meanwhile
            mapped = file.mapped
            return None if mapped is None else mapped.place(self, name, begin, end, trails)
        except OSError as error:
            raise _unread(self._files[number], name, error) from None

    def _fill(self, number: int, name: str, at: int, view: memoryview) -> None:
        path = self._files[number]
        try:
            file = self._opened(number)
            while view:
                got = os.preadv(file.handle, [view], at)
                if got == 0:
                    raise cut_short(path, name)
                view, at = view[got:], at + got
        except OSError as error:
            raise _unread(path, name, error) from None

    def _opened(self, number: int) -> _Open:
        found = self._open.get(number)
        if found is None:
            found = _Open(self._files[number])
            while len(self._open) >= OPEN_FILES:
                # A file that another thread is reading stays open until that thread lets it go.
                with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                    del self._open[next(iter(self._open))]
            self._open[number] = found
        return found


class _Open:
    """A file, open until nobody holds it. mapped: None where the system cannot map it."""

    def __init__(self, path: Path) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._path = path

    @functools.cached_property
    def mapped(self) -> Mapped | None:
        try:
            return Mapped(self._path, self.handle)
        except (OSError, OverflowError, ValueError):
            return None

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


class MemoryModel:
    """A module's tensors, or a state dict."""

    folder = None

    def __init__(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        self.label = label
        self._flat: dict[str, Tensor] = {}
        self.entries: dict[str, Entry] = {}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise UsageError(
                    f"{label}: {name!r} is a {type(value).__name__}; give a state dict of tensors."
                )
            self._flat[name] = value.detach().reshape(-1)  # a view, where it is contiguous
            self.entries[name] = Entry(value.dtype, tuple(value.shape), 0, value.nbytes)

    def read(self, name: str, start: int, out: Window) -> None:
        """Fill `out` from memory; see `Model`."""
        out.values_P.copy_(self._flat[name][start : start + out.values_P.numel()])

    def place(self, name: str, start: int, count: int, trails: Trails) -> int | None:
        """Return where elements lie in memory; see `Model`."""
        flat_P = self._flat[name]
        if not flat_P.is_cpu or flat_P.stride() != (1,) or flat_P.is_neg():
            return None
        return flat_P.data_ptr() + start * flat_P.itemsize


def _unread(path: Path, name: str, error: OSError) -> DataError:
    return DataError(f"{path}: tensor {name!r} cannot be read: {error.strerror or error}.")


def open_model(source: Source, label: str) -> Model:
    """Return a model ready to be read; `label` stands for one in memory, a path for itself.

    Raises UsageError where there is no such model, DataError where its files are damaged.
    """
    if isinstance(source, nn.Module):
        return MemoryModel(label, source.state_dict())
    if isinstance(source, Mapping):
        return MemoryModel(label, source)
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"{label} is a {type(source).__name__}; give a folder, a safetensors file, a module or "
            "a state dict."
        )
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UsageError(
            f"{path} does not exist; give a folder or a safetensors file on this machine (models "
            "are not downloaded)."
        )
    if path.name.endswith(INDEX):
        return _sharded(str(path), path)
    if path.suffix != ".safetensors":
        raise _pickled(path)
    return FileModel(str(path), path.parent, {path: read_header(path)[0]})


def _folder(folder: Path) -> FileModel:
    """Return the model of a Hugging Face folder, or of one with a single safetensors file."""
    found = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    indexes = [name for name in found if name.endswith(INDEX)]
    files = [name for name in found if name.endswith(".safetensors")]
    if "adapter_config.json" in found:
        raise UsageError(
            f"{folder} holds an adapter, not a whole model. Adapters are merged with each other by "
            "merge_adapter_folders; to merge whole models, put each into its model first."
        )
    if len(indexes) == 1 and "model.safetensors" in files:
        raise UsageError(
            f"{folder} holds both {indexes[0]} and model.safetensors; give the path of the one "
            "that is meant."
        )
    if len(indexes) == 1:
        return _sharded(str(folder), folder / indexes[0])
    if not indexes and len(files) == 1:
        return FileModel(
            str(folder), folder, {folder / files[0]: read_header(folder / files[0])[0]}
        )
    pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if not files and not indexes:
        if pickled:
            raise _pickled(folder / pickled[0])
        raise UsageError(f"{folder} holds no safetensors file; is it the folder of a model?")
    raise UsageError(
        f"{folder} holds {len(files)} safetensors files and {len(indexes)} index files; give the "
        f"path of the index (…{INDEX}) or of the one file that is meant."
    )


def _pickled(path: Path) -> UsageError:
    return UsageError(
        f"{path} is no safetensors file, and nothing else is read: unpickling may run any code. "
        "Where you trust the file, convert it once: "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')."
    )


def _sharded(label: str, index: Path) -> FileModel:
    """Return the model that an index describes: all its tensors, each in the file it names."""
    raw = read_json(index)
    where = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(where, dict) or not where:
        raise DataError(f"{index} has no weight_map; it is no index of safetensors files.")
    files: dict[Path, dict[str, Entry]] = {}
    for name in dict.fromkeys(where.values()):
        path = _beside(index, name)
        if not path.exists():
            raise DataError(f"{index} names {name}, which is missing; fetch the model again.")
        files[path] = read_header(path)[0]
    for path, entries in files.items():
        file = path.name
        listed = {name for name, at in where.items() if at == file}
        if listed != entries.keys():
            name = sorted(listed ^ entries.keys())[0]
            if name in listed:
                raise DataError(f"{index} says that {path.name} holds {name!r}; it does not.")
            raise DataError(f"{path} holds {name!r}, which {index.name} does not place there.")
    return FileModel(label, index.parent, files)


def _beside(index: Path, name: object) -> Path:
    """Return the file of that plain name beside the index; anything that leads away is refused.

    Links are followed: caches of downloaded models are made of them.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise DataError(
            f"{index} names the file {name!r}; a shard's name must be that of a file beside it."
        )
    return index.parent / name


def unequal(models: Sequence[tuple[Model, str]], arena: Arena) -> int | None:
    """Return the number of the first tensor that differs from the first one in any bit.

    models: with the name of the tensor in each. None where all agree.
    """
    (first, at), *others = models
    mine = first.entries[at]
    size = mine.dtype.itemsize
    for number, (model, name) in enumerate(others, 1):
        other = model.entries[name]
        if (mine.dtype, mine.shape) != (other.dtype, other.shape):
            return number
        for start in range(0, mine.numel, COMPARED // size):
            count = min(COMPARED // size, mine.numel - start)
            pair_2P, (left, right) = arena.rows(2, count, mine.dtype)
            first.read(at, start, left)
            model.read(name, start, right)
            bits_2P = pair_2P.view(torch.uint8)
            if not torch.equal(bits_2P[0], bits_2P[1]):
                return number
    return None
