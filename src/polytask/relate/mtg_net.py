"""MTG-Net: a small attention network learns the gains of groups, from some that were measured.

Source: Song et al., "Efficient and Effective Multi-task Grouping via Meta Learning on Task
    Combinations", NeurIPS 2022; code: ShawnKS/MTG-Net
Differs from the source: members alone attend to each other, through torch's encoder layers; gains
    are scaled to a spread of 1; an ensemble gives a spread, and groups to measure next are those
    of the largest spread (the source: by predicted gain). A task alone gains 0, exactly.
Shapes: T = tasks, G = groups, E = networks of the ensemble, W = width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import DataError, UsageError
from polytask.relate.base import check_tasks
from polytask.relate.gains import Gains


class MTGNet(nn.Module):
    """A predictor: which tasks are in a group -> what each of them gains.

        net = MTGNet(tasks).fit(measured)
        groups = cover(net.predict(candidates_GT), budget=3)

    width, layers, heads: of each network. ensemble: E networks, started differently.
    steps, lr, decay: of Adam over all measured groups at once, the decay decoupled.
    seed: of their starts; the caller's random state is left as it was.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        ensemble: int = 3,
        steps: int = 300,
        lr: float = 3e-3,
        decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_tasks(tasks, "MTGNet")
        sizes = {"width": width, "layers": layers, "heads": heads, "ensemble": ensemble}
        for name, value in {**sizes, "steps": steps}.items():
            if value < 1:
                raise UsageError(f"MTGNet: {name} is {value}; give a whole number >= 1.")
        if width % heads:
            raise UsageError(f"MTGNet: {heads} heads do not divide a width of {width}.")
        if lr <= 0 or decay < 0:
            raise UsageError(f"MTGNet: lr is {lr} and decay {decay}; give lr > 0 and decay >= 0.")
        self.names = tuple(tasks)
        self.steps, self.lr, self.decay, self.seed = steps, lr, decay, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = nn.ModuleList(
                _Network(len(tasks), width, layers, heads) for _ in range(ensemble)
            )
        self.register_buffer("scale", torch.ones(()))

    def forward(self, member_GT: Tensor) -> Tensor:
        """Return each network's gains (E, G, T), in the unit of `fit`; 0 for a task alone."""
        gains_EGT = torch.stack([network(member_GT) for network in self.networks]) * self.scale
        several_G1 = member_GT.sum(1, keepdim=True) > 1
        return gains_EGT * (member_GT & several_G1)

    def fit(self, measured: Gains) -> MTGNet:
        """Return itself, trained on the groups of two or more whose gains are known."""
        if measured.tasks != self.names:
            raise UsageError(f"MTGNet: it is of the tasks {self.names}, not {measured.tasks}.")
        several = measured.only(measured.member_GT.sum(1) > 1)
        known_GT = several.member_GT & ~several.gain_GT.isnan()
        if not bool(known_GT.any()):
            raise DataError("MTGNet: no gain of a group of two tasks or more is known.")
        gain_GT = several.gain_GT.nan_to_num().float()
        self.scale = gain_GT[known_GT].square().mean().sqrt().clamp_min(1e-12)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.train()
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.decay)
            for _ in range(self.steps):
                off_EGT = (self(several.member_GT) - gain_GT) / self.scale
                loss = (off_EGT.square() * known_GT).sum() / known_GT.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self.eval()

    @torch.no_grad()
    def predict(self, member_GT: Tensor) -> Gains:
        """Return the expected gains of these groups (bool, (G, T)): the ensemble's mean."""
        return Gains(self.names, member_GT, self(member_GT).mean(0).double())

    @torch.no_grad()
    def spread(self, member_GT: Tensor) -> Tensor:
        """Return how much the networks differ on each group (G,): measure the largest next.

        A root mean square over members of the standard deviation over networks; 0 for one network.
        """
        if len(self.networks) == 1:
            return torch.zeros(len(member_GT))
        variance_GT = self(member_GT).var(0)
        spread_G: Tensor = (variance_GT.sum(1) / member_GT.sum(1)).sqrt()
        return spread_G


class _Network(nn.Module):
    def __init__(self, tasks: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tasks, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.out = nn.Linear(width, 1)

    def forward(self, member_GT: Tensor) -> Tensor:
        hidden_GTW = self.embedding.expand(len(member_GT), -1, -1)
        for layer in self.layers:
            hidden_GTW = layer(hidden_GTW, member_GT)
        gains_GT: Tensor = self.out(hidden_GTW)[..., 0]
        return gains_GT


class _Layer(nn.Module):
    """Attention among members, and a layer on each, both added to what came."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(width, 3 * width)
        self.answer = nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden_GTW: Tensor, member_GT: Tensor) -> Tensor:
        G, T, W = hidden_GTW.shape
        asked = self.ask(self.first(hidden_GTW)).view(G, T, 3, self.heads, W // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=member_GT[:, None, None, :]
        )
        hidden_GTW = hidden_GTW + self.answer(seen.transpose(1, 2).reshape(G, T, W))
        found: Tensor = hidden_GTW + self.inner(self.second(hidden_GTW))
        return found
