"""Headers of safetensors files: read strictly, and written.

A file is eight bytes (the header's length, little-endian), the header (JSON: of each tensor its
dtype, shape and byte range), and the tensors' bytes one after another. Whatever does not hold to
that is refused before a tensor is read: a header that is too long or no JSON, names twice, ranges
that overlap, leave gaps or end elsewhere than the file does, a range that does not fit dtype and
shape.

Source: the format's description, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polytask.errors import DataError

MOST_HEADER = 100_000_000
"""Bytes; the format's own bound."""

ALIGNED = 64
"""Bytes; the format asks for a multiple of 8. Copies to where no line of the cache begins, as the
system makes them of all that is written, take two to three times as long."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""The format's names of dtypes. Those of less than a byte per element are not read."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

MERGED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes whose tensors are merged; others are copied where all models agree."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: its bytes [start, stop) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """How many elements it has; 1 for a scalar."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return a file's tensors in the order of their bytes, and its metadata.

    Raises DataError, naming the file and what is wrong, where it breaks the format.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _bad(path, f"it has {size:,} bytes, its header alone would need {length:,}")
            if length > MOST_HEADER:
                raise _bad(path, f"its header has {length:,} bytes, more than {MOST_HEADER:,}")
            text = file.read(length)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        raw = json.loads(text.decode(), object_pairs_hook=_once)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise _bad(path, "its header is no JSON object")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "its metadata is no object of texts")
    begin = 8 + length
    entries = {name: _entry(path, name, value, begin) for name, value in raw.items()}
    return _in_order(path, entries, begin, size), metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} stands there twice")
    return found


def _entry(path: Path, name: str, raw: Any, begin: int) -> Entry:
    try:
        kind, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
        extra = set(raw) - {"dtype", "shape", "data_offsets"}
    except (TypeError, KeyError):
        raise _bad(path, f"{name!r} lacks its dtype, shape or data_offsets") from None
    if extra:
        raise _bad(path, f"{name!r} has the unknown entry {sorted(extra)[0]!r}")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise _bad(path, f"{name!r} has the unknown dtype {kind!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _bad(path, f"{name!r} has the shape {shape!r} and the byte range {offsets!r}")
    dtype, (start, stop) = DTYPES[kind], offsets
    needed = math.prod(shape) * dtype.itemsize
    if stop - start != needed:
        raise _bad(
            path,
            f"{name!r}, {kind} of shape {shape}, needs {needed:,} bytes and has {stop - start:,}",
        )
    return Entry(dtype, tuple(shape), begin + start, begin + stop)


def _counts(values: Any) -> bool:
    """Return whether this is a list of whole numbers that are not negative (true is none)."""
    return isinstance(values, list) and not [v for v in values if type(v) is not int or v < 0]


def _in_order(path: Path, entries: Mapping[str, Entry], begin: int, size: int) -> dict[str, Entry]:
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    at, before = begin, "the header"
    for name, entry in ordered.items():
        if entry.start != at:
            word = "overlaps" if entry.start < at else "leaves a gap after"
            raise _bad(path, f"{name!r} {word} {before}")
        at, before = entry.stop, repr(name)
    if at != size:
        raise _bad(path, f"its tensors end at byte {at:,}, the file at byte {size:,}")
    return ordered


def _bad(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged or no safetensors file: {why}. Fetch or save it again.")


def header_of(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
    """Return the bytes before the first tensor, and where each tensor goes, in the given order.

    The first tensor starts at a multiple of ALIGNED bytes.
    """
    raw: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        raw[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    begin = 8 + len(text)
    entries = {
        name: Entry(dtype, shape, begin + offsets[0], begin + offsets[1])
        for name, (dtype, shape) in tensors.items()
        for offsets in (raw[name]["data_offsets"],)
    }
    return len(text).to_bytes(8, "little") + text, entries
