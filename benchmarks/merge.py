"""The cost of merging files: against reading every input and writing one output.

    python benchmarks/merge.py             # 31 million parameters, some minutes
    python benchmarks/merge.py --full      # 125 million parameters; memory at 1 billion too
    python benchmarks/merge.py --quick     # about a minute
    python benchmarks/merge.py --json      # one JSON line per figure
    python benchmarks/merge.py --mergekit PYTHON --fusionbench PYTHON    # see merge_peers.py

The models are random, of GPT-2's layout: a base and 4 tuned ones, in bf16 and fp32; one thread.
The floor reads the same files into one reused buffer of a mebibyte and writes as many bytes as the
result has. Times are processor time, system included, so that a busy disk does not count; medians
of rounds in which every method and its floor (of three, the median) take turns. SLERP merges two
models and has the floor of two. Memory is the peak of a process that merges, above what it has
after importing.
Files go below TMPDIR and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import merge_models
import merge_peers
from polytask.merge import (
    DARE,
    SLERP,
    TIES,
    Average,
    Breadcrumbs,
    Merge,
    ModelStock,
    TaskArithmetic,
    prepare,
)

METHODS: dict[str, tuple[Merge, float]] = {
    "average": (Average(), 1.5),
    "task arithmetic": (TaskArithmetic(), 1.5),
    "TIES": (TIES(), 12.0),
    "DARE": (DARE(), 12.0),
    "Breadcrumbs": (Breadcrumbs(), 12.0),
    "SLERP": (SLERP(), 3.0),
    "Model Stock": (ModelStock(), 3.0),
}
"""Each with its bound."""

MEMORY = 64
"""MiB over import, at any size."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def inputs(method: Merge, models: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """Return the base, None where it takes no part, and the tuned models of a merge."""
    base, tuned = models[0], list(models[1:])
    return base if method.needs_base else None, tuned[: method.most]


def floor(files: Sequence[Path], size: int, out: Path) -> None:
    """Read the files and write so many bytes."""
    buffer = np.zeros(1 << 20, dtype=np.uint8)
    for path in files:
        handle, at = os.open(path, os.O_RDONLY), 0
        while got := os.preadv(handle, [buffer], at):
            at += got
        os.close(handle)
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for at in range(0, size, len(buffer)):
        os.pwrite(handle, memoryview(buffer)[: size - at], at)
    os.close(handle)
    out.unlink()


def merged(method: Merge, models: Sequence[Path], out: Path) -> None:
    base, tuned = inputs(method, models)
    prepare(base, tuned, method).run(out)
    shutil.rmtree(out)


def cost(call: Callable[[], None]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def files_of(folders: Sequence[Path | None]) -> list[Path]:
    return [path for folder in folders if folder for path in sorted(folder.glob("*.safetensors"))]


def speed(models: Sequence[Path], rounds: int, out: Path) -> dict[str, tuple[float, float]]:
    """Return per method the median of its time over that of its floor, and its seconds."""
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    size = sum(path.stat().st_size for path in files_of(models[:1]))
    for turn in range(rounds + 1):
        for name, (method, _) in METHODS.items():
            base, tuned = inputs(method, models)
            read = files_of([base, *tuned])
            below = statistics.median(
                cost(lambda read=read: floor(read, size, out.with_suffix(".floor")))
                for _ in range(3)
            )
            mine = cost(lambda method=method: merged(method, models, out))
            if turn:  # the first warms caches up
                ratios[name].append(mine / below)
                seconds[name].append(mine)
    return {
        name: (statistics.median(ratios[name]), statistics.median(seconds[name]))
        for name in METHODS
    }


def alone(models: Sequence[Path], rounds: int, out: Path) -> float:
    """Return the median time of the floor of merging these."""
    read, size = files_of(models), sum(path.stat().st_size for path in files_of(models[:1]))
    return statistics.median(cost(lambda: floor(read, size, out)) for _ in range(rounds))


PEAK = """
import sys
from pathlib import Path
import polytask.merge as m

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
method = getattr(m, sys.argv[1])()
out, base, tuned = Path(sys.argv[2]), sys.argv[3] or None, sys.argv[4:]
job = m.prepare(base, tuned, method)
job.run(out)
print((peak() - before) / 1024, job.need.memory / 2**20)
"""


def memory(method: Merge, models: Sequence[Path], out: Path) -> tuple[float, float]:
    """Return the peak over import in MiB, and the one stated before."""
    base, tuned = inputs(method, models)
    command = [sys.executable, "-c", PEAK, type(method).__name__, str(out)]
    said = subprocess.run(
        [*command, str(base or ""), *map(str, tuned)], capture_output=True, text=True, check=True
    ).stdout
    shutil.rmtree(out)
    measured, stated = map(float, said.split())
    return measured, stated


def small_tensors(folder: Path, counts: Sequence[int]) -> list[float]:
    """Return seconds per 1,000 tensors of 64 elements, base and 4 models, at each number."""
    found = []
    for count in counts:
        shapes = merge_models.small(count)
        models = merge_models.make(folder / str(count), shapes, 4, torch.float32, {})
        call = lambda models=models: merged(TaskArithmetic(), models, folder / "out")  # noqa: E731
        call()
        found.append(statistics.median(cost(call) for _ in range(3)) / count * 1000)
        shutil.rmtree(folder / str(count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="31 million parameters, 2 rounds")
    parser.add_argument("--full", action="store_true", help="125 million, and 1 billion for memory")
    parser.add_argument("--rounds", type=int, help="of each figure")
    parser.add_argument("--json", action="store_true", help="a JSON line per figure")
    parser.add_argument("--dtypes", default="bf16,fp32", help="one of them, or both")
    parser.add_argument("--mergekit", metavar="PYTHON", help="of an environment with mergekit")
    parser.add_argument("--fusionbench", metavar="PYTHON", help="of one with FusionBench")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = "125m" if options.full else "31m"
    rounds = options.rounds or (2 if options.quick else 5)

    def show(what: str, figure: str, value: float, bound: float | None, note: str = "") -> None:
        if options.json:
            line = {"what": what, "figure": figure, "value": value, "bound": bound, "note": note}
            print(json.dumps(line), flush=True)
        else:
            kept = (
                ""
                if bound is None
                else f"   bound {bound:g} {'met' if value <= bound else 'NOT MET'}"
            )
            print(f"{what:34s} {figure:22s} {value:9.3g}{kept}   {note}", flush=True)

    if not options.json:
        print(f"{platform.machine()}, torch {torch.__version__}, {size}, {rounds} rounds")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for word in options.dtypes.split(","):
            dtype = DTYPES[word]
            shapes = merge_models.gpt2(size)
            models = merge_models.make(
                folder / word, shapes, 4, dtype, merge_models.configuration(size, dtype)
            )
            for name, (ratio, seconds) in speed(models, rounds, folder / "out").items():
                show(f"{name}, {word}", "time / floor", ratio, METHODS[name][1], f"{seconds:.2f} s")
            for name, (method, _) in METHODS.items():
                peak, stated = memory(method, models, folder / "out")
                show(f"{name}, {word}", "MiB over import", peak, MEMORY, f"{stated:.0f} stated")
            for python, peer in (
                (options.mergekit, "mergekit"),
                (options.fusionbench, "FusionBench"),
            ):
                for name, seconds, peak, reads in (
                    merge_peers.run(peer, python, models, folder) if python else ()
                ):
                    below = alone(models[:reads], 9, folder / "floor")
                    show(
                        f"{peer} {name}, {word}", "time / floor", seconds / below, None,
                        f"{seconds:.2f} s",
                    )  # fmt: skip
                    show(f"{peer} {name}, {word}", "MiB over import", peak, None)
            shutil.rmtree(folder / word)
        if options.full:
            models = merge_models.make(
                folder / "1b", merge_models.gpt2("1b"), 2, torch.bfloat16, {}
            )
            for name in ("task arithmetic", "TIES"):
                peak, stated = memory(METHODS[name][0], models, folder / "out")
                show(
                    f"{name}, bf16, 1 billion, 2 models",
                    "MiB over import",
                    peak,
                    MEMORY,
                    f"{stated:.0f} stated",
                )
            shutil.rmtree(folder / "1b")
        counts = (2500, 20_000) if options.full else (1000, 4000)
        few, many = small_tensors(folder, counts)
        show(
            f"{counts[1]:,} tensors of 64 elements", f"per tensor / at {counts[0]:,}", many / few,
            1.5, f"{many:.2f} s per 1,000",
        )  # fmt: skip


if __name__ == "__main__":
    main()
