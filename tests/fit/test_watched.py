"""What watches a run leaves it as it was, knows the same after a kill, and sees what is there."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polytask.balance import Equal
from polytask.errors import RunError, UsageError
from polytask.fit import FitConfig, Silent, affinity_of, fit
from polytask.fit.loop import WEIGHTS
from polytask.mix import Proportional
from polytask.parsing import parse
from polytask.recipes.train import watching
from polytask.records import Record, Values
from polytask.relate import Affinity
from polytask.suites import Suite

CONFIG = FitConfig(epochs=2, batch_size=10, min_epoch_steps=6, probes=0, checkpoint_seconds=0)
NAMES = ("tag:every=2", "gradient-cosine:every=3")


class Dies(Silent):
    """Ends the run, as a kill would, after so many updates."""

    def __init__(self, after: int) -> None:
        self._after = after

    def step(self, step: int, losses: object) -> None:
        if step == self._after:
            raise KeyboardInterrupt


def run(
    tiny: ModuleType,
    suite: Suite,
    folder: Path,
    watched: bool = True,
    progress: Silent | None = None,
    config: FitConfig = CONFIG,
) -> Record:
    def score(values: Values, first: Values) -> float:
        return -sum(values.values())

    model = tiny.model(suite, dropout=0.3, batch_norm=True)
    watches = {name: watching(name, 0) for name in NAMES} if watched else None
    return fit(
        suite, model, Equal(), Proportional(), config, score, method="equal", folder=folder,
        progress=progress, watches=watches,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["shared", "apart"])
def test_a_watched_run_is_the_run_bit_for_bit(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """With dropout, batch normalisation and missing labels: no random number is drawn more."""
    suite = getattr(tiny, name)()
    plain = run(tiny, suite, tmp_path / "plain", watched=False)
    seen = run(tiny, suite, tmp_path / "seen")
    first, second = (tmp_path / kind / WEIGHTS for kind in ("plain", "seen"))
    assert first.read_bytes() == second.read_bytes()
    assert repr([replace(p, seconds=0) for p in seen.points]) == repr(
        [replace(p, seconds=0) for p in plain.points]
    )
    for text in NAMES:
        found = affinity_of(tmp_path / "seen", text)
        assert found.tasks == suite.tasks.names
        assert found.source == text.partition(":")[0]
        assert not found.missing()
        assert bool((found.values_TT.diagonal() != 0).all())


def test_a_run_that_was_killed_knows_what_it_had_seen(tiny: ModuleType, tmp_path: Path) -> None:
    suite = tiny.shared()
    run(tiny, suite, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tiny, suite, tmp_path / "killed", progress=Dies(7))
    run(tiny, suite, tmp_path / "killed")
    for text in NAMES:
        whole, again = (affinity_of(tmp_path / kind, text) for kind in ("whole", "killed"))
        assert again == whole
    # a finished run is not trained again, and its affinity stays
    run(tiny, suite, tmp_path / "killed", progress=Dies(1))


def test_a_folder_of_a_run_that_nobody_watched_is_another_run_s(
    tiny: ModuleType, tmp_path: Path
) -> None:
    run(tiny, tiny.shared(), tmp_path, watched=False)
    with pytest.raises(RunError, match="watches"):
        run(tiny, tiny.shared(), tmp_path)


def test_related_tasks_are_seen_to_be(tiny: ModuleType, tmp_path: Path) -> None:
    """Task d with the labels of a: once heads have learnt what to read, each helps the other."""
    suite = tiny.shared(rows=200, missing=0.0)
    train = suite.train[0]
    twins = replace(train, targets={**train.targets, "d": train.targets["a"].clone()})
    config = replace(CONFIG, epochs=20, lr=1e-2)
    run(tiny, replace(suite, train=(twins,)), tmp_path, config=config)
    for text in NAMES:
        found: Affinity = affinity_of(tmp_path, text)
        others = [found.of(one, "d") for one in ("b", "c")]
        assert found.of("a", "d") > max(others)


def test_steps_of_one_task_each_are_watched_and_show_no_pair(
    tiny: ModuleType, tmp_path: Path
) -> None:
    """The optimiser that keeps moments per task is told whose step it is before the look."""
    suite, mix = tiny.apart(), parse("unmixed:optimiser=mt-adamw").build_mix(0)
    model = tiny.model(suite)
    fit(
        suite, model, Equal(), mix, CONFIG, lambda values, first: 0.0, method="equal",
        folder=tmp_path, watches={"tag": watching("tag:every=1", 0)},
    )  # fmt: skip
    found = affinity_of(tmp_path, "tag")
    owners = {task: s.name for s in suite.train for task in s.targets}
    apart = [(i, j) for i in owners for j in owners if owners[i] != owners[j]]
    assert set(apart) <= set(found.missing())


def test_what_does_not_watch_is_refused() -> None:
    with pytest.raises(UsageError, match="Those that watch a run: tag, gradient-cosine"):
        watching("cka", 0)
    with pytest.raises(UsageError, match="room 'balance'"):
        watching("pcgrad", 0)
    made = watching("gradient-cosine:at_once=2", 3)
    module = torch.nn.Linear(2, 1)
    module.shared_parameters = lambda: list(module.parameters())  # type: ignore[assignment]
    watch = made(module, torch.optim.SGD(module.parameters(), 0.1), ("a", "b", "c"))  # type: ignore[arg-type]
    assert (watch._looking.at_once, watch._looking.seed) == (2, 3)  # type: ignore[attr-defined]
