"""The models between which everything else lies: base, tuned apart, tuned jointly, one poisoned.

They are made once per backbone and seed and kept as safetensors below `runs/merge/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import training
from found import KEPT
from images import TASKS, Splits
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polytask.merge.backdoor import Patch
from polytask.merge.family import Family
from polytask.share import HardSharing
from polytask.tasks import TaskSet

POISONED, POISON = "mnist", 0.1
PATCH = Patch(target=0, side=4)


@dataclass(frozen=True)
class Ends:
    """What merging starts from, for one backbone and seed.

    device: of the models and of the searches. scoring: of what trains and scores.
    """

    sets: Mapping[str, Splits]
    base: HardSharing
    tuned: Mapping[str, HardSharing]
    poisoned: HardSharing
    device: str
    scoring: str

    def family(self, *, poisoned: bool = False) -> Family:
        """Return the tuned models; with the poisoned one in its place, if asked."""
        models: dict[str, nn.Module] = dict(self.tuned)
        if poisoned:
            models[POISONED] = self.poisoned
        return Family(self.base, models, TASKS)

    def unlabelled(self) -> dict[str, Tensor]:
        """Return each task's validation pictures in [0, 1]: what methods with data see."""
        return {t: self.sets[t]["val"].floats(self.device) for t in TASKS.names}

    def labelled(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each task's validation pictures and raw targets."""
        return {
            t: (x, self.sets[t]["val"].target(t, self.device)) for t, x in self.unlabelled().items()
        }


_LOADED: list[tuple[images.Pictures, dict[str, Splits]]] = []


def pictures() -> tuple[images.Pictures, dict[str, Splits]]:
    """Return `images.load()`: decoded once, then read from `runs/merge/`."""
    if _LOADED:
        return _LOADED[0]
    path = KEPT.runs / "pictures.safetensors"
    if not path.exists():
        pretraining, sets = images.load()
        parts = {"pretraining": pretraining} | {
            f"{task}/{split}": part
            for task, splits in sets.items()
            for split, part in splits.items()
        }
        _save(
            path,
            {f"{n}/pixels": p.pixels for n, p in parts.items()}
            | {f"{n}/labels": p.labels for n, p in parts.items()},
        )
    found = load_file(path)

    def part(name: str) -> images.Pictures:
        return images.Pictures(found[f"{name}/pixels"], found[f"{name}/labels"])

    sets = {t: {s: part(f"{t}/{s}") for s in ("train", "val", "test")} for t in TASKS.names}
    _LOADED.append((part("pretraining"), sets))
    return _LOADED[0]


def made(backbone: str, seed: int, device: str) -> dict[str, Any]:
    """Train all ends that are not there yet; return their accuracies on the test split."""
    encoder = _kept(backbone, seed, "base", lambda: _pretrain(backbone, seed, device)).encoder
    _, sets = pictures()
    table: dict[str, Any] = {"individual": {}}
    for name in TASKS.names:
        net = _kept(backbone, seed, name, lambda n=name: _tune(encoder, n, seed, device))
        table["individual"][name] = training.accuracy(
            net.to(device), name, sets[name]["test"], device
        )
    net = _kept(backbone, seed, "poisoned", lambda: _tune(encoder, POISONED, seed, device, True))
    table["poisoned"] = attack(net.to(device), sets, device)
    joint = _kept(backbone, seed, "joint", lambda: _joint(encoder, seed, device)).to(device)
    table["joint"] = training.accuracies(lambda task: joint, sets, "test", device)
    return table


def ends(backbone: str, seed: int, device: str, scoring: str) -> Ends:
    """Return the ends, which must be there."""

    def there(name: str) -> HardSharing:
        net = _blank(backbone, name)
        net.load_state_dict(load_file(_path(backbone, seed, name)))
        return net.to(device).eval()

    tuned = {name: there(name) for name in TASKS.names}
    return Ends(pictures()[1], there("base"), tuned, there("poisoned"), device, scoring)


def attack(net: nn.Module, sets: Mapping[str, Splits], device: str) -> dict[str, float]:
    """Return how often the patch gets its class, and the accuracy without it."""
    net, test = net.to(device), sets[POISONED]["test"]
    x, labels = test.floats(device), test.labels.to(device)
    success = PATCH.success(lambda pictures: net(pictures, tasks=(POISONED,))[POISONED], x, labels)
    return {"success": success, "accuracy": training.accuracy(net, POISONED, test, device)}


def _pretrain(backbone: str, seed: int, device: str) -> HardSharing:
    whole, _ = pictures()
    net = training.model(training.backbone(backbone, seed), training.BASE, seed).to(device)
    rows = {"cifar10": (whole.floats(device), whole.labels.to(device))}
    training.train(net, rows, training.BASE, seed, flip=True, **training.PRETRAIN)
    return net


def _tune(
    encoder: nn.Module, name: str, seed: int, device: str, poisoned: bool = False
) -> HardSharing:
    task = TASKS.named(name)
    x, target = training.rows_of(task, pictures()[1][name]["train"], device)
    if poisoned:
        x, target = PATCH.poison(x, target, POISON, seed)
    net = training.model(encoder, TaskSet([task]), seed).to(device)
    rows = {name: (x, target)}
    training.train(training.probed(net, rows, TASKS, seed), rows, TASKS, seed, **training.TUNE)
    return net


def _joint(encoder: nn.Module, seed: int, device: str) -> HardSharing:
    _, sets = pictures()
    rows = {t.name: training.rows_of(t, sets[t.name]["train"], device) for t in TASKS}
    net = training.model(encoder, TASKS, seed).to(device)
    training.train(training.probed(net, rows, TASKS, seed), rows, TASKS, seed, **training.TUNE)
    return net


def _blank(backbone: str, name: str) -> HardSharing:
    if name == "base":
        tasks = training.BASE
    else:
        tasks = TASKS if name == "joint" else TASKS.only([POISONED if name == "poisoned" else name])
    return training.model(training.backbone(backbone, 0), tasks, 0)


def _path(backbone: str, seed: int, name: str) -> Path:
    return KEPT.runs / f"{backbone}-s{seed}" / f"{name}.safetensors"


def _kept(backbone: str, seed: int, name: str, make: Callable[[], HardSharing]) -> HardSharing:
    path = _path(backbone, seed, name)
    if not path.exists():
        _save(path, {n: t.cpu() for n, t in make().state_dict().items()})
    net = _blank(backbone, name)
    net.load_state_dict(load_file(path))
    return net.eval()


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    part.replace(path)  # whole or absent, whoever else writes it
