"""MBC: model-based clustering, adapters with like weights put together; one adapter per cluster.

    weights of an adapter, flat; those below the median size set to 0; reduced to 64 numbers by a
    truncated SVD of all adapters; unit length; k-means

`clusters_of` finds the clusters of T LoRA that were trained apart. `merge_clusters` makes
each cluster's adapter: the average of its adapters' changes, exactly, or a fresh one to be trained
on the cluster's tasks together, as the paper does.

Source: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs", ICML
    2024, https://arxiv.org/abs/2405.11157, section 3.2, and the authors' code
Differs from the source: sizes are compared within each adapter. The exact average is ours: B A are
    averaged, so factors stand side by side and the rank is that of a cluster's adapters together;
    averaging A and B apart is something else.
Shapes: T = adapters, one of each task, M = adapters of a cluster, K = clusters, P = numbers of an
    adapter, R = rank, I, O = inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polytask.adapt.arrow import loras_of, side_by_side
from polytask.adapt.engine import Adapted, At, adapt
from polytask.adapt.lora import LoRA, LoRAAdapter
from polytask.errors import UsageError


@dataclass(frozen=True)
class Clusters:
    """Which cluster each of T adapters belongs to: numbers from 0, each used at least once."""

    of_T: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.of_T or set(self.of_T) != set(range(len(set(self.of_T)))):
            raise UsageError(
                f"Clusters: {self.of_T} came; give each adapter's number, from 0, without gaps."
            )

    @property
    def many(self) -> int:
        """How many clusters there are."""
        return max(self.of_T) + 1

    def members(self, cluster: int) -> list[int]:
        """Return the adapters of a cluster, in order."""
        return [t for t, own in enumerate(self.of_T) if own == cluster]

    def index(self, index_B: Tensor) -> Tensor:
        """Return the cluster of each row's task; -1 stays."""
        of_T = torch.tensor(self.of_T, device=index_B.device)
        return torch.where(index_B < 0, -1, of_T[index_B.clamp(min=0)])


def clusters_of(
    trained: Adapted,
    clusters: int = 10,
    quantile: float = 0.5,
    components: int = 64,
    seed: int = 0,
) -> Clusters:
    """Return the clusters of an adapted model's tasks; see `cluster` for what is taken."""
    return cluster(flat(trained), clusters, quantile, components, seed)


def flat(trained: Adapted) -> Tensor:
    """Return all numbers of each task's LoRA, (T, P), float64 on the CPU."""
    whole = []
    for part, _ in loras_of(trained, "clusters_of"):
        for layer in part.layers:
            adapter = part.at(layer.path)
            assert isinstance(adapter, LoRAAdapter)
            whole += [v.detach().double().cpu() for v in (adapter.down_TRI, adapter.up_TRO)]
    return torch.cat([v.flatten(1) for v in whole], 1)


def cluster(
    flat_TP: Tensor,
    clusters: int = 10,
    quantile: float = 0.5,
    components: int = 64,
    seed: int = 0,
) -> Clusters:
    """Return the clusters of T adapters; the first adapter's is 0, the next other one's 1, ...

    clusters: how many, at most T. quantile: in [0, 1), of each adapter's sizes; smaller numbers
    count as 0. components: numbers kept of each adapter; all where there are fewer.
    """
    check_clusters(clusters, len(flat_TP))
    return grouped(embedded(flat_TP, quantile, components), clusters, seed)


def check_clusters(clusters: int, many: int) -> None:
    """Raise UsageError where that many adapters cannot have so many clusters."""
    if type(clusters) is not int or not 1 <= clusters <= many:
        raise UsageError(f"mbc: clusters is {clusters!r}; give a whole number from 1 to {many}.")


def grouped(points_TC: Tensor, clusters: int, seed: int = 0) -> Clusters:
    """Return the clusters by k-means of what `embedded` made of T adapters."""
    from sklearn.cluster import KMeans  # slow to import

    kmeans = KMeans(clusters, n_init=10, random_state=seed)
    labels = kmeans.fit(points_TC.numpy()).labels_.tolist()
    order = {own: k for k, own in enumerate(dict.fromkeys(labels))}
    return Clusters(tuple(order[own] for own in labels))


def embedded(flat_TP: Tensor, quantile: float = 0.5, components: int = 64) -> Tensor:
    """Return what is clustered of T adapters: (T, C), float64, of unit length; see `cluster`."""
    if not 0 <= quantile < 1:
        raise UsageError(f"mbc: quantile is {quantile}; give a number in [0, 1) (default 0.5).")
    if type(components) is not int or components < 1:
        raise UsageError(f"mbc: components is {components!r}; give a whole number >= 1.")
    kept_TP = flat_TP.detach().double().cpu()
    many = len(kept_TP)
    size_TP = kept_TP.abs()
    # The value at a rank: torch.quantile takes no more than 2^24 numbers.
    rank = math.ceil(quantile * (size_TP.shape[1] - 1))
    least_T1 = size_TP.kthvalue(rank + 1, 1, keepdim=True).values
    kept_TP = torch.where(size_TP < least_T1, 0.0, kept_TP)
    # By products of adapters with each other: T x T, however many numbers each has.
    values_T, u_TT = torch.linalg.eigh(kept_TP @ kept_TP.T)
    reduced_TC = (u_TT * values_T.clamp(min=0).sqrt())[:, -min(components, many) :]
    return functional.normalize(reduced_TC, dim=1)


def merge_clusters(
    trained: Adapted,
    clusters: Clusters,
    names: Sequence[str] | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Adapted:
    """Return the base adapted with one LoRA per cluster; rows have `clusters.index(index_B)`.

    trained: adapted with LoRA alone, of linear layers; it is detached, and does nothing from then
    on. names: of the clusters; None: "cluster 0", ... fresh: adapters start anew, as `adapt` draws
    them from the seed, with the rank they had, to be trained on the tasks of each cluster. Else
    each is the average of its cluster's changes, and of as many ranks as the largest cluster has.
    """
    libraries = loras_of(trained, "merge_clusters")
    if len(clusters.of_T) != len(trained.names):
        raise UsageError(
            f"merge_clusters: clusters of {len(clusters.of_T)} adapters and {len(trained.names)} "
            "adapters came."
        )
    wide = 1 if fresh else max(len(clusters.members(k)) for k in range(clusters.many))
    plans = []
    for part, lora in libraries:
        rank = lora.rank * wide
        merged = LoRA(rank, lora.scale * rank, dropout=lora.dropout)
        plans.append(At(lora if fresh else merged, part.where))
    names = names or [f"cluster {k}" for k in range(clusters.many)]
    if len(names) != clusters.many:
        raise UsageError(f"merge_clusters: {len(names)} names for {clusters.many} clusters came.")
    made = adapt(trained.detach(), plans, names, seed=seed, dtype=trained.dtype)
    if fresh:
        return made
    for from_, to in side_by_side(libraries, made):
        assert isinstance(to, LoRAAdapter)
        _average(from_, to, clusters)
    return made


@torch.no_grad()
def _average(from_: LoRAAdapter, to: LoRAAdapter, clusters: Clusters) -> None:
    to.down_TRI.zero_()
    to.up_TRO.zero_()
    for k in range(clusters.many):
        members = clusters.members(k)
        down, up = (v[members].flatten(0, 1) for v in (from_.down_TRI, from_.up_TRO))
        to.down_TRI[k, : len(down)] = down
        to.up_TRO[k, : len(up)] = up / len(members)
