"""What folders of PEFT's LoRA adapters hold, for whatever loads, merges or writes them.

A folder has `adapter_config.json` and `adapter_model.safetensors`. Tensors are named
`base_model.model.LAYER.lora_A.weight` and so on; other names are tensors trained as a whole.

Source: PEFT 0.18, https://github.com/huggingface/peft
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polytask.errors import DataError, RunError, UsageError
from polytask.records import write_atomic, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that move a part of the base into the adapter: it means nothing without it."""

NOT_READ = (
    "layer_replication", "alora_invocation_tokens", "use_qalora", "arrow_config", "use_bdlora",
    "megatron_config", "target_parameters", "trainable_token_indices",
)  # fmt: skip


def check_folder(folder: Path) -> None:
    """Raise UsageError where a folder is no adapter's, or its weights are a pickle."""
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_file():
            continue
        if name == WEIGHTS and (folder / PICKLED).is_file():
            raise UsageError(
                f"{folder} has {PICKLED}, which runs code when it is read, so it is not. Write it "
                "again with a new PEFT: PeftModel.from_pretrained(...).save_pretrained(folder)."
            )
        raise UsageError(
            f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote, with "
            "safetensors."
        )


def check_config(config: Mapping[str, Any], label: str, done: str) -> None:
    """Raise UsageError where a configuration is of something else, or asks for what is not here.

    label: names the adapter. done: what would be done with it, such as "merged".
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UsageError(
            f"{label} is of peft_type {kind!r}; adapters of type 'LORA' can be {done}."
        )
    for key in NOT_READ:
        if config.get(key):
            raise UsageError(f"{label} uses {key!r}, which cannot be {done} here.")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise UsageError(
            f"{label} began with init_lora_weights={start!r}, which changes the base as well. Save "
            "it converted to plain LoRA first."
        )


def split(
    names: Iterable[str], label: str, known: Iterable[str], otherwise: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the names of tensors by layer and part, and of those trained as a whole.

    known: parts that may come: "A", "B", "bias" (of B), "magnitude_vector", "embedding_A", ...
    Raises DataError for another, whose text goes on with `otherwise`; and where a layer has one
    factor alone.
    """
    layers: dict[str, dict[str, str]] = {}
    whole = []
    for name in names:
        layer, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not layer:
            whole.append(name)
            continue
        part = part.removesuffix(".weight").replace("B.bias", "bias")
        if part not in known:
            raise DataError(f"{label}: tensor {name!r} {otherwise}")
        layers.setdefault(layer, {})[part] = name
    for layer, parts in layers.items():
        if not ({"A", "B"} <= parts.keys() or {"embedding_A", "embedding_B"} <= parts.keys()):
            raise DataError(f"{label}: layer {layer!r} has only one of lora_A and lora_B.")
    return layers, whole


def plain_name(name: str) -> str:
    """Return the name in the base of a tensor that was trained as a whole."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def alpha_of(config: Mapping[str, Any], layer: str) -> float:
    """Return a layer's alpha: that of the first pattern that matches its name or the end of it."""
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", layer):
            return float(value)
    return float(config.get("lora_alpha", 8))


def write_folder(
    out: Path, config: Mapping[str, Any], content: bytes, others: Mapping[str, bytes] | None = None
) -> None:
    """Write an adapter's folder, which appears when it is complete.

    content: of the safetensors file. others: of more files, by name. Raises RunError where it
    cannot be written, or something is there.
    """
    with whole_folder(out) as part:
        write_atomic(part / WEIGHTS, content)
        write_json(part / CONFIG, config)
        for name, text in (others or {}).items():
            write_atomic(part / name, text)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to be made and filled; at the end it becomes `out`, or nothing stays of it.

    Raises RunError where it cannot be written, or something is at `out`.
    """
    part = out.with_name(f".{out.name}.part-{secrets.token_hex(8)}")
    try:
        yield part
        part.rename(out)
    except OSError as error:
        raise RunError(f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what Ctrl-C or a full disk left; else gone
