"""M3ViT: a vision transformer whose odd blocks choose, per task and token, a few of many experts.

Source: Liang et al., "M3ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task
    Learning with Model-Accelerator Co-design", NeurIPS 2022, https://arxiv.org/abs/2210.14793
Differs from the source: all asked tasks run in one pass, and their tokens are grouped by expert
    together; the authors' code runs the network once per task. Gates draw no noise, as in the
    authors' settings, so the load has no gradient; it is counted in the penalty, and the
    importance alone steers. The transformer is small and has no class token.
Shapes: B = rows, N = tokens of a picture, R = B * N, D = width of a token, A = asked tasks,
    E = experts, K = experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import Features, Gate, shows
from polytask.share.between import Seen
from polytask.share.experts import Experts, Gates, Stacked, opened, stack
from polytask.share.pictures import PictureModel, PictureTrunk, Run
from polytask.share.routing import routed, spread
from polytask.tasks import TaskSet


class Block(Protocol):
    """One block: what stands in its second half may be run apart."""

    norm: nn.LayerNorm
    mlp: nn.Module

    def attend(self, tokens_BND: Tensor) -> Tensor:
        """Return the tokens after the first half."""


class Tokens(Protocol):
    """A transformer of pictures whose blocks can be run one by one.

    blocks: each has `attend`, tokens (B, N, D) to tokens, `norm`, and `mlp`, whose result on the
        normed tokens is added to them. width: channels of the features it ends with.
    """

    blocks: nn.ModuleList
    width: int

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the tokens before the first block, (B, N, D)."""

    def end(self, tokens: Tensor, size: Sequence[int]) -> Features:
        """Return the features that the last block's tokens end as, for pictures of a size."""


