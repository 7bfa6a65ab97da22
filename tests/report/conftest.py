"""Run folders with plausible numbers, written through the real record, and a headless Chromium."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from polytask.merge import Maps, Meeting, MergeRecord, MergeResult
from polytask.merge.record import Learned, Measure
from polytask.records import Cost, GateUse, Point, Probe, Record, to_json

METHODS = ("equal", "uncertainty", "dwa", "pcgrad", "aligned-mtl")
TASKS = ("left", "right", "sum", "ink")
WITH_EXPERTS = "pcgrad"
"""The one method whose model has experts."""
ENGINES = {"pcgrad": "gramian", "aligned-mtl": "gramian"}


def record(
    rng: random.Random,
    method: str,
    tasks: Sequence[str],
    *,
    seed: int = 0,
    points: int = 30,
    probes: int = 8,
    level: float = 0.9,
) -> Record:
    """Return a record whose curves fall and rise as training does."""
    made = []
    for k in range(points):
        share = (k + 1) / points
        made.append(
            Point(
                step=20 * (k + 1),
                epoch=k + 1,
                seconds=0.3 * (k + 1),
                train={
                    task: 2.3 * math.exp(-(2 + i % 3 + len(method) % 5 / 4) * share)
                    + 0.02 * rng.random()
                    for i, task in enumerate(tasks)
                },
                val={
                    task: {
                        "accuracy": level * (1 - 0.5 * math.exp(-5 * share)) + 0.01 * rng.random(),
                        "f1": level * 0.9 * share,
                    }
                    for task in tasks
                },
                weights={
                    task: 1 + 0.4 * math.sin(i + 3 * share) * share
                    if method not in ("equal", "single")
                    else 1.0
                    for i, task in enumerate(tasks)
                },
                score=100 * share,
            )
        )
    size = len(tasks)
    found = []
    for k in range(probes if size > 1 else 0):
        cosines: list[list[float | None]] = [[1.0] * size for _ in range(size)]
        for i in range(size):
            for j in range(i):
                value = math.cos(i - j) * (0.8 - 0.6 * k / probes) + 0.1 * rng.random() - 0.1
                cosines[i][j] = cosines[j][i] = value
        found.append(
            Probe(
                step=1 + 80 * k,
                cosines=tuple(map(tuple, cosines)),
                norms=tuple(math.exp(-0.2 * k) * (1 + i % 4) for i in range(size)),
            )
        )
    best = made[-3] if points > 3 else made[-1]
    return Record(
        suite="digits2",
        method=method,
        tasks=tuple(tasks),
        seed=seed,
        settings={"lr": 0.003, "weight_decay": 0.0, "epochs": points},
        points=tuple(made),
        probes=tuple(found),
        best=best,
        best_per_task={task: (best.step, best.val[task]["accuracy"]) for task in tasks},
        stopped="patience",
        cost=Cost(
            seconds=9.5 + rng.random(),
            validation_seconds=0.7,
            steps=20 * points,
            parameters=30_000 + 2_000 * size,
            shared_parameters=30_000,
            peak_memory=41_000_000,
            waiting=0.012,
        ),
        engine=ENGINES.get(method, "sum"),
        versions={"python": "3.11.2", "polytask": "0.1.0", "torch": "2.13.0"},
        experts=experts(rng, tasks) if method == WITH_EXPERTS else (),
        warnings=("'left' ignores its own experts.",) if method == WITH_EXPERTS else (),
    )


def experts(rng: random.Random, tasks: Sequence[str]) -> tuple[GateUse, ...]:
    """Return the gates of two levels of PLE: two shared experts and one of each task."""
    shared = ("shared 0", "shared 1")
    made = []
    for level in (0, 1):
        for task in tasks:
            raw = [rng.random() for _ in range(3)]
            mean = tuple(value / sum(raw) for value in raw)
            names, owners = (*shared, "own 0"), (None, None, task)
            made.append(GateUse(level, task, names, owners, mean, 0.8, 512))
    every = len(tasks) + 2
    names = (*shared, *("own 0" for _ in tasks))
    made.append(GateUse(0, None, names, (None, None, *tasks), (1 / every,) * every, 1.0, 512))
    return tuple(made)


def write(folder: Path, made: Record) -> None:
    """Write the record without indents, which is several times faster for 139 tasks."""
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(to_json(made)))


def interval(values: Sequence[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    half = 4.30 * statistics.stdev(values) / math.sqrt(len(values))
    centre = statistics.mean(values)
    return [centre - half, centre + half]


def comparison(
    folder: Path,
    *,
    tasks: Sequence[str] = TASKS,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    points: int = 30,
    probes: int = 8,
) -> Path:
    """Write the folder of a comparison and return it."""
    rng = random.Random(f"{len(tasks)} {methods}")
    single: dict[str, Any] = {"tasks": {}, "runs": {}, "delta_m": None, "source": "the baseline"}
    base = {}
    for i, task in enumerate(tasks):
        values = [0.82 + 0.03 * math.sin(i) + 0.006 * rng.random() for _ in seeds]
        base[task] = values
        single["tasks"][task] = {
            "metric": "accuracy",
            "values": values,
            "gains": [0.0 for _ in seeds],
            "gain": 0.0,
            "interval": None,
            "verdict": "reference",
            "why": None,
        }
        for seed in seeds:
            name = f"runs/single-{i}-{seed}"
            write(folder / name, record(rng, "single", [task], seed=seed, points=points))
            single["runs"].setdefault(task, {})[str(seed)] = name
    single |= {"delta_m_interval": None, "worst": None, "counts": None}
    single["cost"] = {
        "seconds": 9.0 * len(tasks),
        "steps": 600 * len(tasks),
        "parameters": 32_000 * len(tasks),
        "peak_memory": 39_000_000,
        "seconds_ratio": None,
        "parameters_ratio": None,
        "memory_ratio": None,
    }
    written: dict[str, Any] = {"single": single}
    for m, method in enumerate(methods):
        outcomes = {}
        per_seed = [[] for _ in seeds]
        for i, task in enumerate(tasks):
            shift = 2.2 * math.sin(1.7 * i + 0.5 * m) + 0.9 * m - 1.2
            gains = [shift + 0.5 * rng.gauss(0, 1) for _ in seeds]
            for k, gain in enumerate(gains):
                per_seed[k].append(gain)
            ends = interval(gains)
            verdict = "undecided"
            if ends and ends[0] > 0:
                verdict = "gained"
            if ends and ends[1] < 0:
                verdict = "lost"
            outcomes[task] = {
                "metric": "accuracy",
                "values": [v * (1 + g / 100) for v, g in zip(base[task], gains, strict=True)],
                "gains": gains,
                "gain": statistics.mean(gains),
                "interval": ends,
                "verdict": verdict,
                "why": None
                if verdict == "undecided"
                else f"Its gradient points against that of {tasks[0]!r} at 7 of 8 probes (mean "
                "cosine −0.31), and its loss is the smallest of all, so the others lead the step.",
            }
        deltas = [statistics.mean(gains) for gains in per_seed]
        worst = min(outcomes, key=lambda name: outcomes[name]["gain"])
        runs = {}
        for seed in seeds:
            name = f"runs/{method}-{seed}"
            write(
                folder / name, record(rng, method, tasks, seed=seed, points=points, probes=probes)
            )
            runs[str(seed)] = name
        found = [outcome["verdict"] for outcome in outcomes.values()]
        written[method] = {
            "tasks": outcomes,
            "delta_m": statistics.mean(deltas),
            "delta_m_interval": interval(deltas),
            "worst": {"task": worst, "gain": outcomes[worst]["gain"]},
            "counts": {kind: found.count(kind) for kind in ("gained", "lost", "undecided")},
            "cost": {
                "seconds": 12.0 + 2 * m,
                "steps": 600,
                "parameters": 38_000,
                "peak_memory": 45_000_000 + 1e6 * m,
                "seconds_ratio": (12.0 + 2 * m) / (9 * len(tasks)),
                "parameters_ratio": 38 / (32 * len(tasks)),
                "memory_ratio": 45 / 39,
            },
            "runs": runs,
            "source": "Yu et al., NeurIPS 2020, https://arxiv.org/abs/2001.06782",
        }
    result = {
        "suite": "digits2",
        "title": "Two digits in one picture",
        "about": {
            "title": "Two overlaid digits",
            "source": "https://archive.ics.uci.edu/dataset/80",
            "licence": "CC BY 4.0",
            "citation": "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, 1998",
            "protocol": "70/15/15 by picture, seed 0",
        },
        "notes": ["Pictures are 16 x 16 pixels."],
        "seeds": list(seeds),
        "level": 0.95,
        "rows": {"train": {"a": 900, "b": 357}, "test": {"b": 270}},
        "command": "polytask compare digits2 --methods equal,uncertainty,dwa,pcgrad,aligned-mtl",
        "created": "2026-05-04T10:11:12+00:00",
        "versions": {"python": "3.11.2", "polytask": "0.1.0", "torch": "2.13.0"},
        "tasks": [
            {
                "name": task,
                "kind": "multiclass",
                "metric": "accuracy",
                "direction": "max",
                "unit": "",
            }
            for task in tasks
        ],
        "tuning": {
            "grid": [{"lr": 0.001, "weight_decay": 0.0}, {"lr": 0.003, "weight_decay": 0.0001}],
            "rule": "The best validation score of seed 0 decides.",
            "stopping": "At most 30 epochs; 8 epochs without a better score end a run.",
            "picked": {
                "single": {task: {"lr": 0.001, "weight_decay": 0.0} for task in tasks},
                **{method: {"*": {"lr": 0.003, "weight_decay": 0.0001}} for method in methods},
            },
        },
        "methods": written,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


EIGHT = ("fashion", "kuzushiji", "usps", "svhn", "cifar10", "pneumonia", "omniglot", "mnist")


def merges(
    tasks: Sequence[str] = EIGHT,
    layers: int = 30,
    *,
    scored: bool = True,
    names: Sequence[str] = ("average", "ties"),
) -> MergeRecord:
    """Return a record of merges: two found by a search beside those of `names`."""
    rng = random.Random(1)
    pairs = len(tasks) * (len(tasks) - 1) // 2
    blocks = ["embed.weight", *(f"encoder.blocks.{k}" for k in range(layers)), "norm.bias"]
    tensors = [f"{b}.{w}" for b in blocks[1:-1] for w in ("attn.weight", "mlp.weight")]

    def meeting(name: str, at: int) -> Meeting:
        return Meeting(
            name=name,
            elements=4096,
            norms=tuple(rng.uniform(0.5, 3) for _ in tasks),
            cosines=tuple(rng.uniform(-0.2, 0.3) - at / 100 for _ in range(pairs)),
            conflicts=tuple(rng.uniform(0.4, 0.5) + at / 400 for _ in range(pairs)),
            split=0.8,
        )

    def scores(share: float) -> dict[str, float]:
        return {task: own[task] * share * rng.uniform(0.8, 1.1) for task in tasks}

    own = {task: rng.uniform(0.8, 0.99) for task in tasks} if scored else {}
    made = {}
    if scored:
        rows = tuple(tuple(rng.gauss(0.3, 0.2) for _ in tasks) for _ in tensors)
        losses = tuple(2 * math.exp(-k / 100) for k in range(500))
        made = {name: MergeResult(scores(0.6)) for name in names} | {
            "adamerging": MergeResult(scores(0.8), Learned(tuple(tensors), rows), losses),
            "atlas": MergeResult(scores(0.9), Learned((), rows[:1]), losses[:7], ("A note.",)),
        }
    return MergeRecord(
        title="Images",
        measures={t: Measure("accuracy", "max", "share") for t in (tasks if scored else ())},
        individual=own,
        merges=made,
        maps=Maps(tuple(tasks), meeting("", 0), tuple(meeting(b, k) for k, b in enumerate(blocks))),
        base=scores(0.3) if scored else {},
        joint=scores(1.0) if scored else {},
        created="2026-05-04T10:11:12+00:00",
        versions={"polytask": "0.1.0"},
    )


@pytest.fixture(scope="session")
def make_merges() -> Callable[..., MergeRecord]:
    return merges


@pytest.fixture(scope="session")
def make_comparison() -> Callable[..., Path]:
    return comparison


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    return record


@pytest.fixture
def edit_result() -> Callable[[Path, Callable[[dict[str, Any]], None]], Path]:
    """Return a function that changes the result.json of a folder in place."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        path = folder / "result.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))
        return folder

    return edit


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with its console and network logs on. In CI its absence is a failure."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        reason = "Chromium or its driver is absent: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


