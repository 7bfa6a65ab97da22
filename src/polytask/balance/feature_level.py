"""FeatureLevel: compare the tasks at the features they all read, not in the parameters.

Source: Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018,
    https://arxiv.org/abs/1810.04650, section 3.3 (MGDA-UB); Senushkin et al., CVPR 2023,
    https://arxiv.org/abs/2305.19000, section 3.4 (Aligned-MTL-UB)
Differs from the source: works around any method. The features are found in the graph: the output,
    nearest to the losses, that every way from a loss to the shared parameters goes through. Each
    task's gradient is that of its whole batch, rows laid end to end, as in the authors' codes.
Shapes: K = tasks present, N = numbers of the features, over all rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from polytask.balance import gradients
from polytask.balance.at_cut import AtCut, Formed, at_cut
from polytask.balance.base import Balance, State, Update
from polytask.balance.exact import unreached
from polytask.balance.graph import LEAF, Graph, read
from polytask.balance.layers import shape_of
from polytask.balance.losses import stacked
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped, nest, started, under
from polytask.errors import UsageError


@dataclass(frozen=True)
class FeatureLevel:
    """The method's answer to the gradients at the features.

    One pass per task through its head, or one for all heads where they are linear layers on one
    tensor, and one pass of the balanced gradient through the encoder: about the price of a plain
    step. Every task's own parameters get the gradient of its unweighted loss. What the method
    promises (descent on every task, no conflict) then holds for the features, and for the
    parameters as far as the encoder keeps angles.

    method: any that compares gradients, but MoCo: it averages a task's gradient over the steps,
        and each step's features are those of other rows.

    All tasks must read the features of one forward pass. Several processes: methods that need the
    gradients themselves get those at the features of all.

    Micro-batches, for methods that need the Gramian alone: with `again` (see `wrapper.Again`) those
    before the last are computed again once the weights are known, for one forward pass each;
    without it their tasks' gradients are passed through the encoder as they come, which is exact
    also under dropout, at the exact method's price.
    """

    looks_again: ClassVar[bool] = False
    spans_processes: ClassVar[bool] = True

    method: Balance

    def __post_init__(self) -> None:
        check_wrapped("FeatureLevel", self.method)

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return the method's state; raise where it remembers gradients."""
        state = started(self, tasks, {})
        if any(value.numel() == 0 for value in state.values()):
            raise UsageError(
                f"FeatureLevel cannot stand around {type(self.method).__name__}: it remembers "
                "gradients from step to step, and those of features belong to one batch's rows."
            )
        return state

    def take(self, turn: Turn, state: State) -> None:
        """Keep the products at the features of a micro-batch, and what its weighing needs."""
        if self.method.needs == "rows":
            raise UsageError(
                f"FeatureLevel({type(self.method).__name__}) passes a direction of its own to the "
                "features, which are gone when the last micro-batch comes: accumulate=True does "
                "not work with it. Take a smaller batch without accumulation, or a method that "
                "needs the Gramian alone."
            )
        assert turn.pending is not None, "the engine gives one to every micro-batch"
        found = at_features(turn)
        if found is not None:
            turn.pending.grams.append((turn.mine, found.gram()))
        turn.hold()

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients; return the method's weights."""
        found, device = at_features(turn), turn.losses_K.device
        grams = [] if turn.pending is None else list(turn.pending.grams)
        rows_KN, columns = None, slice(None)
        if self.method.needs == "rows":
            rows_KN = _rows(turn, found)
            grams.append((turn.at, gradients.gram(rows_KN)))
            if turn.world.size > 1:
                rows_KN, columns = turn.world.side_by_side(rows_KN)
        elif found is not None:
            grams.append((turn.mine, found.gram()))
        gram_KK = torch.zeros(len(turn.at), len(turn.at), dtype=torch.float64, device=device)
        for tasks, part_KK in grams:  # other rows are other coordinates
            index = _places(turn, tasks)
            gram_KK[index[:, None], index] += part_KK.to(device)
        if turn.world.size > 1:
            turn.world.add_up(gram_KK)
        update = turn.ask(self.method, under("method", state), gram_KK, rows_KN)
        how = Formed.how if found is None else found.how
        turn.said.how = f"feature level: {how}, one through the encoder{turn.held}"
        with turn.watched():
            turn.add_held(update.weights_K)
            if found is not None:
                if update.direction_P is not None:
                    direction = update.direction_P[columns]
                else:
                    direction = found.weighted(update.weights_K.detach()[_places(turn, turn.mine)])
                for parameter, grad in passed_down(turn, found.cut, direction):
                    gradients.add(parameter, grad)
        turn.add_penalty(update)
        return Update(nest("method", update.state), update.weights_K, note=update.note)


