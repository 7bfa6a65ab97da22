"""Models of GPT-2's layout with random weights, for `benchmarks/merge.py`.

The tuned ones are the base plus small changes, so that methods have something to agree on. Files
are written tensor by tensor: a model of any size is made in the memory of its largest tensor.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY, POSITIONS = 50257, 1024
SIZES = {"31m": (6, 384), "125m": (12, 768), "350m": (24, 1024), "1b": (20, 1920)}
"""Layers and width."""

POOL = (1 << 22) + 3
"""Numbers drawn; no shape is a multiple of it."""

Shapes = Mapping[str, tuple[int, ...]]


def gpt2(size: str) -> Shapes:
    """Return the tensors of a GPT-2 of that size."""
    layers, width = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY, width),
        "wpe.weight": (POSITIONS, width),
    }
    for layer in range(layers):
        at = f"h.{layer}"
        for name, (inputs, outputs) in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            shapes[f"{at}.{name}.weight"] = (inputs, outputs)
            shapes[f"{at}.{name}.bias"] = (outputs,)
        for norm in ("ln_1", "ln_2"):
            shapes[f"{at}.{norm}.weight"] = shapes[f"{at}.{norm}.bias"] = (width,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (width,)
    return shapes


def small(count: int) -> Shapes:
    """Return so many tensors of 64 elements."""
    return {f"layers.{i}.weight": (8, 8) for i in range(count)}


def configuration(size: str, dtype: torch.dtype) -> dict[str, object]:
    """Return what Hugging Face's loaders want to know of such a model."""
    layers, width = SIZES[size]
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": layers,
        "n_embd": width, "n_head": width // 64, "n_positions": POSITIONS, "n_ctx": POSITIONS,
        "vocab_size": VOCABULARY, "torch_dtype": str(dtype).removeprefix("torch."),
        "tie_word_embeddings": True,
    }  # fmt: skip


def make(
    folder: Path, shapes: Shapes, models: int, dtype: torch.dtype, config: object
) -> list[Path]:
    """Write a base and so many models tuned from it; return their folders, the base first.

    Each tensor goes into a shard of its own until a shard has 200 MB, as saved models have it.
    """
    made = []
    for model in range(models + 1):
        home = folder / ("base" if model == 0 else f"tuned{model}")
        home.mkdir(parents=True)
        (home / "config.json").write_text(json.dumps(config))
        shards = list(_shards(shapes, dtype))
        where = {}
        for number, names in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            if len(shards) == 1:
                name = "model.safetensors"
            tensors = {n: _tensor(n, shapes[n], model, dtype) for n in names}
            save_file(tensors, home / name, metadata={"format": "pt"})
            where |= dict.fromkeys(names, name)
        if len(shards) > 1:
            index = {"metadata": {}, "weight_map": where}
            (home / "model.safetensors.index.json").write_text(json.dumps(index))
        made.append(home)
    return made


def _tensor(name: str, shape: tuple[int, ...], model: int, dtype: torch.dtype) -> torch.Tensor:
    value = _normal(name, shape) * 0.02
    if model:
        value += _normal(f"{name} of {model}", shape) * 0.002
    return value.to(dtype)


@functools.cache
def _pool() -> torch.Tensor:
    return torch.randn(POOL, generator=torch.Generator().manual_seed(0))


def _normal(seed: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return normal numbers, cut out of a pool at a place that the seed names: drawing a billion
    anew would take minutes."""
    count = torch.Size(shape).numel()
    start = zlib.crc32(seed.encode()) % POOL
    tiles = (start + count) // POOL + 1
    numbers = _pool().repeat(tiles) if tiles > 1 else _pool()
    return numbers[start : start + count].view(shape)


def _shards(shapes: Shapes, dtype: torch.dtype, most: int = 200_000_000) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for name, shape in shapes.items():
        mine = torch.Size(shape).numel() * dtype.itemsize
        if held and size + mine > most:
            yield held
            held, size = [], 0
        held.append(name)
        size += mine
    yield held
