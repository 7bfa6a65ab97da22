"""A new task on frozen features: Medusa's heads, a plain head, and the task alone.

    python experiments/share/vision_new_task.py
    python experiments/share/vision_new_task.py --seed 1    # its runs alone, beside those of seed 0

Plan: README.md beside this file. A run that was stopped goes on where it was, on the same device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from polytask.share.staged import Staged, resized
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


class Scales(nn.Module):
    """A frozen encoder with linear maps of all its scales, added up, in place of its own end.

    What Medusa has for a task, without its masks and its attention.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        assert isinstance(encoder, Staged)
        assert isinstance(encoder, nn.Module)
        self.encoder, self.width = encoder, encoder.width
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
        "seconds": record.cost.seconds,
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


def made(seeds: Sequence[int], device: str) -> dict[str, Any]:
    """Return every model's picked setting, and its runs of these seeds; the first is tuned with."""
    suite = load_suite("camvid")

    def of(name: str, make: Callable[[Setting, int], dict[str, Any]]) -> dict[str, Any]:
        return tuned(f"vision_new_task/{name}", SETTINGS, seeds, make)

    found = {FIRST: of(FIRST, partial(learned, suite, device))}
    first = found[FIRST]["picked"]
    for kind in ("medusa", *RIVALS):
        found[kind] = of(kind, partial(trained, kind, suite, first, device))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="its runs alone; no table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seed is not None:
        made(tuple(dict.fromkeys((SEEDS[0], options.seed))), options.device)
        return
    KEPT.write("vision_new_task", {"seeds": SEEDS, "models": made(SEEDS, options.device)})


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
    """Return each model's error, what of it was trained, and for how long."""
    rows = []
    for name in ("medusa", *RIVALS):
        of = table["models"][name]
        runs = of["runs"]
        better = "" if name == "medusa" else spread(gains(table, name))
        rows.append(
            [
                name,
                spread([run["test"] for run in runs]),
                better,
                f"{runs[0]['trained']:,}",
                spread([run["seconds"] for run in runs]),
                f"{of['picked'][0]:g}",
            ]
        )
    head = [
        "model", f"RMSE of {NEW}, px", "medusa's is below by, %", "parameters trained",
        "seconds of training", "learning rate",
    ]  # fmt: skip
    first = spread([run["test"] for run in table["models"][FIRST]["runs"]])
    words = f"The network below the first three has learned {FIRST}: mean IoU {first} on test."
    return grid(table, f"A new task on frozen features: {NEW} on camvid", head, rows, words)


if __name__ == "__main__":
    main()
