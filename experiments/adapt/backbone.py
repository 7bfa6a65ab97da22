"""The hierarchical transformer of `vision.py`, pretrained on CIFAR-10.

    python experiments/adapt/backbone.py

`vision.py` makes it too where it is not there. Kept as `runs/adapt/vision/base.safetensors`.

Shapes: B = pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from found import KEPT, cifar10
from torch import Tensor
from torch.nn import functional

from polytask.records import write_atomic
from polytask.suites.swin import Swin

SIZES: dict[str, Any] = {"patch": 8, "dim": 40, "depths": (2, 2, 2), "head": 20, "window": 4}
PRETRAIN: dict[str, Any] = {
    "pictures": 50_000, "side": 64, "epochs": 7, "batch": 128, "rate": 2e-3, "decay": 0.05,
    "warm_up": 0.1, "seed": 0,
}  # fmt: skip
CLASSES = 10
MARGIN = 4
"""Pixels, of 32, that crops are moved by at most."""


def encoder(
    mean_C: Sequence[float], scale_C: Sequence[float], ends: Literal["row", "levels"]
) -> Swin:
    return Swin(mean_C, scale_C, **SIZES, width=CLASSES, ends=ends)


def base(path: Path | None = None) -> dict[str, Tensor]:
    """Return the weights of the pretrained encoder, without what its classes were read from.

    Trained now where they are not there, or were trained otherwise.
    """
    from safetensors import safe_open

    path = path or KEPT.runs / "vision" / "base.safetensors"
    wanted = json.dumps(told())
    if not path.exists() or about(path)["settings"] != wanted:
        pretrain(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def about(path: Path | None = None) -> dict[str, str]:
    """Return the settings that the weights were trained with, their accuracy and their time."""
    from safetensors import safe_open

    with safe_open(path or KEPT.runs / "vision" / "base.safetensors", "pt") as file:
        found: dict[str, str] = file.metadata()
        return found


def told() -> dict[str, Any]:
    return SIZES | PRETRAIN


def pretrain(path: Path) -> None:
    """Train on CIFAR-10 and write the weights, atomically."""
    import safetensors.torch

    begun = time.process_time()
    pixels, labels = (part[: PRETRAIN["pictures"]] for part in cifar10("train"))
    pixels_3M = pixels.transpose(0, 1).flatten(1).float()
    torch.manual_seed(PRETRAIN["seed"])
    net = encoder(pixels_3M.mean(1).tolist(), pixels_3M.std(1).tolist(), "row")
    steps = PRETRAIN["epochs"] * -(-len(labels) // PRETRAIN["batch"])
    optimiser = torch.optim.AdamW(
        net.parameters(), PRETRAIN["rate"], weight_decay=PRETRAIN["decay"]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PRETRAIN["rate"], total_steps=steps, pct_start=PRETRAIN["warm_up"]
    )
    random = torch.Generator().manual_seed(PRETRAIN["seed"])
    for epoch in range(PRETRAIN["epochs"]):
        seen = 0.0
        for rows in torch.randperm(len(labels), generator=random).split(PRETRAIN["batch"]):
            logits = net(larger(moved(pixels[rows], random)))["row"]
            loss = functional.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            seen += float(loss.detach()) * len(rows)
        print(f"pretraining, epoch {epoch + 1}: loss {seen / len(labels):.3f}", flush=True)
    words = {
        "settings": json.dumps(told()),
        "accuracy": f"{accuracy(net):.4f}",
        "seconds": f"{time.process_time() - begun:.0f}",
    }
    own = {n: p.detach() for n, p in net.named_parameters() if not n.startswith("ends.")}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(own, words))


def moved(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Return pictures moved by a few pixels each way, half of the batch the other way round."""
    whole = functional.pad(pixels, [MARGIN] * 4)
    side = pixels.shape[-1]
    top, left = torch.randint(0, 2 * MARGIN + 1, (2, len(pixels)), generator=random)
    at = torch.arange(side)
    rows, columns = top[:, None] + at, left[:, None] + at
    turned = torch.rand(len(pixels), generator=random) < 0.5
    columns = torch.where(turned[:, None], columns.flip(1), columns)
    picture = torch.arange(len(pixels))[:, None, None]
    return whole.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def larger(pixels: Tensor) -> Tensor:
    """Return pictures of the side that the encoder is trained on."""
    return functional.interpolate(
        pixels.float(), size=PRETRAIN["side"], mode="bilinear", align_corners=False
    )


def accuracy(net: Swin) -> float:
    """Return the accuracy on the test pictures of CIFAR-10."""
    pixels, labels = cifar10("test")
    with torch.no_grad():
        said = torch.cat([net(larger(part))["row"].argmax(1) for part in pixels.split(500)])
    return float((said == labels).double().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    base()
    print(about())