class M3ViT(PictureTrunk):
    """x + sum_e g_te(norm x) f_e(norm x) in place of x + mlp(norm x), in every second block.

    g_t = softmax(W_t x) over all experts, cut to its k largest, which are not made to sum to 1.
    Blocks before the first of these run once for all tasks, those after it for each.

    A model takes its encoder over: the MLPs of the odd blocks are removed from it.

    depth, width: of the transformer, and of its tokens. experts: E of each odd block. k: how many
    a token goes to. ratio: width inside an expert over the token's; with k * ratio that of the
    dense MLP a task costs what it costs. balance: weight of the penalty, cv^2 of the gates' sums
    per expert plus cv^2 of the tokens per expert, added up over the blocks.
    """

    stands_on = "tokens"

    def __init__(
        self,
        tasks: Sequence[str],
        depth: int,
        width: int,
        *,
        experts: int = 16,
        k: int = 4,
        ratio: int = 1,
        balance: float = 0.01,
    ) -> None:
        super().__init__()
        if not tasks or balance < 0 or depth < 2:
            raise UsageError(
                "M3ViT: give at least one task, two blocks or more, and a balance of at least 0; "
                f"got {len(tasks)} tasks, {depth} blocks and balance {balance}."
            )
        if not 1 <= k <= experts or ratio < 1:
            raise UsageError(
                f"M3ViT: k is {k}; give from 1 to the number of experts, {experts}; and ratio is "
                f"{ratio}; give at least 1."
            )
        self.depth, self.width, self.k, self.balance = depth, width, k, balance
        self.experts = nn.ModuleList(
            Experts(experts, width, (ratio * width,), out=width) for _ in range(1, depth, 2)
        )
        self.gating = nn.ModuleList(Gates(tasks, width, experts) for _ in range(1, depth, 2))

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        experts: int = 16,
        k: int = 4,
        ratio: int = 1,
        balance: float = 0.01,
    ) -> PictureModel:
        """Return the model on a transformer of pictures, which it takes over.

        experts: of each odd block. k: how many a token goes to. ratio: width inside an expert over
        the token's. balance: weight of the penalty for uneven use.
        """
        told = _tokens(encoder)
        trunk = M3ViT(
            tasks.names,
            len(told.blocks),
            _token_width(encoder),
            experts=experts,
            k=k,
            ratio=ratio,
            balance=balance,
        )
        return PictureModel.build(encoder, trunk, tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        return next(self._levels())[1].readers

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked: Stacked = {}
        for level, (experts, gates) in enumerate(self._levels()):
            stacked |= stack(f"experts_{level}", [experts])
            stacked |= gates.stack(f"gates_{level}", tasks)
        return stacked

    @property
    def run(self) -> Run:
        return partial(_run, k=self.k)

    def fit_to(self, encoder: nn.Module) -> int:
        told, name = _tokens(encoder), type(encoder).__name__
        if (len(told.blocks), _token_width(encoder)) != (self.depth, self.width):
            raise UsageError(
                f"M3ViT was made for {self.depth} blocks with tokens of width {self.width}, but "
                f"{name} has {len(told.blocks)} of width {_token_width(encoder)}."
            )
        for block in told.blocks[1::2]:
            if hasattr(block, "mlp"):
                del block.mlp
        return told.width

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return each odd block's gates as levels, tokens as rows.

        What a task takes of a token's experts sums to less than 1: only the k largest are kept.
        """
        found = []
        for level, (experts, _) in enumerate(self._levels()):
            names = tuple(f"expert {e}" for e in range(experts.number))
            owners = (None,) * len(names)
            found.append(Gate(level, tuple(tasks), names, owners, seen[f"weights_{level}"]))
        return found

    @property
    def penalises(self) -> bool:
        return self.balance > 0

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return balance * sum over the odd blocks of cv^2(importance) + cv^2(load).

        Over the batch at hand: of an update in parts each part has its own.
        """
        if not self.penalises:
            return {}
        found = {}
        for a, task in enumerate(tasks):
            of_task = [seen[f"weights_{level}"][:, a] for level in range(len(self.experts))]
            uneven = [
                cv_squared(weights_RE.sum(0)) + cv_squared((weights_RE > 0).sum(0).to(weights_RE))
                for weights_RE in of_task
            ]
            found[task] = self.balance * torch.stack(uneven).sum()
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters."""
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's gates."""
        return [p for _, gates in self._levels() for p in gates.parameters_of(task)]

    def add_task(self, task: str) -> None:
        for _, gates in self._levels():
            gates.add(task)

    def _levels(self) -> Iterator[tuple[Experts, Gates]]:
        for experts, gates in zip(self.experts, self.gating, strict=True):
            assert isinstance(experts, Experts)
            assert isinstance(gates, Gates)
            yield experts, gates


def _run(
    encoder: nn.Module, stacked: Stacked, pictures: Tensor, seen: Seen | None, *, k: int
) -> Features:
    """Return the encoder's features, of every task."""
    transformer = cast(Tokens, encoder)  # `_tokens` has seen to that
    tokens = transformer.embed(pictures)  # (B, N, D), from the first experts on (A * B, N, D)
    shared = True
    for at, block in enumerate(_blocks(transformer)):
        tokens = block.attend(tokens)
        normed = block.norm(tokens)
        if at % 2 == 0:
            tokens = tokens + block.mlp(normed)
            continue
        given_ARD = _experts(stacked, at // 2, normed.flatten(0, 1), shared, k, seen)
        if shared:
            tokens = tokens + given_ARD.view(-1, *tokens.shape)
            tokens, shared = tokens.flatten(0, 1), False
        else:
            tokens = tokens + given_ARD.reshape(tokens.shape)
    return transformer.end(tokens, pictures.shape[-2:])


def _experts(
    stacked: Stacked, level: int, rows_XD: Tensor, shared: bool, k: int, seen: Seen | None
) -> Tensor:
    """Return what each task takes of the experts, (A, R, D).

    rows_XD: (R, D) that all tasks read where `shared`, else (A * R, D).
    """
    gate = f"gates_{level}"
    experts, tasks, width = stacked[f"{gate}_weight"].shape
    rows = rows_XD if shared else rows_XD.view(tasks, -1, width)
    weights_RAE = opened(stacked, gate, rows)
    weights_RAK, chosen_RAK = weights_RAE.topk(k, dim=2)
    if seen is not None:
        seen[f"weights_{level}"] = spread(weights_RAK, chosen_RAK, experts)
    name = f"experts_{level}"
    return routed(stacked, name, rows, weights_RAK, chosen_RAK, functional.gelu)


def cv_squared(x_E: Tensor) -> Tensor:
    """Return the squared coefficient of variation, variance over squared mean; 0 for one number."""
    if len(x_E) == 1:
        return x_E.sum() * 0
    return x_E.var() / (x_E.mean().square() + 1e-10)


TOKENS = ("embed", "blocks", "end", "width")


def _tokens(encoder: nn.Module) -> Tokens:
    if shows(encoder, TOKENS):
        return cast(Tokens, encoder)
    raise UsageError(
        f"M3ViT needs a transformer of pictures, and {type(encoder).__name__} is none; give an "
        f"encoder with {', '.join(TOKENS)}, such as polytask.suites.vit.ViT."
    )


def _blocks(encoder: Tokens) -> list[Block]:
    return list(encoder.blocks)  # type: ignore[arg-type]  # what `Tokens` promises of them


def _token_width(encoder: nn.Module) -> int:
    return _blocks(_tokens(encoder))[0].norm.normalized_shape[0]
