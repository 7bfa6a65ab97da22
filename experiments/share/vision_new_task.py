"""A new task on frozen features: Medusa's heads, a plain head, and the task alone.

    python experiments/share/vision_new_task.py
    python experiments/share/vision_new_task.py --device cuda --processes 14

Plan: README.md beside this file. A run that was stopped goes on where it was, on the same device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from found import KEPT, Table, claim, spread
from found import section as grid
from torch import Tensor, nn
from trials import Setting, tuned

from polytask.evaluate import Claim
from polytask.fit import FitConfig, Meters, fit, primary, validate
from polytask.parsing import parse
from polytask.recipes import build, load_suite, score_for
from polytask.records import Record
from polytask.share import HardSharing, SharedModel
from polytask.share.staged import resized, staged
from polytask.suites import Suite
from polytask.tasks import TaskSet

FIRST, NEW = "segments", "edge_distance"
SEEDS = (0, 1, 2)
EPOCHS = 20
SETTINGS = ((1e-3, 1e-2), (3e-3, 1e-2), (1e-2, 1e-2))
RIVALS = {
    "alone": ("a new task on frozen features is no worse than alone", "no worse", 5.0),
    "plain": ("on frozen features masks and attention do more than a plain head", "greater", 2.0),
    "scales": ("on frozen features they do more than all scales without them", "greater", 2.0),
}


KINDS = ("medusa", *RIVALS)


class Scales(nn.Module):
    """A frozen encoder with linear maps of all its scales, added up, in place of its own end.

    What Medusa has for a task, without its masks and its attention.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        shown = staged(encoder, "Scales")
        self.encoder, self.width = encoder, shown.width
        self.maps = nn.ModuleList(
            nn.Conv2d(encoder.stage_channels[at][1], encoder.stage_channels[-1][1], 1)
            for at in encoder.scales
        )

    def forward(self, pictures: Tensor) -> Any:
        every = self.encoder.stages(pictures)
        last = every[-1][1]
        read = [every[at][1] for at in self.encoder.scales]
        parts = [resized(of(x), last) for of, x in zip(self.maps, read, strict=True)]
        return self.encoder.finish(torch.stack(parts).sum(0), pictures.shape[-2:])


def fitted(
    suite: Suite, name: str, setting: Setting, seed: int, device: str, model: SharedModel
) -> Record:
    """Train the model on the suite's one task, or go on; return the record, best weights loaded."""
    lr, decay = setting
    config = FitConfig(
        epochs=EPOCHS,
        batch_size=suite.batch_size,
        lr=lr,
        weight_decay=decay,
        patience=0,
        seed=seed,
        device=device,
    )
    _, balance, mix = build(suite, parse("hard"), seed)
    folder = KEPT.runs / "vision_new_task" / f"{name}--lr{lr:g}-wd{decay:g}--s{seed}"
    score = score_for(suite.tasks, None)
    return fit(suite, model.to(device), balance, mix, config, score, method=name, folder=folder)


def generic(suite: Suite, setting: Setting, seed: int, device: str) -> tuple[SharedModel, Record]:
    """Return Medusa with the first task learned."""
    first = suite.only([FIRST])
    model, _, _ = build(first, parse("medusa"), seed)
    return model, fitted(first, "medusa first", setting, seed, device, model)


def on_frozen(kind: str, suite: Suite, base: SharedModel, seed: int) -> SharedModel:
    """Return a model that answers the new task from the base's encoder, which stays as it is."""
    task = suite.tasks.named(NEW)
    encoder = base.encoder
    assert isinstance(encoder, nn.Module)
    encoder.requires_grad_(False)
    torch.manual_seed(seed)
    if kind == "medusa":
        base.add_task(task)
        return base
    read = Scales(encoder) if kind == "scales" else encoder
    width = encoder.width
    assert isinstance(width, int)
    return HardSharing.build(read, width, TaskSet([task]))


def trained(
    kind: str, suite: Suite, first: Setting, device: str, setting: Setting, seed: int
) -> dict[str, Any]:
    """Train one model of the new task; return its score, its test value and what it cost.

    first: the setting of the first task's run.
    """
    new = suite.only([NEW])
    base = None
    if kind == "alone":
        model, _, _ = build(new, parse("hard"), seed)
    else:
        base, _ = generic(suite, first, seed, device)
        looked = suite.val[0].inputs
        assert isinstance(looked, Tensor)
        before = answers(base, looked)
        model = on_frozen(kind, suite, base, seed)
    own = sum(p.numel() for p in model.task_parameters(NEW))
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    record = fitted(new, kind, setting, seed, device, model)
    found = validate(model, new.test, Meters(new.tasks, primary_only=True), 64, device)
    if base is not None and not torch.equal(before, answers(base, looked)):
        raise AssertionError(f"{kind}, seed {seed}: outputs of {FIRST} have changed")
    return {
        "score": record.best.score,
        "test": primary(found, new.tasks)[NEW],
        "trained": own if kind == "medusa" else free,
        "epoch": record.best.epoch,
    }