def at_features(turn: Turn) -> AtCut | None:
    """Return this process's gradients at the features; None where it has no loss.

    Raises UsageError where the tasks have no features in common.
    """
    if not turn.mine:
        return None
    losses = turn.losses  # asked once: what parts them is a node of the graph
    graph = read(losses, turn.shared)
    found = at_cut(features(graph, turn.shared), graph.order, losses)
    if found.hooked():
        raise UsageError(
            "A hook on the features changes their gradient, and feature level would pass it twice. "
            "Put the hook on a tensor before the last layer, or use the exact method."
        )
    return found


def _places(turn: Turn, tasks: Sequence[int]) -> Tensor:
    """Return where the tasks stand among those of the update."""
    where = [turn.at.index(task) for task in tasks]
    return torch.tensor(where, dtype=torch.int64, device=turn.losses_K.device)


def _rows(turn: Turn, found: AtCut | None) -> Tensor:
    """Return this process's gradients of all tasks of the update, (K, N), zeros of those it lacks;
    without any loss here N is 0."""
    if found is None:
        like = torch.promote_types(turn.shared[0].dtype, torch.float32)
        return torch.zeros(len(turn.at), 0, dtype=like, device=turn.shared[0].device)
    mine_KN = found.rows()
    if turn.mine == turn.at:
        return mine_KN
    rows_KN = mine_KN.new_zeros(len(turn.at), mine_KN.shape[1])
    return rows_KN.index_copy(0, _places(turn, turn.mine), mine_KN)


def passed_down(turn: Turn, cut: Node, direction: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the shared parameters' gradients for this one at the features; add the others'."""
    shared = {id(parameter) for parameter in turn.shared}
    losses_K = stacked(turn.given)
    found, _ = gradients.leaves([losses_K])
    others = [leaf for leaf in found if id(leaf) not in shared]
    if others:
        losses_K.backward(torch.ones_like(losses_K), inputs=others, retain_graph=True)  # type: ignore[no-untyped-call]
    reached = [leaf for leaf in found if id(leaf) in shared]
    like = cut._input_metadata[0]
    given = direction.to(like.dtype).view(shape_of(cut))
    edges: list[Any] = [GradientEdge(cut, 0)]
    grads = torch.autograd.grad(
        edges, reached, grad_outputs=[given], retain_graph=turn.retain, allow_unused=True
    )
    return [(p, grad) for p, grad in zip(reached, grads, strict=True) if grad is not None]


def features(graph: Graph, shared: Sequence[Tensor]) -> Node:
    """Return the node whose output all losses read the shared parameters through.

    The nearest to the losses below which there are shared parameters alone.
    """
    if not graph.uses:
        raise unreached()
    parts = graph.parts
    ours = {id(parameter) for parameter in shared}
    for cut in parts[0].cuts if len(parts) == 1 else ():
        if all(id(leaf) in ours for leaf in _leaves_below(cut)):
            return cut
    raise UsageError(
        "The tasks have no features in common: their losses reach the shared parameters on ways "
        "that no single tensor lies on. Feature level needs one forward pass of the encoder for "
        "all tasks present, one output that all heads read, and no loss on the shared parameters "
        "themselves. Use the exact method, or EveryN or SampledRows around it."
    )


def _leaves_below(cut: Node) -> list[Tensor]:
    found: list[Tensor] = []
    seen, stack = {cut}, [cut]
    while stack:
        node = stack.pop()
        if node.name() == LEAF:
            found.append(node.variable)  # type: ignore[attr-defined]
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return found
