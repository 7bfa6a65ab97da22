"""The result: shards of a folder that gets its name when it is complete, or tensors in memory.

Until then it grows in a hidden folder beside, from which a merge that was killed goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from polytask.errors import PolytaskError, RunError, UsageError
from polytask.lock import LOCK, alone
from polytask.merge import journal
from polytask.merge.headers import Entry, header_of
from polytask.merge.window import Window
from polytask.records import write_json

SYNCED = 1 << 30
"""Bytes written between two marks in the journal that all before has reached the disk."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What systems say of a full disk."""

METADATA = {"format": "pt"}
"""Without it Hugging Face's loaders refuse a file."""


class Output(Protocol):
    """Where merged tensors go. Calls may come from several threads."""

    def done(self, name: str) -> bool:
        """Return whether an earlier process has finished this tensor."""

    def write(self, name: str, start: int, piece: Window) -> None:
        """Take elements of the flattened tensor from `start` on, in the tensor's dtype."""

    def finish(self, name: str) -> None:
        """Note that a tensor is whole."""


class Memory:
    """Tensors in memory, in `tensors`."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.tensors = {n: torch.empty(e.shape, dtype=e.dtype) for n, e in entries.items()}

    def done(self, name: str) -> bool:
        """Return False: nothing was here before."""
        return False

    def write(self, name: str, start: int, piece: Window) -> None:
        """Take elements of the flattened tensor from `start` on."""
        self.tensors[name].view(-1)[start : start + piece.values_P.numel()] = piece.values_P

    def finish(self, name: str) -> None:
        """Do nothing."""


class Unfinished(RunError):
    """What stopped a merge that can go on: a full disk, a name that was taken meanwhile."""


class Files:
    """Safetensors files that become `out` in the end; use through `files`."""

    def __init__(
        self, out: Path, part: Path, entries: Mapping[str, Entry], digest: str, most: int
    ) -> None:
        self._out, self._part = out, part
        self._entries: dict[str, Entry] = {}
        self._shard_of: dict[str, int] = {}
        self._handles: list[int] = []
        self._lock = threading.Lock()
        self._unsynced = 0
        self._journal: journal.Journal | None = None
        headers = []
        for number, names in enumerate(shards(entries, most)):
            header, placed = header_of(
                {name: (entries[name].dtype, entries[name].shape) for name in names}, METADATA
            )
            headers.append(header)
            self._entries |= placed
            self._shard_of |= dict.fromkeys(names, number)
        self._headers = headers
        self._digest = hashlib.sha256(b"".join([digest.encode(), *headers])).hexdigest()
        self._sizes = [len(header) for header in headers]
        for name, entry in self._entries.items():
            at = self._shard_of[name]
            self._sizes[at] = max(self._sizes[at], entry.stop)
        self.names = shard_names(len(headers))
        self._done: set[str] = set()

    def begin(self) -> None:
        """Go on where an earlier process was, or start afresh. Raises RunError, Unfinished."""
        kept = journal.read(self._part, self._digest)
        paths = [self._part / name for name in self.names]
        if kept is None or not all(
            p.exists() and p.stat().st_size == size
            for p, size in zip(paths, self._sizes, strict=True)
        ):
            kept = None
            for old in self._part.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        held = sum(p.stat().st_blocks * 512 for p in paths if p.exists())
        room = shutil.disk_usage(self._part).free
        if (needed := sum(self._sizes) - held) > room:
            raise Unfinished(
                f"The result needs {needed:,} bytes more, the disk of {self._part.parent} has "
                f"{room:,} free. Free some, or choose another place with --out."
            )
        self._done = kept or set()
        with self._saying():
            for path, header, size in zip(paths, self._headers, self._sizes, strict=True):
                flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                self._handles.append(os.open(path, flags, 0o644))
                if kept is None:
                    _write(self._handles[-1], memoryview(header), 0)
                    os.ftruncate(self._handles[-1], size)
                    _reserve(self._handles[-1], size)
            self._journal = journal.Journal(self._part, self._digest, kept)

    @property
    def folder(self) -> Path:
        """Where the result grows."""
        return self._part

    def done(self, name: str) -> bool:
        """Return whether an earlier process has finished this tensor."""
        return name in self._done

    def write(self, name: str, start: int, piece: Window) -> None:
        """Put elements in their place. Raises Unfinished, RunError."""
        entry = self._entries[name]
        at = entry.start + start * entry.dtype.itemsize
        with self._saying():
            _write(self._handles[self._shard_of[name]], piece.bytes, at)

    def finish(self, name: str) -> None:
        """Note that a tensor is whole, and now and then wait for the disk."""
        assert self._journal is not None
        entry = self._entries[name]
        with self._lock, self._saying():
            self._journal.finished(name)
            self._unsynced += entry.stop - entry.start
            if self._unsynced >= SYNCED:
                self._sync()
                self._journal.synced()
                self._unsynced = 0

    def _sync(self) -> None:
        for handle in self._handles:
            os.fsync(handle)

    def commit(self, beside: Callable[[Path], None]) -> None:
        """Give the result its name. beside: writes what goes with it into the folder."""
        with self._saying():
            self._sync()
            self.close()
            if len(self.names) > 1:
                write_json(self._part / "model.safetensors.index.json", self._index())
            beside(self._part)
            for name in (journal.NAME, STATE, LOCK):
                (self._part / name).unlink(missing_ok=True)
            try:
                check_free(self._out)
            except UsageError as error:
                raise Unfinished(f"{error} The merged model waits for its name.") from None
            if self._out.suffix == ".safetensors":
                self._commit_file()
            else:
                _sync_folder(self._part)
                self._part.rename(self._out)
            _sync_folder(self._out.parent)

    def _commit_file(self) -> None:
        """Put a single file in its place, and what goes with it beside it under its name."""
        for path in sorted(self._part.iterdir()):
            if path.name != self.names[0]:
                path.replace(self._out.with_name(f"{self._out.stem}.{path.name}"))
        (self._part / self.names[0]).replace(self._out)
        self._part.rmdir()

    def _index(self) -> dict[str, object]:
        total = sum(e.stop - e.start for e in self._entries.values())
        where = {name: self.names[number] for name, number in self._shard_of.items()}
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}

    def close(self) -> None:
        """Let all files go."""
        while self._handles:
            os.close(self._handles.pop())
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise Unfinished(
                    f"The disk of {self._part.parent} is full. Free some space and give the same "
                    "merge again: it goes on with the tensor it was at."
                ) from error
            raise RunError(
                f"Cannot write {error.filename or self._part}: {error.strerror or error}. Choose "
                "another place with --out."
            ) from error


STATE = "survey.safetensors"
"""In the hidden folder: what a method learned from the whole model before it merged."""


@contextlib.contextmanager
def files(out: Path, entries: Mapping[str, Entry], digest: str, most: int) -> Iterator[Files]:
    """Yield the files that become `out`: a folder, or one file where it ends in .safetensors.

    entries: dtype and shape of each tensor, in the order of the files. digest: of all that the
    result depends on; with the same one an unfinished merge goes on. most: bytes of a shard.

    A full disk, a kill or Ctrl-C leave the hidden folder, to go on from; another error removes it.
    """
    check_free(out)
    single = out.suffix == ".safetensors"
    part = out.with_name(f".{out.name}.merging")
    if part.is_symlink():
        raise UsageError(f"{part} is a link, and not this program's; remove it.")
    with alone(part):
        made = Files(out, part, entries, digest, sys.maxsize if single else most)
        try:
            made.begin()
            yield made
        except PolytaskError as error:
            made.close()
            if not isinstance(error, Unfinished) or not (part / journal.NAME).exists():
                shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            made.close()


def check_free(out: Path) -> None:
    """Raise UsageError where something is at `out` already, an empty folder apart."""
    if out.name in ("", ".."):
        raise UsageError(f"{out} is no place for a result; give the path of a new folder.")
    try:
        kind = out.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}.") from None
    if not stat.S_ISDIR(kind) or out.suffix == ".safetensors" or any(out.iterdir()):
        raise UsageError(
            f"{out} exists and is left as it is; give another place with --out, or remove it."
        )


def shards(entries: Mapping[str, Entry], most: int) -> list[list[str]]:
    """Return the names of each file's tensors: in order, each file full up to `most` bytes."""
    found: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        mine = entry.numel * entry.dtype.itemsize
        if found[-1] and size + mine > most:
            found.append([])
            size = 0
        found[-1].append(name)
        size += mine
    return found


def shard_names(count: int) -> Sequence[str]:
    """Return the files' names, as Hugging Face's loaders look for them."""
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))


def _reserve(handle: int, size: int) -> None:
    """Have the disk set room aside, where it can: it is full now or never, and writing is quicker.

    Not by posix_fallocate, which writes into every block where the file system cannot do it.
    Raises OSError where the disk is full.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    reserve = getattr(libc, "fallocate64", None)  # absent where the other takes 64 bits anyway
    if reserve is None and ctypes.sizeof(ctypes.c_long) == 8:
        reserve = getattr(libc, "fallocate", None)
    if reserve is None:
        return
    long = ctypes.c_int64
    if reserve(handle, 0, long(0), long(size)) and ctypes.get_errno() in FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(handle: int, view: memoryview, at: int) -> None:
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
