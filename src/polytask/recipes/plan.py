"""What a comparison and a search are asked for: suite, methods, seeds, the same tuning for all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from polytask.errors import UsageError
from polytask.fit import FitConfig
from polytask.parsing import parse

SINGLE = "single"
"""The name under which the single-task models stand beside the methods."""

AUTO = "auto"
"""The name of a search among the methods of a comparison, and of its folder there: see `auto`."""

METHODS = ("equal", "uncertainty", "dwa", "pcgrad", "aligned-mtl")
"""What is compared unless methods are named."""

GRID: tuple[tuple[float, float], ...] = (
    (1e-3, 1e-2),
    (3e-3, 1e-2),
    (1e-3, 3.0),
    (3e-3, 3.0),
    (3e-4, 1e-2),
    (1e-2, 1e-2),
    (3e-4, 3.0),
    (3e-3, 0.3),
)
"""Learning rate and weight decay of AdamW, the likeliest first; `tune` takes that many of them.
Decay is decoupled: an update shrinks weights by learning rate times decay, so that 0.01 hardly
acts in a short run, and 3 is what a task with few rows needs."""


def check_tune(tune: int) -> None:
    """Raise UsageError where there are not so many settings to try."""
    if not 1 <= tune <= len(GRID):
        raise UsageError(f"tune is {tune}; give 1 to {len(GRID)} settings.")


def check_parallel(processes: int, threads: int) -> None:
    """Raise UsageError where nothing would run."""
    if processes < 1:
        raise UsageError(f"The number of processes is {processes}; give at least 1.")
    if threads < 1:
        raise UsageError(f"threads is {threads}; give at least 1.")


@dataclass(frozen=True)
class Plan:
    """What `compare` is asked for.

    suite: a name, or the path of a file that declares one. methods: recipes, see
    `parsing.parse`, and "auto", see `recipes.auto`. seeds: how many, from 0. tune: how many
    settings of `GRID` each model tries.
    config: everything that is not tuned; lr, weight_decay and seed in it are not used.
    processes: runs at a time. threads: of each run; more than one makes a long run faster, and the
    last digits of a result depend on it, so it does not follow from `processes`.
    """

    suite: str
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    tune: int = 3
    config: FitConfig = field(default_factory=FitConfig)
    out: Path = Path("runs")
    processes: int = 1
    threads: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(
                f"seeds is {self.seeds}; give at least 1 (2 for intervals, 3 for useful ones)."
            )
        check_tune(self.tune)
        check_parallel(self.processes, self.threads)
        if not self.methods:
            raise UsageError("No method was named; give at least one. See `polytask methods`.")
        for name in self.methods:
            if name == SINGLE:
                raise UsageError("'single' is always trained; name only the methods beside it.")
            if name != AUTO:
                parse(name)
        if len(set(self.methods)) != len(self.methods):
            raise UsageError(f"A method is named twice in {', '.join(self.methods)}; name it once.")


MANY = 8
"""From so many tasks on, a model of all costs little beside one for each."""

BESIDE = ("mmoe", "cross-stitch", "dsmtl", "uncertainty")
"""What a search tries beside hard sharing where the budget lasts, in this order, unless methods are
named."""


def usual_budget(tasks: int) -> float:
    """Return what `auto` may cost against one run of every task alone: 0.5 of many tasks, else 2.

    A model of two tasks costs half of what both cost alone, so little is to be saved there.
    """
    return 0.5 if tasks >= MANY else 2.0


@dataclass(frozen=True)
class AutoPlan:
    """What `auto` is asked for.

    suite: a name, or the path of a file that declares one. budget: what all training together may
    cost, in runs of every task alone; None: see `usual_budget`. The first model of all tasks is
    trained whatever it costs. methods: recipes to try beside hard sharing with equal weights.
    tune: settings of `GRID` to try. config: of each run, its seed included; lr and weight_decay
    are not used, and patience is at most a fifth of the epochs. processes, threads: as of `Plan`.
    """

    suite: str
    budget: float | None = None
    methods: tuple[str, ...] = BESIDE
    tune: int = 3
    config: FitConfig = field(default_factory=FitConfig)
    out: Path = Path("runs")
    processes: int = 1
    threads: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise UsageError(
                f"auto: budget is {self.budget}; give a number > 0, such as 0.5 for half of what "
                "training every task alone costs."
            )
        check_tune(self.tune)
        check_parallel(self.processes, self.threads)
        for text in self.methods:
            parse(text)

    @property
    def trained(self) -> FitConfig:
        """How every run trains: it stops sooner than a run that a table of results is made of."""
        fifth = max(2, self.config.epochs // 5)
        patience = min(self.config.patience or fifth, fifth)
        return replace(self.config, patience=patience, probes=0)


Setting = tuple[float, float]
"""Learning rate and weight decay, one of `GRID`."""

Model = tuple[str, str | None]
"""Who is trained: (SINGLE, task) for a single-task model, (method, None) for one of all tasks."""
