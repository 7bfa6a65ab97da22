"""The exact engine: losses with their graphs -> their Gramian or rows, and the method's update.

Per layer (`gramian`) wherever that applies, else by one backward per task present.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.balance import across, gradients
from polytask.balance.base import Needs, Update
from polytask.balance.gramian import PerLayer, Products
from polytask.balance.graph import read
from polytask.balance.looks import Looks
from polytask.balance.losses import At, Given, unbound
from polytask.balance.sharded import check_shards, part_of, whole_rows
from polytask.balance.world import World
from polytask.balance.wrapper import Again
from polytask.errors import UsageError

GramianBy = Literal["auto", "rows"]
Ask = Callable[[Tensor, Tensor | None], Update]
"""The method, given the Gramian, and the rows where it needs them."""

BY_ROWS = "exact: one backward per task present"
BY_ROWS_SMALL = f"{BY_ROWS} (a small model whose tasks share all rows)"


@dataclass
class Pending:
    """What the micro-batches of an unfinished update left: losses, and rows or products.

    reached: positions of the shared parameters that the rows come from.
    scale: what every one of their losses was scaled by.
    agains: of micro-batches that are computed again in the end, with their tasks.
    grams: products of the tasks' gradients at features, (K, K), with their tasks.
    """

    scale: float | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    products: Products | None = None
    at: At = ()
    rows_KP: Tensor | None = None
    reached: set[int] = field(default_factory=set)
    agains: list[tuple[Again, At]] = field(default_factory=list)
    grams: list[tuple[At, Tensor]] = field(default_factory=list)

    def check_scale(self, scale: float | None) -> None:
        """Return nothing, or raise where another scale comes with a later micro-batch."""
        if scale != self.scale:
            raise UsageError(
                f"Balancer: scale is {scale}, it was {self.scale} for earlier micro-batches of the "
                "same update; call scaler.update() between updates alone."
            )

    def add_losses(self, at: At, losses_K: Tensor) -> None:
        """Add a micro-batch's losses, detached."""
        for t, loss in zip(at, losses_K.unbind(), strict=True):
            self.losses[t] = self.losses[t] + loss if t in self.losses else loss

    def all_losses(self) -> tuple[At, Tensor]:
        """Return the tasks present so far, and their losses summed over the micro-batches."""
        at = tuple(sorted(self.losses))
        return at, torch.stack([self.losses[t] for t in at]) if at else torch.empty(0)

    def add_rows(
        self, at: At, given: Given, shared: Sequence[Tensor], retain: bool = False
    ) -> None:
        """Add a micro-batch's gradients to the rows, and the other parameters' to `.grad`.

        retain: whether the losses' graph must outlive this.
        """
        if not at:
            return
        together = tuple(sorted({*self.at, *at}))
        rows_KP = self.spread(together, shared)
        mine = [rows_KP[together.index(t)] for t in at]
        self.reached |= gradients.add_rows(unbound(given), shared, mine, retain)
        self.at, self.rows_KP = together, rows_KP

    def form_rows(self, shared: Sequence[Tensor]) -> None:
        """Turn products into rows, where there are any."""
        if self.products is None:
            return
        found, self.products = self.products.rows(), None
        self.reached |= set(found)
        together = tuple(sorted({*self.at, *(t for rows in found.values() for t in rows)}))
        rows_KP = self.spread(together, shared)
        start = 0
        for i, parameter in enumerate(shared):
            stop = start + parameter.numel()
            for task, row in found.get(i, {}).items():
                rows_KP[together.index(task), start:stop] += row
            start = stop
        self.at, self.rows_KP = together, rows_KP

    def spread(self, at: At, shared: Sequence[Tensor]) -> Tensor:
        """Return the rows for the tasks `at`, zeros where none came yet."""
        if self.rows_KP is not None and at == self.at:
            return self.rows_KP
        rows_KP = gradients.empty_rows(len(at), shared)
        if self.rows_KP is not None:
            rows_KP[[at.index(t) for t in self.at]] = self.rows_KP
        return rows_KP


def unreached() -> UsageError:
    """Return the error for losses that have nothing to do with the shared parameters."""
    return UsageError(
        "Balancer: no loss reaches any of the shared parameters. Check that they are of the model "
        "that computed the losses (not of a copy, nor of one wrapped or moved since), that they "
        "require gradients, and that nothing between them and the losses is detached."
    )


