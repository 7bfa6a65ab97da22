"""Models of other libraries with the experts of `benchmarks/share.py`, for its `--peers`.

Built and called as their own documentation shows, one dense feature of 256 numbers as input and no
towers. DeepCTR-Torch ("deepctr-torch requests") and Torch-RecHub ("torch-rechub") go into an
environment of their own beside polytask; what is absent is left out, and said. Torch-RecHub puts
batch normalisation behind every layer. For one task both run all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


def models(
    kind: str, tasks: int, inputs: int, widths: tuple[int, ...], experts: int
) -> dict[str, tuple[nn.Module, Forward]]:
    """Return, by library, the model and how it is called: rows (B, inputs) -> (B, tasks)."""
    makers = {
        "DeepCTR-Torch": ("deepctr_torch", _deepctr),
        "Torch-RecHub": ("torch_rechub", _rechub),
    }
    found = {}
    for name, (package, make) in makers.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is not installed: left out", file=sys.stderr)
        else:
            found[name] = make(kind, tasks, inputs, widths, experts)
    return found


def _deepctr(
    kind: str, tasks: int, inputs: int, widths: tuple[int, ...], experts: int
) -> tuple[nn.Module, Forward]:
    with contextlib.redirect_stdout(io.StringIO()):  # it looks for a newer version of itself
        from deepctr_torch.inputs import DenseFeat
        from deepctr_torch.models.multitask import MMOE, PLE
    common: dict[str, Any] = {
        "dnn_feature_columns": [DenseFeat("x", inputs)],
        "expert_dnn_hidden_units": widths,
        "gate_dnn_hidden_units": (),
        "tower_dnn_hidden_units": (),
        "task_types": ["regression"] * tasks,
        "task_names": [f"task {t}" for t in range(tasks)],
    }
    made = MMOE(num_experts=experts, **common) if kind == "MMoE" else PLE(**common)
    return made, made


def _rechub(
    kind: str, tasks: int, inputs: int, widths: tuple[int, ...], experts: int
) -> tuple[nn.Module, Forward]:
    from torch_rechub.basic.features import DenseFeature
    from torch_rechub.models.multi_task import MMOE, PLE

    features, types = [DenseFeature("x", embed_dim=inputs)], ["regression"] * tasks
    expert: dict[str, Any] = {"dims": list(widths)}
    towers: list[dict[str, Any]] = [{"dims": []} for _ in range(tasks)]
    if kind == "MMoE":
        made = MMOE(features, types, experts, expert, towers)
    else:
        made = PLE(features, types, 2, 1, 1, expert, towers)
    return made, lambda rows: made({"x": rows})
