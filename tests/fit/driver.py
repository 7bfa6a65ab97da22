"""Tiny suites and models for the tests of fit/, and runs of them in processes of their own.

python driver.py kill OUT      runs that are killed again and again, and the same undisturbed
torchrun ... driver.py ranks OUT     the runs of SCENARIOS, by several processes
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask import balance
from polytask.errors import PolytaskError
from polytask.fit import FitConfig, Silent, fit, ranks
from polytask.mix import LossDriven, Mix, Proportional, Uniform
from polytask.records import Record, Values
from polytask.share import HardSharing
from polytask.suites import About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP
from polytask.tasks import Binary, Multiclass, Regression, SequenceLabels, Task, TaskSet

METHODS: dict[str, Callable[[], Any]] = {
    "equal": balance.Equal,
    "uncertainty": balance.Uncertainty,
    "dwa": balance.DWA,
    "pcgrad": balance.PCGrad,
    "pcgrad+flat-regions": lambda: balance.FlatRegions(balance.PCGrad()),
    "pcgrad+sampled-rows:fraction=1.0": lambda: balance.SampledRows(balance.PCGrad(), 1.0),
}

ABOUT = About("tiny", "drawn for the tests", "none", "none", "at random")
COLUMNS = 6
WIDTH = 8

TASKS = TaskSet(
    [
        Task("a", Binary()),
        Task("b", Multiclass(3)),
        Task("c", Regression()),
        Task("d", Binary()),
    ]
)


def _labels(inputs: Tensor, draw: torch.Generator, missing: float) -> dict[str, Tensor]:
    """Targets that the inputs explain in part, some of them missing; row 0 and 1 have all."""
    noisy = inputs + 0.3 * torch.randn(inputs.shape, generator=draw)
    targets = {
        "a": (noisy[:, 0] > 0).float(),
        "b": noisy[:, :3].argmax(1),
        "c": 100 + 20 * (noisy[:, 1] - noisy[:, 2]),
        "d": (noisy[:, 3] + noisy[:, 4] > 0.5).float(),
    }
    for name, target in targets.items():
        gone = torch.rand(len(target), generator=draw) < missing
        gone[: len(target) // 4] = False
        target[gone] = -100 if name == "b" else torch.nan
    return targets


def _stream(name: str, rows: int, seed: int, missing: float, tasks: str = "abcd") -> Stream:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, COLUMNS, generator=draw)
    targets = _labels(inputs, draw, missing)
    inputs = inputs.to(torch.get_default_dtype())
    return Stream(name, inputs, {task: targets[task] for task in tasks})


def shared(rows: int = 50, missing: float = 0.4) -> Suite:
    """One stream that labels four tasks of three kinds, with many labels missing."""
    return make_suite(
        name="shared",
        tasks=TASKS,
        train=[_stream("all", rows, 1, missing)],
        val=[_stream("all", 40, 2, 0.2)],
        test=[_stream("all", 40, 3, 0.2)],
        encoder=lambda: MLP(COLUMNS, (16, WIDTH)),
        width=WIDTH,
        about=ABOUT,
    )


def apart(missing: float = 0.3) -> Suite:
    """Three streams of unlike sizes that label disjoint tasks."""
    parts = (("first", 40, "a"), ("second", 17, "bd"), ("third", 12, "c"))

    def streams(seed: int) -> list[Stream]:
        return [
            _stream(name, rows, seed + i, missing, tasks)
            for i, (name, rows, tasks) in enumerate(parts)
        ]

    return make_suite(
        name="apart",
        tasks=TASKS,
        train=streams(10),
        val=streams(20),
        test=streams(30),
        encoder=lambda: MLP(COLUMNS, (16, WIDTH)),
        width=WIDTH,
        about=ABOUT,
    )


class Words(nn.Module):
    """Features of a word each, and of a row: the mean of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, WIDTH, padding_idx=0)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        words_BLW = self.table(inputs["words"])
        used_BL1 = (inputs["words"] > 0).unsqueeze(-1).to(words_BLW.dtype)
        row_BW = (words_BLW * used_BL1).sum(1) / used_BL1.sum(1).clamp(min=1)
        return {"row": row_BW * inputs["gain"].unsqueeze(1), "sequence": words_BLW}


