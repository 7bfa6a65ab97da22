"""Steps of other libraries on the same model and batch, for `benchmarks/balance.py --peers`.

They are called as their own documentation shows. TorchJD ("torchjd[quadprog_projector]") and
LibMTL (from its repository, with cvxpy) go into an environment of their own beside polytask; what
is absent is left out, and said. LibMTL's package imports torchvision for its example networks;
only its weighting room is loaded.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Step = Callable[[], None]


class Work(Protocol):
    """What a peer needs of a workload."""

    inputs: Tensor
    tasks: int
    encoder: nn.Module
    heads: Sequence[nn.Module]

    def losses_of(self, outputs: Sequence[Tensor]) -> list[Tensor]: ...


def steps(work: Work) -> dict[str, Step]:
    """Return a step per peer that is installed, by its name in the table."""
    found: dict[str, Step] = {}
    if importlib.util.find_spec("torchjd") is None:
        print("TorchJD is not installed: left out", file=sys.stderr)
    else:
        found |= _torchjd(work)
    if importlib.util.find_spec("LibMTL") is None:
        print("LibMTL is not installed: left out", file=sys.stderr)
    else:
        found |= _libmtl(work)
    return found


def _torchjd(work: Work) -> dict[str, Step]:
    from torchjd.aggregation import UPGrad, UPGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import jac_to_grad, mtl_backward

    shared = list(work.encoder.parameters())

    def jacobian() -> None:
        features = work.encoder(work.inputs)
        losses = work.losses_of([head(features) for head in work.heads])
        mtl_backward(losses, features=features)
        jac_to_grad(shared, UPGrad())

    encoder = copy.deepcopy(work.encoder)  # its hooks are for nobody else's forward passes
    engine, weighting = Engine(encoder, batch_dim=None), UPGradWeighting()

    def gramian() -> None:
        encoder.zero_grad(set_to_none=True)
        features = encoder(work.inputs)
        losses = torch.stack(work.losses_of([head(features) for head in work.heads]))
        losses.backward(weighting(engine.compute_gramian(losses)))

    return {"TorchJD UPGrad": jacobian, "TorchJD UPGrad, Gramian engine": gramian}


def _libmtl(work: Work) -> dict[str, Step]:
    weighting = _weighting()

    def outputs() -> list[Tensor]:
        features = work.encoder(work.inputs)
        return [head(features) for head in work.heads]

    mgda = _as_model(weighting.MGDA, work, rep_grad=False)
    on_features = _as_model(weighting.MGDA, work, rep_grad=True)
    famo = _as_model(weighting.FAMO, work, rep_grad=False)
    famo.init_param()

    def exact() -> None:
        mgda.backward(torch.stack(work.losses_of(outputs())), mgda_gn="none")

    def features() -> None:
        on_features.rep = work.encoder(work.inputs)
        copies = []
        for name in on_features.task_name:  # as its forward pass does
            copies.append(on_features.rep.detach().clone().requires_grad_())
            on_features.rep_tasks[name] = copies[-1]
        losses = work.losses_of([h(c) for h, c in zip(work.heads, copies, strict=True)])
        on_features.backward(torch.stack(losses), mgda_gn="none")

    def after() -> None:
        famo.backward(torch.stack(work.losses_of(outputs())), FAMO_w_lr=0.025, FAMO_w_gamma=0.001)
        with torch.no_grad():
            famo.update_w(torch.stack(work.losses_of(outputs())))

    return {"LibMTL MGDA": exact, "LibMTL MGDA on features": features, "LibMTL FAMO": after}


def _weighting() -> Any:
    """Return LibMTL's weighting room, without the packages its other rooms need."""
    spec = importlib.util.find_spec("LibMTL")
    assert spec is not None
    package = types.ModuleType("LibMTL")
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["LibMTL"] = package
    return importlib.import_module("LibMTL.weighting")


def _as_model(method: type, work: Work, rep_grad: bool) -> Any:
    """Return the weighting with the attributes LibMTL's trainer and architectures give it."""
    names = [f"task {k}" for k in range(work.tasks)]

    class Model(method):  # type: ignore[misc]
        def get_share_params(self) -> Any:
            return work.encoder.parameters()

        def zero_grad_share_params(self) -> None:
            work.encoder.zero_grad(set_to_none=False)

    model = Model()
    model.task_name, model.task_num, model.rep_grad = names, work.tasks, rep_grad
    model.device = torch.device("cpu")
    model.rep, model.rep_tasks = {}, {}
    return model


def solvers() -> dict[str, Callable[[Tensor], object]]:
    """Return TorchJD's ways from a Gramian to weights."""
    if importlib.util.find_spec("torchjd") is None:
        return {}
    from torchjd import aggregation

    names = ("MGDA", "PCGrad", "UPGrad", "DualProj", "AlignedMTL", "IMTLG")
    return {f"TorchJD {name}": getattr(aggregation, f"{name}Weighting")() for name in names}
