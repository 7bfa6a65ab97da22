"""Adapters of a library by their likeness: in clusters (MBC), and to a new task's (Arrow).

    groups = cluster_library(Library("adapters"), clusters=4, out=Path("fewer"))
    routed = route(Library("adapters"), "new/task", top=2, out=Path("served"))

Files are all that is needed. Clusters are those of `adapt.mbc`, of the factors as they are stored;
each cluster's adapter is the exact average of its changes. A new task is served by the adapters
whose prototypes, as `adapt.arrow` has them, lie along those of a LoRA trained lightly on it.

Source: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs", ICML
    2024, https://arxiv.org/abs/2405.11157, sections 3.2 and 4.2
Differs from the source: MBC, see `adapt.mbc`. Arrow compares prototypes with every token at every
    layer; `route` compares them with the new adapter's prototypes, and gives the whole task one
    choice: mean |cosine| over layers. `adapt.arrow_of` is Arrow itself, for a model and its inputs.
Shapes: T = adapters, C = numbers that are clustered of each, K = clusters, P = numbers of an
    adapter, R = rank, I, O = inputs and outputs of a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polytask.adapt.arrow import directions
from polytask.adapt.mbc import Clusters, check_clusters, embedded, grouped
from polytask.adapt.peft_files import Factors, read_layers
from polytask.adapt.selection import Softmax
from polytask.errors import UsageError, unknown
from polytask.merge.output import check_free
from polytask.merge.progress import Progress, Silent
from polytask.peft_folders import whole_folder
from polytask.recipes.adapter_library import Library

Layers = Mapping[str, Factors]


@dataclass(frozen=True)
class Group:
    """Adapters with like weights, by the cosines of what MBC clusters.

    within: mean over its pairs, None for one adapter alone. next: the cluster that is nearest, and
    beside: the mean over pairs of one adapter here and one there; None for one cluster alone.
    """

    name: str
    members: tuple[str, ...]
    within: float | None
    next: str | None
    beside: float | None


def cluster_library(
    library: Library,
    clusters: int = 10,
    out: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Group]:
    """Return the library's adapters in clusters; the first adapter's cluster comes first.

    clusters: at most as many as there are adapters. out: a new folder, which gets a PEFT folder per
        cluster, of the average of its changes, exactly. seed: of k-means.
    Raises UsageError where there are too few adapters, or too few that differ, and where their
    layers or ranks differ.
    """
    progress = progress or Silent()
    names = library.names()
    if clusters > len(names):
        raise UsageError(
            f"{library.folder} holds {len(names)} adapters, fewer than {clusters} clusters; give "
            f"--clusters {len(names)} or fewer."
        )
    check_clusters(clusters, len(names))
    if out is not None:
        check_free(out)
    points_TC = embedded(_flat(library, names, progress))
    found = _grouped(points_TC, clusters, seed, library)
    groups = _groups(names, found, points_TC @ points_TC.T)
    if out is not None:
        with whole_folder(out) as part:
            for group in groups:
                share = 1 / len(group.members)
                weights = dict.fromkeys(group.members, share)
                library.compose(weights, part / group.name, progress=progress)
    return groups


@dataclass(frozen=True)
class Match:
    """How an adapter of the library serves a new task.

    score: mean |cosine| of its directions and the task's over the task's layers, in [0, 1]; a layer
        it leaves alone counts as 0. layers: those that both change. weight: of its change, 0 for
        those not chosen.
    """

    name: str
    score: float
    layers: int
    weight: float


@dataclass(frozen=True)
class Routed:
    """Who serves a new task. layers: that its adapter changes. matches: best first."""

    task: str
    layers: int
    matches: tuple[Match, ...]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of those chosen, which sum to 1."""
        return {match.name: match.weight for match in self.matches if match.weight}