def words(seed: int, name: str, rows: int, longest: int, tasks: tuple[str, ...]) -> Stream:
    """Rows of words, padded to the longest of them: `topic` per row, `tag` per word."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    ids = torch.randint(1, 12, (rows, longest), generator=draw)
    outside = torch.arange(longest) >= lengths[:, None]
    ids[outside] = 0
    tags = (ids % 3).masked_fill(outside, -100)
    targets = {"topic": ids[:, 0] % 3, "tag": tags, "odd": ids[:, 0] % 2 == 1}
    # Unlike for every row, so that no two rows score alike but for rounding.
    gain = 0.5 + torch.rand(rows, generator=draw).to(torch.get_default_dtype())
    return Stream(
        name,
        {"words": ids, "gain": gain},
        {task: targets[task] for task in tasks},
        ragged=("words", *(("tag",) if "tag" in tasks else ())),
        lengths=lengths,
    )


def ragged() -> Suite:
    """Three streams of words of unlike lengths; one labels words, one has yes-or-no in bool."""

    def streams(seed: int) -> list[Stream]:
        return [
            words(seed, "short", 20, 4, ("odd",)),
            words(seed + 1, "long", 15, 9, ("tag", "topic")),
            words(seed + 2, "middle", 11, 6, ("topic",)),
        ]

    return make_suite(
        name="ragged",
        tasks=TaskSet(
            [
                Task("topic", Multiclass(3)),
                Task("tag", SequenceLabels(3)),
                Task("odd", Binary()),
            ]
        ),
        train=streams(1),
        val=streams(11),
        test=streams(21),
        encoder=Words,
        width=WIDTH,
        about=ABOUT,
    )


def model(suite: Suite, dropout: float = 0.0, batch_norm: bool = False, seed: int = 0) -> Any:
    """The same first weights for the same seed; torch's generator is left where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = suite.encoder()
        if dropout:
            encoder = nn.Sequential(encoder, nn.Dropout(dropout))
        if batch_norm:
            encoder = nn.Sequential(encoder, nn.BatchNorm1d(suite.width))
        return HardSharing.build(encoder, suite.width, suite.tasks)


def first_task(values: Mapping[str, float], first: Mapping[str, float]) -> float:
    """A score: the first task's primary metric, up is better in all suites here."""
    return next(iter(values.values()))


@dataclass
class Watcher(Silent):
    """Keeps the weights of the last update; waits or stops where asked to."""

    model: nn.Module
    file: Path | None = None
    pause: float = 0.0
    stop_after: int = 0
    steps: int = 0
    seen: list[int] = field(default_factory=list)
    last: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, steps: int, done: int) -> None:
        self.steps = steps
        self.begun_at = done

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        self.seen.append(step)
        time.sleep(self.pause)
        if step == self.steps:
            self.last = {n: v.clone() for n, v in self.model.state_dict().items()}
            if self.file is not None and ranks.rank() == 0:
                safetensors.torch.save_file(self.last, self.file)
        if step == self.stop_after:
            raise Stopped


class Stopped(Exception):
    """Thrown into a run from outside, as Ctrl-C is."""


def run(
    suite: Suite,
    method: str = "equal",
    folder: Path | None = None,
    dropout: float = 0.0,
    batch_norm: bool = False,
    score: Callable[[Mapping[str, float], Mapping[str, float]], float] = first_task,
    pause: float = 0.0,
    stop_after: int = 0,
    mix: Mix | None = None,
    until: int | None = None,
    **settings: Any,
) -> tuple[Record, Watcher]:
    """Train as `fit` does; return its record, and the watcher with the model and last weights.

    `<folder>.last.safetensors` holds the weights after the last update.
    """
    settings = {"epochs": 3, "batch_size": 7, "min_epoch_steps": 1, "lr": 1e-2} | settings
    made = model(suite, dropout, batch_norm)
    file = None if folder is None else folder.with_name(f"{folder.name}.last.safetensors")
    watcher = Watcher(made, file, pause, stop_after)
    if mix is None:
        mix = Proportional() if len(suite.train) == 1 else Uniform()
    record = fit(
        suite,
        made,
        METHODS[method](),
        mix,
        FitConfig(**settings),
        score,
        method=method,
        folder=folder,
        progress=watcher,
        until=until,
    )
    return record, watcher


# -- killed ------------------------------------------------------------------------------------

KILLED: dict[str, dict[str, Any]] = {
    "equal": {"method": "equal", "accumulate": 2, "clip": 0.5, "schedule": "cosine"},
    "uncertainty": {"method": "uncertainty", "clip": 1.0, "accumulate": 2},
    "dwa": {"method": "dwa", "per_task_best": True},
    "pcgrad": {"method": "pcgrad", "accumulate": 3},
}
"""Runs of 24 updates each, with dropout; a checkpoint after every one."""

DEATHS: tuple[tuple[str, str, int], ...] = (
    ("replace", "run.json", 1),
    ("replace", "checkpoint-*.safetensors", 3),
    ("replace", "checkpoint.json", 3),
    ("unlink", "checkpoint-*.safetensors", 2),
    ("moment", "", 9),
    ("moment", "", 14),
    ("replace", "best.safetensors", 1),
    ("replace", "record.json", 1),
    ("unlink", "checkpoint.json", 1),
)
"""What a run is killed before: the n-th time a file is put in place or removed, or, at no chosen
place, some time after update n."""


def deaths(name: str) -> tuple[tuple[str, str, int], ...]:
    """Every second death for each run of KILLED, so that two of them die each."""
    return DEATHS[list(KILLED).index(name) % 2 :: 2]