class Exact:
    """Adds a method's update to the gradients.

    said: how the last update was computed, in words.
    held_bytes: of the tasks' gradients, or what stood for them, at most in an update so far.
    sharded: whether any of the shared parameters is.
    """

    def __init__(
        self, shared: Sequence[nn.Parameter], world: World, needs: Needs, gramian: GramianBy
    ) -> None:
        self._shared, self._world = shared, world
        self.sharded = check_shards(shared, world.size)
        self._by_layer = gramian == "auto" and not self.sharded
        self._per_layer, self._looks = PerLayer(), Looks()
        self._numbers = sum(p.numel() for p in shared if p.requires_grad)
        fast = needs == "gramian" and self._by_layer
        self.said = "exact, per layer: chosen at the first step" if fast else BY_ROWS
        self.held_bytes = 0

    def state(self) -> dict[str, Tensor]:
        """Return what it found out about the model; the digits of later steps depend on it."""
        return self._per_layer.state() | self._looks.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, bit for bit; from nothing, find out again."""
        self._per_layer.restore(state)
        self._looks.restore(state)

    def take(self, pending: Pending, at: At, given: Given, needs: Needs) -> None:
        """Take a micro-batch that others follow; add to every other parameter its gradient.

        pending: of the micro-batches before these losses; these are added to it.
        """
        if not self._per_layer_takes(pending, at, given, needs, more=True):
            pending.add_rows(at, given, self._shared)

    def add(
        self,
        pending: Pending | None,
        at: At,
        given: Given,
        all_at: At,
        needs: Needs,
        ask: Ask,
        retain: bool = False,
    ) -> Update:
        """Add the method's update to the shared `.grad`, and to every other its gradient.

        pending: of the micro-batches before these losses; None where there were none.
        at, given: the losses of this process. all_at: the tasks present anywhere.
        needs: what the method must see. retain: whether the losses' graph must outlive this.
        """
        pending = pending or Pending()
        by_layer = self._by_layer and needs == "gramian"
        if by_layer and self._world.unwatched:
            self._try_backward(given)
        takes = self._per_layer_takes(pending, at, given, needs, more=False)
        if self._world.size > 1 and by_layer:
            every = self._alike(pending, bool(at), retain)
            if takes and not every:
                at, given = (), ()
            takes = every
        if not takes:
            pending.products = None
            rows_KP, reached = self._rows(pending, at, given, all_at, retain)
            return self._add_rows(rows_KP, reached, needs, ask)
        products, pending.products = pending.products, None
        assert products is not None
        update = ask(self._gram(products, all_at), None)
        assert update.direction_P is None, "a direction needs rows"
        products.add(all_at, update.weights_K.detach(), self._shared, retain)
        if update.penalty is not None:
            (update.penalty / self._world.size).backward()  # type: ignore[no-untyped-call]
        return update

    def weigh(self, pending: Pending, at: At, weights_K: Tensor) -> None:
        """Add the weighted gradients of the micro-batches held, and keep them no longer.

        Their products are not formed. Every process adds its own, which the loop sums.
        """
        products, pending.products = pending.products, None
        if products is not None:
            products.add(at, weights_K, self._shared)
        if pending.rows_KP is not None:
            mine = weights_K[[at.index(t) for t in pending.at]]
            direction_P = mine.to(pending.rows_KP.dtype) @ pending.rows_KP
            gradients.add_direction(direction_P, self._shared, pending.reached)

    def _alike(self, pending: Pending, there: bool, retain: bool) -> bool:
        """Return whether every process holds products; where not, hold rows in place of them.

        there: whether this one has losses that are not in `pending`.
        """
        # Without any loss here the others' products have no terms from here.
        if pending.rows_KP is None and pending.products is None and not there:
            pending.products = Products(self._shared[0].device)
        products = pending.products
        every = self._world.everywhere(products is not None, self._shared[0].device)
        if products is not None and not every:
            self.said = f"{BY_ROWS} (another process cannot tell them per layer)"
            products.let_go(retain)
            pending.form_rows(self._shared)
        return every

    def _try_backward(self, given: Given) -> None:
        """Run one backward pass as any loop would, and put every `.grad` back.

        Per layer, gradients do not arrive where a wrapper could be seen to average them.
        """
        losses = list(given)
        leaves = [*self._shared, *(read(losses, self._shared).others if losses else ())]
        before = [leaf.grad for leaf in leaves]
        try:
            for leaf in leaves:
                leaf.grad = None
            with self._world.watched(lambda: gradients.marks(self._shared)):
                if losses:
                    torch.stack(losses).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        finally:
            for leaf, grad in zip(leaves, before, strict=True):
                leaf.grad = grad

    def _gram(self, products: Products, all_at: At) -> Tensor:
        world, nowhere = self._world, not products.layers
        if world.size > 1:
            nowhere = world.everywhere(nowhere, self._shared[0].device)
        if nowhere:
            raise unreached()
        if world.size == 1:
            return products.gram(all_at)
        self.said += f", across {world.size} processes"
        return across.gram(products, all_at, self._shared, self._world)

    def look(self, pending: Pending, at: At, given: Given, more: bool) -> None:
        """Take losses for their Gramian alone, and leave every `.grad` as it is.

        Per layer wherever that applies, whatever the Balancer was told. pending: the losses are
        added to it. more: whether others will be; the graph is let go then.
        """
        if not at:
            return
        losses, products = unbound(given), None
        if pending.rows_KP is None:
            before = pending.products
            products = self._per_layer.products(losses, self._shared, at, before, more, alone=True)
            self.said = self._per_layer.said
        if products is not None:
            self.held_bytes = max(self.held_bytes, products.held())
            pending.products = products
            return
        pending.form_rows(self._shared)
        together = tuple(sorted({*pending.at, *at}))
        rows_KP = pending.spread(together, self._shared)
        rows_KP[[together.index(t) for t in at]] += gradients.rows(losses, self._shared)
        pending.at, pending.rows_KP = together, rows_KP

    def gramian(self, pending: Pending, all_at: At) -> Tensor:
        """Return the Gramian, (K, K), of what `look` took in all processes; at: its tasks."""
        if self._world.size > 1:
            self._alike(pending, False, False)
        if pending.products is not None:
            return self._gram(pending.products, all_at)
        rows_KP = pending.spread(all_at, self._shared)
        self.held_bytes = max(self.held_bytes, rows_KP.numel() * rows_KP.element_size())
        if self._world.size > 1:
            self._world.add_up(rows_KP)
        return gradients.gram(rows_KP)

    def _per_layer_takes(
        self, pending: Pending, at: At, given: Given, needs: Needs, more: bool
    ) -> bool:
        """Add the losses to the pending products; False where that does not apply.

        Then there are no products, but rows of the micro-batches before.
        """
        if not self._by_layer or needs != "gramian" or pending.rows_KP is not None:
            self.said = BY_ROWS
            return False
        if not at:
            return pending.products is not None
        losses, before = unbound(given), pending.products
        # Processes and micro-batches must go the same way, whatever each of them would find.
        alone = before is None and not more and self._world.size == 1
        if alone and not self._looks.due(len(at), self._numbers):
            self.said = BY_ROWS_SMALL
            return False
        products = self._per_layer.products(losses, self._shared, at, before, more)
        self.said = self._per_layer.said
        if alone:
            self._looks.found(len(at), products is None or self._per_layer.dense)
        if products is None:
            pending.form_rows(self._shared)
            return False
        self.held_bytes = max(self.held_bytes, products.held())
        pending.products = products
        return True

    def _add_rows(self, rows_KP: Tensor, reached: set[int], needs: Needs, ask: Ask) -> Update:
        """Add the update made of every task's gradient, or of this process's part of it where they
        are sharded."""
        shared, world = self._shared, self._world
        self.held_bytes = max(self.held_bytes, rows_KP.numel() * rows_KP.element_size())
        if world.size > 1:
            world.add_up_rows(rows_KP, shared)
            reached = world.reached_anywhere(reached, shared)
        if not reached:
            raise unreached()
        gram_KK = gradients.gram(rows_KP)
        seen_KP = None
        if self.sharded:
            gram_KK = gradients.gram_parts(rows_KP, shared, world.size)
            world.add_up(gram_KK)
        if needs == "rows":
            seen_KP = whole_rows(rows_KP, shared) if self.sharded else rows_KP
        update = ask(gram_KK, seen_KP)
        direction_P = update.direction_P
        if direction_P is None:
            direction_P = update.weights_K.detach().to(rows_KP.dtype) @ rows_KP
        elif self.sharded:
            direction_P = part_of(direction_P, shared)
        gradients.add_direction(direction_P, shared, reached, world.size)
        if update.penalty is not None:
            (update.penalty / world.size).backward()  # type: ignore[no-untyped-call]
        return update

    def _rows(
        self, pending: Pending, at: At, given: Given, all_at: At, retain: bool
    ) -> tuple[Tensor, set[int]]:
        """Return this process's rows, and the positions of the shared parameters they reach."""
        rows_KP = torch.empty(0)

        def marks() -> Tensor:
            return torch.stack([rows_KP.sum(1), rows_KP.abs().sum(1)], dim=1)

        # FSDP's backward passes exchange messages as they should.
        with contextlib.nullcontext() if self.sharded else self._world.watched(marks):
            pending.add_rows(at, given, self._shared, retain)
            rows_KP = pending.spread(all_at, self._shared)
        return rows_KP, pending.reached