def relation(folder: Path, tasks: Sequence[str]) -> None:
    """Write what `polytask relate` leaves, for T >= 3 tasks, with a value that is not known."""
    T = len(tasks)
    values: list[list[float | None]] = [
        [0.5 * (-1) ** (i + j + 1) / (1 + i) if i != j else 0.0 for j in range(T)] for i in range(T)
    ]
    values[0][2] = None
    method = {
        "summary": "a summary",
        "affinity": {
            "tasks": list(tasks),
            "values": values,
            "errors": [[0.1] * T] * T,
            "source": "tag",
            "zero": True,
            "notes": ["a note"],
        },
        "groups": [
            {
                "tasks": list(tasks), "groups": [list(tasks)], "serve": [0] * T,
                "value": [0.1] * T, "score": 0.1, "optimal": True, "gap": 0.0, "source": "",
                "notes": [],
            },
            {
                "tasks": list(tasks), "groups": [list(tasks[:-1]), list(tasks[1:])],
                "serve": [0] * (T - 1) + [1], "value": [0.1] * T, "score": 0.2, "optimal": False,
                "gap": None, "source": "", "notes": [],
            },
        ],
        "together": [[1.0 if i == j else 0.25 for j in range(T)] for i in range(T)],
        "draws": 100,
    }  # fmt: skip
    found = {
        "kind": "relate", "suite": "made up", "title": "Made up", "tasks": list(tasks),
        "seeds": [0, 1], "command": "polytask relate x", "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2"}, "settings": {}, "recipe": "equal", "budget": 2, "seconds": 1.0,
        "methods": {"tag": method, "gradient-cosine": method},
        "left_out": {"label-correlation": "needs two tasks"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "relate.json").write_text(json.dumps(found))


