"""Small models on disk, and a merge of them in another process.

Shapes: P = elements of a tensor.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

SHAPES = {
    "embed.weight": (40, 24),
    **{
        f"layers.{i}.{name}": shape
        for i in range(3)
        for name, shape in {"w": (300, 130), "norm": (24,), "scale": (), "none": (0, 4)}.items()
    },
}
"""About 120,000 elements: several pieces of the smallest size, a scalar, an empty tensor."""


def base(
    dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> Tensors:
    draw = torch.Generator().manual_seed(7)
    made = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return made | {"ids": torch.arange(9), "mask": torch.tensor([True, False])}


def tuned(start: Tensors, seed: int, dtype: torch.dtype | None = None) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in start.items():
        made[name] = value.clone()
        if value.is_floating_point():
            moved = value.double() + 0.02 * torch.randn(value.shape, generator=draw).double()
            made[name] = moved.to(dtype or value.dtype)
    return made


def save(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    """Write a Hugging Face folder; return it."""
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    where = {}
    for i, name in enumerate(tensors):
        where[name] = f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors"
    for file in sorted(set(where.values())):
        save_file({n: tensors[n] for n, f in where.items() if f == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def mixed(home: Path) -> tuple[Tensors, Path, list[Tensors], list[Path]]:
    """Return a base and three tuned models, in memory and on disk: dtypes and shards differ."""
    start = base()
    models = [tuned(start, 1), tuned(start, 2, torch.bfloat16), tuned(start, 3, torch.float16)]
    paths = [save(home / f"m{i}", model, i + 1) for i, model in enumerate(models)]
    return start, save(home / "base", start, 2), models, paths


def load(out: Path) -> Tensors:
    """Return all tensors of a folder, read by safetensors itself."""
    found: Tensors = {}
    for path in sorted(out.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two models are alike in every bit."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and torch.equal(a[n].reshape(-1).view(torch.uint8), b[n].reshape(-1).view(torch.uint8))
        for n in a
    )


def elsewhere(code: str, *args: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


def header(entries: object, size: int = 0, metadata: object = None) -> bytes:
    """Return a file with this header and as many zero bytes."""
    raw = dict(entries) if isinstance(entries, dict) else entries
    if metadata is not None:
        raw = {"__metadata__": metadata, **raw}
    text = raw.encode() if isinstance(raw, str) else json.dumps(raw).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(
    shape: Sequence[object], start: object, stop: object, dtype: object = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