def answers(base: SharedModel, pictures: Tensor) -> Tensor:
    """Return the first task's outputs for a few pictures, on the CPU, which repeats its bits."""
    with torch.no_grad():
        return base.cpu()(pictures[:8], tasks=[FIRST])[FIRST]


def learned(suite: Suite, device: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Return what the first task's run is picked by."""
    model, record = generic(suite, setting, seed, device)
    first = suite.only([FIRST])
    found = validate(model, first.test, Meters(first.tasks, primary_only=True), 64, device)
    return {"score": record.best.score, "test": primary(found, first.tasks)[FIRST]}


def maker(name: str, device: str, first: Setting) -> Callable[[Setting, int], dict[str, Any]]:
    """Return what trains a model of this name. first: the setting of the first task's run."""
    suite = load_suite("camvid")
    if name == FIRST:
        return partial(learned, suite, device)
    return partial(trained, name, suite, first, device)


def runs(
    name: str, device: str, first: Setting, settings: Sequence[Setting], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return the setting picked with the first seed and the runs of all; made where not there."""
    return tuned(f"vision_new_task/{name}", settings, seeds, maker(name, device, first))


def made(device: str) -> dict[str, Any]:
    """Return every model's picked setting and its runs."""
    found: dict[str, Any] = {}
    first = SETTINGS[0]  # which the first task's own runs do not read
    for name in (FIRST, *KINDS):
        found[name] = runs(name, device, first, SETTINGS, SEEDS)
        first = found[FIRST]["picked"]
    return found


def one(name: str, device: str, first: Setting, setting: Setting, seed: int) -> None:
    """Make one run, in a process of its own."""
    torch.set_num_threads(1)
    runs(name, device, first, (setting,), (seed,))


def beforehand(device: str, processes: int) -> None:
    """Make all runs that `made` reads, several at a time: those that need no other first."""
    tuning, later = [(setting, SEEDS[0]) for setting in SETTINGS], SEEDS[1:]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def all_of(wanted: Sequence[tuple[str, Setting, Setting, int]]) -> None:
            asked = [pool.submit(one, name, device, *rest) for name, *rest in wanted]
            for run in asked:
                run.result()

        def picked(name: str, first: Setting) -> Setting:
            found: Setting = runs(name, device, first, SETTINGS, SEEDS[:1])["picked"]
            return found

        nothing = SETTINGS[0]
        all_of([(FIRST, nothing, *run) for run in tuning])
        first = picked(FIRST, nothing)
        of_first = [(FIRST, nothing, first, seed) for seed in later]
        all_of(of_first + [(kind, first, *run) for kind in KINDS for run in tuning])
        all_of([(kind, first, picked(kind, first), seed) for kind in KINDS for seed in later])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time (default 1)")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"processes is {options.processes}; give at least 1.")
    torch.set_num_threads(1)
    if options.processes > 1:
        beforehand(options.device, options.processes)
    KEPT.write("vision_new_task", {"seeds": SEEDS, "models": made(options.device)})


def gains(table: Table, rival: str) -> list[float]:
    """Return by how much Medusa's error is below the rival's, in % of it, of each seed."""
    ours, theirs = (table["models"][n]["runs"] for n in ("medusa", rival))
    return [100 * (b["test"] - a["test"]) / b["test"] for a, b in zip(ours, theirs, strict=True)]


def claims(table: Table) -> Iterator[Claim]:
    """Medusa's added task against the task alone, and against simpler heads."""
    for rival, (words, expected, margin) in RIVALS.items():
        yield claim(
            table, "medusa", words,
            f"camvid: {NEW} added to a network trained on {FIRST}, {EPOCHS} epochs each, each "
            "model's learning rate picked alike",
            gains(table, rival), expected, margin, f"% of RMSE below {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    """Return each model's error and how much of it was trained."""
    rows = []
    for name in KINDS:
        of = table["models"][name]
        every = of["runs"]
        better = "" if name == "medusa" else spread(gains(table, name))
        rows.append(
            [
                name,
                spread([run["test"] for run in every]),
                better,
                f"{every[0]['trained']:,}",
                f"{of['picked'][0]:g}",
            ]
        )
    head = [
        "model", f"RMSE of {NEW}, px", "medusa's is below by, %", "parameters trained",
        "learning rate",
    ]  # fmt: skip
    first = spread([run["test"] for run in table["models"][FIRST]["runs"]])
    words = f"The network below the first three has learned {FIRST}: mean IoU {first} on test."
    return grid(table, f"A new task on frozen features: {NEW} on camvid", head, rows, words)


if __name__ == "__main__":
    main()