def route(
    library: Library,
    source: str | Path,
    task: str = "",
    top: int = 4,
    temperature: float = 1.0,
    same_base: bool = False,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Routed:
    """Return which adapters of the library serve the task of a new adapter, and how much.

    source: a PEFT folder, or a file that `save_adapted` wrote: a LoRA that was trained a little on
        the new task. task: which of a file's. top: adapters that are chosen, all where fewer share
        a layer with it; 0 is all. temperature: > 0, of the softmax over their scores.
    same_base: as in `Library.add`. out: a new folder, for the sum of the chosen changes, exactly.
    Raises UsageError for another base, an adapter that changes nothing, and a library none of whose
    adapters shares a layer with it.
    """
    progress = progress or Silent()
    rule = Softmax(temperature, top)
    names = library.names()
    if out is not None:
        check_free(out)
    adapters = library.examine(source, same_base).stored.adapters
    if not task and len(adapters) > 1:
        raise UsageError(
            f"{source} holds {len(adapters)} tasks ({', '.join(adapters)}); say which is new: "
            "--task NAME."
        )
    task = task or next(iter(adapters))
    if task not in adapters:
        raise unknown("task", task, adapters, f"{source} holds {', '.join(adapters)}.")
    wanted = _directions(read_layers(*adapters[task], str(source))[0])
    if not wanted:
        raise UsageError(
            f"{source}: {task!r} changes nothing, so it has no direction; train it a little first."
        )
    matches = []
    progress.phase("comparing", len(names))
    for name in names:
        own = _directions(library.factors(name))
        cosines = [float((own[layer] @ v_I).abs()) for layer, v_I in wanted.items() if layer in own]
        # Both are of unit length; rounding may lead a hair beyond 1.
        matches.append(Match(name, min(1.0, sum(cosines) / len(wanted)), len(cosines), 0.0))
        progress.advance(1)
    able = [match for match in matches if match.layers]
    if not able:
        raise UsageError(
            f"No adapter of {library.folder} shares a layer with {source}, which changes "
            f"{', '.join(map(repr, list(wanted)[:3]))}{', ...' if len(wanted) > 3 else ''}."
        )
    scores_T = torch.tensor([match.score for match in able], dtype=torch.float64)
    weights = dict(zip([match.name for match in able], rule(scores_T, False).tolist(), strict=True))
    matches = [Match(m.name, m.score, m.layers, weights.get(m.name, 0.0)) for m in matches]
    ranked = sorted(matches, key=lambda match: (-match.score, -match.weight))
    routed = Routed(task, len(wanted), tuple(ranked))
    if out is not None:
        library.compose(routed.weights, out, progress=progress)
    return routed


def _directions(layers: Layers) -> dict[str, Tensor]:
    """Return each changed layer's direction, (I,): of a convolution, that of its patches."""
    return {
        path: directions(own.down.flatten(1)[None], own.up_RO[None])[0]
        for path, own in layers.items()
        # A change of zero has no direction.
        if bool(own.up_RO.any()) and bool(own.down.any())
    }


def _flat(library: Library, names: list[str], progress: Progress) -> Tensor:
    """Return all numbers of each adapter, (T, P), float64.

    As they are stored; where scales differ at a layer, B is in the first adapter's.
    """
    progress.phase("reading", len(names))
    first: Layers = {}
    rows = []
    for name in names:
        own = library.factors(name)
        first = first or own
        _check_like(names[0], first, name, own)
        values = []
        for path, begun in first.items():
            factors = own[path]
            share = factors.scale / begun.scale  # exactly 1 where they are the same
            values += [factors.down.double(), share * factors.up_RO.double()]
            if factors.bias_O is not None:
                values.append(factors.bias_O.double() / begun.scale)
        rows.append(torch.cat([value.flatten() for value in values]))
        progress.advance(1)
    return torch.stack(rows)


def _check_like(first: str, theirs: Layers, name: str, own: Layers) -> None:
    """Raise UsageError where two adapters have other layers or factors."""
    apart = sorted(theirs.keys() ^ own.keys())
    if apart:
        has, lacks = (first, name) if apart[0] in theirs else (name, first)
        raise UsageError(
            f"{has!r} changes {apart[0]!r}, which {lacks!r} leaves alone; clusters are of adapters "
            "of the same layers. Keep these in a library of their own."
        )
    for path, begun in theirs.items():
        wanted, found = _said(begun), _said(own[path])
        if wanted != found:
            raise UsageError(
                f"At {path!r} {first!r} has {wanted}, and {name!r} {found}; clusters are of "
                "adapters of one rank and shape. Keep these in a library of their own."
            )


def _said(own: Factors) -> str:
    bias = "" if own.bias_O is None else " with a bias"
    return f"A {tuple(own.down.shape)} and B {tuple(own.up_RO.shape[::-1])}{bias}"


def _grouped(points_TC: Tensor, clusters: int, seed: int, library: Library) -> Clusters:
    from sklearn.exceptions import ConvergenceWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            return grouped(points_TC, clusters, seed)
    except ConvergenceWarning:
        raise UsageError(
            f"{library.folder} has fewer than {clusters} adapters that differ; give a smaller "
            "--clusters."
        ) from None


def _groups(names: list[str], clusters: Clusters, cosines_TT: Tensor) -> list[Group]:
    members = [clusters.members(k) for k in range(clusters.many)]
    # (K, K): means over pairs of one adapter of each, of an adapter with itself included.
    mean_KK = torch.stack(
        [torch.stack([cosines_TT[own][:, other].mean() for other in members]) for own in members]
    )
    groups = []
    for k, own in enumerate(members):
        within = None
        if len(own) > 1:
            block_MM = cosines_TT[own][:, own]
            pairs = len(own) * (len(own) - 1)
            within = float((block_MM.sum() - block_MM.diagonal().sum()) / pairs)
        others = {j: float(mean_KK[k, j]) for j in range(len(members)) if j != k}
        nearest = max(others, key=others.__getitem__, default=None)
        groups.append(
            Group(
                f"cluster-{k}", tuple(names[t] for t in own), within,
                None if nearest is None else f"cluster-{nearest}",
                None if nearest is None else others[nearest],
            )
        )  # fmt: skip
    return groups
