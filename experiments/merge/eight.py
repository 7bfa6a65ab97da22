"""Eight image tasks, tuned apart from one pretraining, merged by every method.

    python experiments/merge/eight.py --seed 0
    python experiments/merge/eight.py --seed 0 1 2 --backbone cnn vit --device cuda --jobs 12

Takes up what an earlier call left in `runs/merge/`; writes `eight.json` here from all runs there,
and beside each a record for `polytask report runs/merge/cnn-s0`. POLYTASK_DATA names the folder of
the image sets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import records
import torch
import training
from ends import ends, made
from found import KEPT
from images import TASKS
from methods import JOBS, RATE, ROUNDS

from polytask.errors import PolytaskError
from polytask.records import together, versions

BACKBONES = ("cnn", "vit")
LONGEST = (
    "adamerging", "poisoned-dam", "atm", "poisoned-concrete-adamerging", "concrete-adamerging",
    "task-arithmetic", "ties", "fisher",
)  # fmt: skip


def make_ends(backbone: str, seed: int, device: str) -> None:
    _timed(f"{backbone}-s{seed}/ends", partial(made, backbone, seed, device), device)


def run_job(backbone: str, seed: int, name: str, device: str, scoring: str) -> None:
    def make() -> dict[str, Any]:
        return {"rows": JOBS[name](ends(backbone, seed, device, scoring), seed)}

    _timed(f"{backbone}-s{seed}/{name}", make, device)


def _timed(name: str, make: Callable[[], dict[str, Any]], device: str) -> None:
    def timed() -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.process_time()
        found = make()
        return found | {
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - cpu,
            "versions": versions() | {"device": _called(device)},
        }

    KEPT.run(name, timed)


def begin(threads: int) -> None:
    torch.set_num_threads(threads)


def _called(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


Work = tuple[Callable[..., None], tuple[Any, ...]]


def call(work: Work) -> str:
    """Do it; return why it failed, "" where it did not.

    What polytask, torch or the disk refuse stops this one alone, and is told of when all others
    ran; any other exception is a mistake in this program and stops all.
    """
    do, given = work
    try:
        do(*given)
    except (PolytaskError, RuntimeError, OSError):
        return f"{do.__name__}{given}: {traceback.format_exc()}"
    return ""


def in_processes(works: list[Work], jobs: int, threads: int) -> None:
    """Call each, in `jobs` processes. Those that fail are told of, and end this when all ran."""
    if jobs == 1:
        begin(threads)
        failed = [call(work) for work in works]
    else:
        with multiprocessing.get_context("spawn").Pool(
            min(jobs, max(1, len(works))), begin, (threads,)
        ) as pool:
            failed = list(pool.imap_unordered(call, works, chunksize=1))
    for text in filter(None, failed):
        print(text, file=sys.stderr)
    if any(failed):
        sys.exit(f"{sum(map(bool, failed))} of {len(works)} failed; the others are kept.")


def table() -> dict[str, Any]:
    """Return all runs that are there as one table, per backbone."""
    found: dict[str, Any] = {}
    seeds: set[int] = set()
    made_on: list[dict[str, str]] = []  # not by what writes this table
    for backbone in BACKBONES:
        runs = {
            int(folder.name.split("-s")[1]): folder
            for folder in sorted(KEPT.runs.glob(f"{backbone}-s*"))
            if (folder / "ends.json").exists()
        }
        seeds |= set(runs)
        methods: dict[str, dict[str, Any]] = {}
        for seed in runs:
            first = KEPT.run(f"{backbone}-s{seed}/ends", dict)
            individual = first["individual"]
            made_on.append(first["versions"])
            rows = {"individual": {"accuracy": individual}, "joint": {"accuracy": first["joint"]}}
            kept, versions_of = records.rows(f"{backbone}-s{seed}")
            rows |= kept
            made_on += versions_of
            for name, row in rows.items():
                into = methods.setdefault(name, {"seeds": []})
                into["seeds"].append(seed)
                for key, value in summary(row, individual).items():
                    into.setdefault(key, []).append(value)
        found[backbone] = methods
    return {
        "versions": together(made_on),
        "seeds": sorted(seeds),
        "tasks": TASKS.names,
        "settings": training.settings() | {"rounds": ROUNDS, "rate": RATE},
        "backbones": found,
    }


def summary(row: dict[str, Any], individual: dict[str, float]) -> dict[str, Any]:
    """Return the mean accuracy, the normalised one, and each task's, in %."""
    accuracy = row["accuracy"]
    told = {
        "accuracy": 100 * sum(accuracy.values()) / len(accuracy),
        "normalised": 100 * sum(accuracy[t] / individual[t] for t in accuracy) / len(accuracy),
        "tasks": [round(100 * accuracy[t], 2) for t in TASKS.names],
    }
    if "scale" in row:
        told["scale"] = row["scale"]
    if "attack" in row:
        told["attack_success"] = 100 * row["attack"]["success"]
        told["attacked_accuracy"] = 100 * row["attack"]["accuracy"]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--methods", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--device", default="cpu", help="of training and scoring: cpu or cuda")
    parser.add_argument("--search-device", default=None, help="of the searches; as --device")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--table", action="store_true", help="only write eight.json anew")
    options = parser.parse_args()
    if options.table:
        KEPT.write("eight", table())
        return
    searching = options.search_device or options.device
    starts = [(b, s) for s in options.seed for b in options.backbone]
    in_processes(
        [(make_ends, (b, s, options.device)) for b, s in starts], options.jobs, options.threads
    )
    # The longest first, so that none is left alone at the end.
    names = sorted(options.methods, key=lambda name: name not in LONGEST)
    works = [
        (run_job, (b, s, name, searching, options.device)) for name in names for b, s in starts
    ]
    in_processes(works, options.jobs, options.threads)
    KEPT.write("eight", table())
    for backbone, seed in starts:
        records.write(backbone, seed)


if __name__ == "__main__":
    main()
