"""Intuition-MoR1E: experts of rank 1, weighed by a router and by what an instance resembles.

    change of a token x = sigmoid(100 phi) * B (w * A x),
    w = E o softmax(R x) + 4 (1 - o) s,   o = sigmoid(100 theta)

The intuition s is the instance's embedding times the centroids of all instances' embeddings, one
for each expert: `fit_centroids` finds them before training, with any embedding model.

Source: Liu et al., "Intuition-aware Mixture-of-Rank-1-Experts for Parameter Efficient Finetuning",
    2024, https://arxiv.org/abs/2404.08985, and the authors' code
Differs from the source: centroids come from k-means on embeddings that the reader hands in, of any
    width, and are unit vectors drawn at random until then; embeddings are taken as they are, so
    give them unit length for cosines.
Shapes: B = rows of the batch, N = what a row has here, E = experts, C = width of embeddings,
    M = embeddings, I, O = inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows
from polytask.adapt.engine import Adapted
from polytask.adapt.experts import check_many, plus_spread, reduced_common
from polytask.adapt.low_rank import check_dropout, draw
from polytask.adapt.selection import RouterScores
from polytask.errors import UsageError

STEEP = 100.0
"""What theta and phi are multiplied by, so that they move at the others' learning rate."""

INTUITION = 4.0
"""What the intuition is multiplied by."""


@dataclass(frozen=True)
class MoR1E(Method):
    """Adapts linear layers; zero change at the start.

    experts: of rank 1. width: of the instances' embeddings, which come with every batch:
    `adapted.tasks(index, given={"embedding": embedding_BC})`. dropout: of the adapter's input, in
    training.
    """

    kinds = ("linear",)

    experts: int = 32
    width: int = 384
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_many("MoR1E", "experts", self.experts, 32)
        check_many("MoR1E", "width", self.width, 384)
        check_dropout("MoR1E", self.dropout)

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module | None:
        """Return the centroids."""
        return Centroids(self, generator)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's experts and their router; nothing of them is a task's."""
        return MoR1EAdapter(layer, self, generator, common)


class Centroids(nn.Module):
    """centroids_EC, fixed, of all layers."""

    centroids_EC: Tensor

    def __init__(self, settings: MoR1E, generator: Generator) -> None:
        super().__init__()
        drawn_EC = torch.randn(settings.experts, settings.width, generator=generator)
        self.register_buffer("centroids_EC", functional.normalize(drawn_EC, dim=1))

    def forward(self, rows: Rows) -> Tensor:
        """Return the intuition of each row, (B, E)."""
        embedding_BC = rows.given_for("embedding", "MoR1E")
        wanted = (len(rows.index_B), self.centroids_EC.shape[1])
        if tuple(embedding_BC.shape) != wanted:
            raise UsageError(
                f"MoR1E: given['embedding'] has shape {tuple(embedding_BC.shape)}; give {wanted}."
            )
        return functional.linear(embedding_BC.to(self.centroids_EC.dtype), self.centroids_EC)


class MoR1EAdapter(Adapter):
    """down_EI (A), up_EO (B, transposed), the router R, and theta and phi."""

    def __init__(
        self, layer: Layer, settings: MoR1E, generator: Generator, common: nn.Module | None
    ) -> None:
        super().__init__(layer, common)
        self.dropout = settings.dropout
        self.down_EI, self.up_EO = draw(layer, (), settings.experts, generator)
        self.router = RouterScores(layer.inputs, settings.experts, generator)
        nn.init.zeros_(self.router.weight_SC)
        self.theta, self.phi = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        assert isinstance(self.common, Centroids)
        routed_BN1E = torch.softmax(self.router(rows, x), -1)
        intuition_B11E = self.common(rows)[:, None, None].to(routed_BN1E.dtype)
        share = torch.sigmoid(STEEP * self.theta)
        routed = len(self.up_EO) * share * routed_BN1E
        weights = routed + INTUITION * (1 - share) * intuition_B11E
        weights = torch.sigmoid(STEEP * self.phi) * weights
        rows.note_weights(self.layer.path, weights)
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        made = reduced_common(self.layer, x, self.down_EI)
        return plus_spread(y, made, self.up_EO, weights, rows)


def fit_centroids(adapted: Adapted, embedding_MC: Tensor, seed: int = 0) -> None:
    """Set the centroids of the model's MoR1E by k-means on instances' embeddings.

    embedding_MC: at least as many as experts. Raises UsageError where there is no MoR1E, or the
    embeddings do not fit.
    """
    from sklearn.cluster import KMeans  # slow to import

    found = [m for m in adapted.parts.modules() if isinstance(m, Centroids)]
    if not found:
        raise UsageError("fit_centroids: the model has no MoR1E.")
    for one in found:
        experts, width = one.centroids_EC.shape
        if embedding_MC.dim() != 2 or embedding_MC.shape[1] != width or len(embedding_MC) < experts:
            raise UsageError(
                f"fit_centroids: embeddings of shape {tuple(embedding_MC.shape)} came; give "
                f"(at least {experts}, {width})."
            )
        points = embedding_MC.detach().double().cpu().numpy()
        made = KMeans(experts, n_init=10, random_state=seed).fit(points).cluster_centers_
        one.centroids_EC.copy_(torch.from_numpy(made))
