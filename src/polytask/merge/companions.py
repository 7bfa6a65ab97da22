"""What goes with merged weights: configuration and tokenizer of the first model, and the recipe."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polytask.merge.vocabulary import Vocabularies
from polytask.records import read_json, write_atomic

RECIPE = "merge.yaml"

NAMES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that are copied where they are. No code is: a model that needs its own keeps it apart."""


def write_beside(
    folder: Path,
    source: Path | None,
    recipe: str,
    dtype: torch.dtype | None,
    vocabularies: Vocabularies | None,
) -> None:
    """Write the recipe into `folder`, and copy what the first model's folder has.

    dtype: of the result where one was asked for; the configuration then says it.
    """
    write_atomic(folder / RECIPE, recipe.encode())
    if source is None:
        return
    for name in NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    tokens = vocabularies.tokens if vocabularies is not None and vocabularies.new else None
    rows = None if tokens is None else max(tokens.values()) + 1
    _configure(folder / "config.json", dtype, rows)
    if vocabularies is not None and vocabularies.new:
        _add_tokens(folder, vocabularies)


def _configure(path: Path, dtype: torch.dtype | None, rows: int | None) -> None:
    if not path.exists() or (dtype is None and rows is None):
        return
    config = read_json(path)
    if dtype is not None:
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = str(dtype).removeprefix("torch.")
    if rows is not None and isinstance(config.get("vocab_size"), int):
        config["vocab_size"] = max(rows, config["vocab_size"])
    write_atomic(path, (json.dumps(config, indent=2) + "\n").encode())


def _add_tokens(folder: Path, vocabularies: Vocabularies) -> None:
    """Add the new tokens to the tokenizer's files, with what their own models say of them."""
    entries: list[Mapping[str, Any]] = []
    for token in vocabularies.new:
        said = next(t.added[token] for t in vocabularies.tokenizers if token in t.added)
        entries.append({**said, "id": vocabularies.tokens[token]})
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or ()), *entries]
    write_atomic(path, json.dumps(tokenizer, ensure_ascii=False, indent=2).encode())
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = read_json(path)
        with contextlib.suppress(AttributeError):  # an old one, without the list
            decoder = config.setdefault("added_tokens_decoder", {})
            for entry in entries:
                decoder[str(entry["id"])] = {k: v for k, v in entry.items() if k != "id"}
        write_atomic(path, (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode())
    path = folder / "added_tokens.json"
    if path.exists():
        added = read_json(path) | {entry["content"]: entry["id"] for entry in entries}
        write_atomic(path, (json.dumps(added, ensure_ascii=False) + "\n").encode())
