"""Merges by other libraries of the same files, for `benchmarks/merge.py`.

mergekit (0.1.4 or later) and FusionBench have requirements of their own, so each lives in an
environment of its own; its interpreter is named on the command line. Each runs in a process, on one
thread, called as its documentation shows: mergekit by its recipe, lazily, without a model card;
FusionBench by its functions on state dicts, read and written by safetensors. Time is processor time
after importing, memory the peak above what the process has then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

WORK = {
    "mergekit": (
        ("linear", 4), ("task_arithmetic", 5), ("ties", 5), ("dare_linear", 5), ("breadcrumbs", 5),
        ("slerp", 2), ("model_stock", 5),
    ),
    "FusionBench": (("simple_average", 4), ("task_arithmetic", 5), ("ties", 5)),
}  # fmt: skip
"""Methods, and how many models each reads."""

MEASURE = """
import json, os, sys, time
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
import torch
torch.set_num_threads(1)
name, out, base, tuned = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
"""

CODE = {
    "mergekit": MEASURE
    + """
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
dtype = json.loads((Path(base) / "config.json").read_text())["torch_dtype"]
weight = {"weight": 0.3} if name != "linear" else {"weight": 1.0}
if name in ("ties", "dare_linear"):
    weight["density"] = 0.2
if name == "breadcrumbs":
    weight |= {"density": 0.2, "gamma": 0.1}
if name == "slerp":
    recipe = {"merge_method": name, "base_model": tuned[0], "parameters": {"t": 0.5},
              "models": [{"model": m} for m in tuned[:2]]}
else:
    recipe = {"merge_method": name, "models": [{"model": m, "parameters": weight} for m in tuned]}
    if name != "linear":
        recipe["base_model"] = base
recipe["dtype"] = dtype
before, begun = peak(), time.process_time()
run_merge(MergeConfiguration.model_validate(recipe), out,
          MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True,
                       allow_crimes=True))
print(json.dumps([time.process_time() - begun, peak() - before]))
""",
    "FusionBench": MEASURE
    + """
from safetensors.torch import load_file, save_file
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.task_arithmetic.task_arithmetic import task_arithmetic_merge
from fusion_bench.method.ties_merging.ties_merging_utils import (
    state_dict_to_vector, ties_merging, vector_to_state_dict)
from fusion_bench.utils.state_dict_arithmetic import state_dict_add, state_dict_mul, state_dict_sub
def read(folder):
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(path)
    return found
before, begun = peak(), time.process_time()
models = [read(path) for path in tuned]
if name == "simple_average":
    merged = simple_average(models)
else:
    start = read(base)
    if name == "task_arithmetic":
        total = None
        for one in models:
            change = state_dict_sub(one, start)
            total = change if total is None else state_dict_add(total, change)
        merged = state_dict_add(start, state_dict_mul(total, 0.3))
    else:
        flat = state_dict_to_vector(start)
        changes = torch.stack([state_dict_to_vector(one) - flat for one in models])
        merged_change = ties_merging(changes, reset_thresh=20, merge_func="mean")
        merged = vector_to_state_dict(flat + merged_change, start)
Path(out).mkdir()
save_file({n: v.contiguous() for n, v in merged.items()}, Path(out) / "model.safetensors")
print(json.dumps([time.process_time() - begun, peak() - before]))
""",
}


def run(
    peer: str, python: str, models: Sequence[Path], folder: Path
) -> Iterator[tuple[str, float, float, int]]:
    """Yield of each method its name, its seconds, its MiB over import, and the models it reads.

    What fails is left out, and said.
    """
    for name, reads in WORK[peer]:
        out = folder / f"{peer}-{name}"
        command = [python, "-c", CODE[peer], name, str(out), *map(str, models)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        shutil.rmtree(out, ignore_errors=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            print(f"{peer} {name}: left out, it failed: {last}", file=sys.stderr)
            continue
        seconds, peak = json.loads(done.stdout.strip().splitlines()[-1])
        yield name, seconds, peak, reads