def searched(folder: Path, tasks: Sequence[str]) -> None:
    """Write what `polytask auto` leaves, for four tasks or more, each served in another way."""

    def run(name: str, how: str, of: Sequence[str], delta_m: float | None) -> dict[str, Any]:
        return {
            "name": name, "how": how, "recipe": "equal", "tasks": list(of), "lr": 1e-3,
            "weight_decay": 0.01, "epochs": 12, "stopped": "patience", "seconds": 3.0,
            "work": 0.25, "delta_m": delta_m, "default": name == "first",
        }  # fmt: skip

    tried = [
        run("first", "shared", tasks, 0.0),
        run("pair", "group", tasks[:2], None),
        run("on", "from shared", tasks[2:3], None),
        run("lone", "alone", tasks[3:4], None),
    ]
    by = {
        "shared": "a model of all tasks",
        "group": "a model of a group",
        "from shared": "a model that went on alone from shared weights",
        "alone": "a model trained alone",
    }
    alone: list[dict[str, Any]] = [
        {"race": "not alone"},
        {
            "race": "behind", "epochs": 4, "validation": 0.5, "better": False,
            "over_served": {"gain": -10.0, "error": 2.0},
        },
        {
            "race": "unfinished", "epochs": 8, "validation": 0.8, "better": False,
            "over_served": {"gain": -1.0, "error": None},
        },
        {
            "race": "to its end", "epochs": 12, "validation": 0.9, "better": False,
            "over_served": {"gain": 0.0, "error": 0.0},
        },
    ]  # fmt: skip
    rows = []
    for i, name in enumerate(tasks):
        taken = tried[i % 4]
        rows.append(
            {
                "name": name, "kind": "binary", "metric": "AUROC", "direction": "max", "unit": "",
                "run": taken["name"], "how": taken["how"], "by": by[taken["how"]], "job": {},
                "validation": 0.9, "shared": {"validation": 0.8},
                "over_shared": {"gain": 0.0 if i % 4 == 0 else 12.5, "error": 1.5},
                "alone": alone[i % 4], "test": {"AUROC": 0.85 if i != 1 else None},
            }
        )  # fmt: skip
    found = {
        "kind": "auto", "suite": "made up", "title": "Made up", "seed": 0,
        "command": "polytask auto x", "created": "2026-01-01T00:00:00+00:00", "settings": {},
        "budget": 2.0, "work": 1.5, "seconds": 12.0, "alone_seconds": 8.0, "models": 4,
        "cost": {}, "tasks": rows, "tried": tried, "failed": {"mtan": "needs <pictures>"},
        "versions": {"torch": "2"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "auto.json").write_text(json.dumps(found))
