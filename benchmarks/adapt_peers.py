"""The transformer of `benchmarks/adapt.py`, and PEFT's mixed batches on it.

PEFT has requirements of its own; the interpreter that has it is named on the command line, and runs
this file as a program. It prints, as JSON, ratios to the same base as measured in that process:
32 LoRAs (q and v, rank 8) of which each row names its own, in inference (PEFT refuses that in
training), the operators of that, views left out, and its Arrow over 32 LoRAs, of which every token
takes 3.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH, LAYERS, HEADS, RANK = 512, 6, 8, 8
VIEWS = {
    "t", "transpose", "view", "_unsafe_view", "expand", "unbind", "detach", "slice", "select",
    "unsqueeze", "permute", "split", "split_with_sizes", "alias", "squeeze", "_reshape_alias",
}  # fmt: skip


class Block(nn.Module):
    """Attention and a feed-forward block of four times the width, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            project(h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o_proj(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(LAYERS))).requires_grad_(False)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object]) -> int:
    """Return the operators of a call, views left out."""
    with Count() as counted:
        call()
    return counted.number


def ratios(calls: dict[str, Callable[[], object]], rounds: int, repeat: int) -> dict[str, float]:
    """Return each call's processor time against the first one's, medians of neighbouring calls."""
    for call in calls.values():
        for _ in range(2):
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        seconds: dict[str, float] = {}
        for name in list(calls) if turn % 2 else reversed(calls):
            begun = time.process_time()
            for _ in range(repeat):
                calls[name]()
            seconds[name] = time.process_time() - begun
        reference = seconds[next(iter(calls))]
        for name, taken in seconds.items():
            found[name].append(taken / reference)
    return {name: statistics.median(values) for name, values in found.items()}


def run(python: str, rounds: int) -> dict[str, float]:
    """Return what this file prints when that interpreter runs it."""
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), str(rounds)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{python} cannot run PEFT:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def arrow(tasks: int, top: int) -> nn.Module:
    """Return PEFT's Arrow over so many LoRA, which it reads from folders."""
    import peft

    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    names = [f"t{t}" for t in range(tasks)]
    model = peft.get_peft_model(transformer(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        paths = [str(Path(folder) / name) for name in names]
        made = peft.tuners.lora.create_arrow_model(
            transformer(), paths, peft.ArrowConfig(top_k=top)
        )
    return made.eval()


def main(rounds: int) -> None:
    import peft

    torch.set_num_threads(1)
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"])
    names = [f"t{t}" for t in range(32)]
    model = peft.get_peft_model(transformer(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    rows = [names[b % 32] for b in range(64)]
    base, routed = transformer(), arrow(32, 3)
    found: dict[str, float] = {}
    model.eval()
    for tokens, repeat in ((128, 1), (1, 5)):
        x = torch.randn(64, tokens, WIDTH)

        def mixed(x: Tensor = x) -> None:
            with torch.no_grad():
                model(x, adapter_names=rows)

        def plain(x: Tensor = x) -> None:
            with torch.no_grad():
                base(x)

        def chosen(x: Tensor = x) -> None:
            with torch.no_grad():
                routed(x)

        calls = {"base": plain, "mixed": mixed, "Arrow top-3": chosen}
        made = ratios(calls, rounds if tokens == 1 else 3, repeat)
        found[f"inference, 64 x {tokens}"] = made["mixed"]
        found[f"Arrow top-3, 64 x {tokens}"] = made["Arrow top-3"]
        found[f"operators, 64 x {tokens}"] = count(mixed)
    print(json.dumps({**found, "version": peft.__version__}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