def _forked(work: Callable[[], object]) -> int:
    """Do the work in a child and return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _die_before(operation: str, pattern: str, count: int) -> None:
    """Make this process kill itself before it does `operation` on such a file the n-th time."""
    original = getattr(Path, operation)
    left = [count]

    def hooked(path: Path, *arguments: Any, **named: Any) -> Any:
        file = Path(arguments[0]) if operation == "replace" else path
        if fnmatch(file.name, pattern) and path.exists():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *arguments, **named)

    setattr(Path, operation, hooked)


def _reached(folder: Path) -> int:
    steps = [int(p.stem.split("-")[1]) for p in folder.glob("checkpoint-*.safetensors")]
    return max(steps, default=0)


def kill(out: Path) -> None:
    """Write to `out`: for each run of KILLED the folders `whole` and `killed`, and kills.json."""
    run(shared(), epochs=1)  # loads once what every child would: torch's compiler, the metrics
    # A kill loses nothing that was written; only a power cut needs the disk to be waited for.
    os.fsync = lambda file: None  # type: ignore[assignment]
    kills: dict[str, list[bool]] = {}
    for name, settings in KILLED.items():
        (out / name).mkdir(parents=True)

        def train(
            folder: Path,
            death: tuple[str, str, int] | None,
            settings: dict[str, Any] = settings,
        ) -> None:
            pause = 0.0
            if death is not None and death[0] == "moment":
                pause = 0.02
            elif death is not None:
                _die_before(*death)
            run(shared(), folder=folder, dropout=0.3, checkpoint_seconds=0, pause=pause, **settings)

        _wait(_forked(lambda train=train, name=name: train(out / name / "whole", None)))
        folder = out / name / "killed"
        kills[name] = []
        for death in deaths(name):
            child = _forked(lambda train=train, folder=folder, death=death: train(folder, death))
            if death[0] == "moment":
                while _reached(folder) < death[2]:
                    time.sleep(0.002)
                time.sleep(random.uniform(0, 0.03))
                os.kill(child, signal.SIGKILL)
            kills[name].append(_wait(child) == -signal.SIGKILL)
        _wait(_forked(lambda train=train, folder=folder: train(folder, None)))
    (out / "kills.json").write_text(json.dumps(kills))


def _wait(child: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        raise SystemExit(f"a run failed with exit code {code}")
    return code


# -- several processes ---------------------------------------------------------------------------

SCENARIOS: dict[str, dict[str, Any]] = {
    # 41 rows: the last batch of an epoch has one row, so one process has none.
    "equal": {"rows": 41, "method": "equal", "batch_size": 4, "schedule": "cosine"},
    "uncertainty": {"rows": 41, "method": "uncertainty", "batch_size": 4, "clip": 0.3},
    "pcgrad": {"rows": 41, "method": "pcgrad", "batch_size": 4},
    "accumulate": {"rows": 41, "method": "pcgrad", "batch_size": 8, "accumulate": 3, "clip": 0.5},
    "apart": {"suite": "apart", "method": "equal", "batch_size": 5},
    "ragged": {"suite": "ragged", "method": "pcgrad", "batch_size": 3},
    "driven": {"suite": "apart", "method": "equal", "batch_size": 5, "mix": LossDriven(floor=0.2)},
    "flat": {"rows": 41, "method": "pcgrad+flat-regions", "batch_size": 4},
    "sampled": {
        "suite": "apart",
        "method": "pcgrad+sampled-rows:fraction=1.0",
        "batch_size": 6,
        "accumulate": 2,
    },
}
"""Runs in float64 without dropout, each to be equal whatever the number of processes."""


def scenario(name: str, folder: Path | None) -> tuple[Record, Watcher]:
    settings = dict(SCENARIOS[name])
    made = {"shared": shared, "apart": apart, "ragged": ragged}[settings.pop("suite", "shared")]
    rows = settings.pop("rows", None)
    suite = made() if rows is None else made(rows, 0.6)
    return run(suite, folder=folder, epochs=2, **settings)


def several(out: Path) -> None:
    """Write to `out` a folder per scenario, and what else several processes must do."""
    ranks.start("cpu")
    if ranks.rank() != 0:

        def refuse(path: Path, *arguments: Any, **named: Any) -> None:
            raise AssertionError(f"a process that is not the first one writes {path}")

        Path.replace = Path.unlink = Path.mkdir = refuse  # type: ignore[assignment]
    torch.set_default_dtype(torch.float64)
    for name in SCENARIOS:
        scenario(name, out / name)
    try:
        run(shared(), batch_norm=True)
    except PolytaskError as error:
        if ranks.rank() == 0:
            (out / "batchnorm.txt").write_text(f"{type(error).__name__}: {error}")
    # Interrupted and taken up again, with dropout and batches that part unevenly.
    for folder, stops in (("whole", (0,)), ("resumed", (5, 12, 0)), ("left", (5,))):
        for stop in stops:
            try:
                run(
                    shared(41),
                    "uncertainty",
                    out / folder,
                    dropout=0.3,
                    stop_after=stop,
                    checkpoint_seconds=0,
                )
            except Stopped:
                continue
    draws = ranks.gather(torch.rand(3))
    group = weakref.ref(dist.group.WORLD)
    ranks.stop()
    assert group() is None, "a group that is held to the end aborts the process at exit"
    if os.environ["RANK"] == "0":
        (out / "draws.json").write_text(json.dumps([d.tolist() for d in draws]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill, "ranks": several}[sys.argv[1]](Path(sys.argv[2]))
