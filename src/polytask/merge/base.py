"""Merge: one base tensor and M tuned ones, and settings -> one tensor.

A method sees tensors, never a file, a module or the whole model at once: `engine` walks through
the model piece by piece and asks the method for each. What a method must know beyond a piece, such
as a threshold over the whole model, it gathers in passes before; see `Surveyor`.

Shapes: M = tuned models, P = elements of one piece; P stands for the whole shape where a piece
    is a whole tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.rounding import rounded

State = dict[str, Tensor]
"""What a method gathered about the models: a few small tensors."""

Reach = Literal["elements", "tensor"]
"""What one call must see: any stretch of elements; a tensor as a whole and in its shape."""

Over = Literal["tensor", "model"]
"""What a survey goes over before anything is merged: each tensor by itself; the whole model."""

GRAIN = 1 << 14
"""Pieces of a tensor start at multiples of this many elements, so that sums do not depend on how
a tensor was cut."""


@dataclass(frozen=True)
class Place:
    """Which elements a piece holds.

    name: of the tensor; seeds draws. start: index of the piece's first element in the flattened
        tensor, a multiple of GRAIN. shape: of the whole tensor.
    alone: True where that tensor is the whole model.
    stands_for: how many elements a thinned piece stands for, see `Surveyor.sample`; 0 for one
        that is not thinned.
    """

    name: str = ""
    start: int = 0
    shape: tuple[int, ...] = ()
    alone: bool = False
    stands_for: int = 0

    @property
    def elements(self) -> int:
        """How many elements the whole tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Mixture:
    """(sum_m tuned[m] * theta_m + base * theta_0) / over; theta_0 + scale * that, with a scale."""

    tuned: tuple[float, ...]
    base: float = 0.0
    over: float = 1.0
    scale: float | None = None

    def of(self, rows: Iterable[Tensor], wide_2P: Tensor) -> Tensor:
        """Return it, (P,), in float64, in the memory of `wide_2P`.

        rows: the tuned ones, (P,) each, and then the base where it takes part. Each is done with
            when the next one comes, so that all may come in the same memory.
        """
        sum_P, one_P = wide_2P[0], wide_2P[1]
        # Products and sums are rounded apart: fused, which not every processor can, a value beside
        # a tie would round by the machine.
        for number, (row_P, factor) in enumerate(zip(rows, (*self.tuned, self.base), strict=False)):
            term_P = one_P if number else sum_P
            term_P.copy_(row_P)
            if factor != 1:
                term_P.mul_(factor)
            if number:
                sum_P.add_(term_P)
        if self.over != 1:
            sum_P.div_(self.over)
        if self.scale is not None:
            sum_P.mul_(self.scale).add_(one_P.copy_(row_P))
        return sum_P

    def __call__(self, base_P: Tensor, tuned_MP: Tensor) -> Tensor:
        """Return it, (P,), in float64. base_P: (P,), or (0,) where it takes no part."""
        rows = (*tuned_MP, base_P) if len(base_P) else tuned_MP
        return self.of(rows, tuned_MP.new_empty(2, tuned_MP.shape[1], dtype=torch.float64))


@dataclass(frozen=True)
class Products:
    """A survey's look that adds up products of the models, or of their changes from the base; see
    `angles.Angles`."""

    of_changes: bool


@dataclass(frozen=True)
class Changes:
    """How far models went from the base, in float32, and what of it counts; as in `steps`.

    kept, seed: the share that a draw keeps, see `draws.kept`, the rest times 0; 1 keeps all.
    over: what changes are divided by then. below, most: per model, none where there is no such
        end; changes of a size up to `below`, or above `most`, become 0 then.
    """

    kept: float = 1.0
    seed: int = 0
    over: float = 1.0
    below: tuple[float, ...] = ()
    most: tuple[float, ...] = ()


@dataclass(frozen=True)
class Moved:
    """theta_0 + scale * (sum_m weights[m] * changes_m) / over, or the mean of those that agree.

    majority: given where a sign is elected: the one of elements whose sum is 0.
    """

    changes: Changes
    weights: tuple[float, ...]
    scale: float
    over: float = 1.0
    majority: float | None = None


@dataclass(frozen=True)
class Sizes:
    """A survey's look that counts the sizes of changes, for `ranks.Ranks`."""

    changes: Changes


@dataclass(frozen=True)
class Signs:
    """A survey's look that adds up in "signs" which sign sums of changes have, element by element.

    weights: what changes are multiplied by before.
    """

    changes: Changes
    weights: tuple[float, ...]


Look = Products | Sizes | Signs
"""What a survey adds up, where the kernels know it as well."""


class Merge(ABC):
    """The contract of this room. A method is a frozen dataclass of settings.

    reach: what `piece` must see at once.
    dtype: the precision of the pieces it gets: the engine widens what it read to it, and rounds
        once at the end.
    needs_base: False where the base takes no part; it may then be None.
    order_free: True where the order of the models does not matter. A method with settings per
        model says so of equal ones.
    draws: True where it draws random numbers; from its `seed`, the tensor's name and the element's
        index alone, so that neither pieces nor the order of tensors matter.
    least, most: how many models it takes; None for no end.
    """

    reach: ClassVar[Reach] = "elements"
    dtype: ClassVar[torch.dtype] = torch.float32
    needs_base: ClassVar[bool] = True
    order_free: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None

    @abstractmethod
    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return one merged piece, in the precision of what came or in float64, where float32
        would be rounded a second time; changes none of its arguments.

        base_P: (P,), or (0,) where there is no base. tuned_MP: (M, P). A method that reaches for
            the tensor gets and returns it in its shape: (*shape), (M, *shape). An element that is
            not finite in one of the models is not finite in what comes back.
        state: what `survey` left; empty for a method without.
        """

    def mixture(self, models: int, state: State) -> Mixture | None:
        """Return the result as a mixture, where it is one; None where it is more than that.

        The engine forms mixtures straight from what it reads; `piece` is then the same mixture.
        """
        return None

    def formed(self, models: int, state: State) -> Moved | None:
        """Return the result as a base that is moved, where it is one that the kernels know.

        `piece` gives the same to the last bit, wherever it gets float32.
        """
        return None

    @final
    def __call__(self, base_P: Tensor | None, tuned_MP: Tensor, name: str = "") -> Tensor:
        """Return the merged tensor, in the dtype of the tuned ones, as if it were all the model.

        tuned_MP: M tensors, stacked, each in the shape of the base. name: seeds what is drawn.
        Raises UsageError where shapes or the number of models do not fit, RunError where a value
        leaves the dtype's range.
        """
        check_models(self, len(tuned_MP))
        shape = tuple(tuned_MP.shape[1:])
        if base_P is None and self.needs_base:
            raise UsageError(f"{type(self).__name__} needs the base model; give it.")
        if base_P is not None and tuple(base_P.shape) != shape:
            raise UsageError(
                f"{type(self).__name__}: the base has shape {tuple(base_P.shape)}, the tuned "
                f"tensors {shape}; give M tensors of the base's shape, stacked: (M, *shape)."
            )
        if tuned_MP[0].numel() == 0:
            return tuned_MP[0].clone()
        dtype = torch.promote_types(tuned_MP.dtype, self.dtype)
        base = tuned_MP.new_empty(0, dtype=dtype) if base_P is None else base_P.to(dtype)
        tuned_M = tuned_MP.to(dtype)
        if self.reach == "elements":
            base, tuned_M = base.reshape(-1), tuned_M.reshape(len(tuned_M), -1)
        at = Place(name, 0, shape, alone=True)
        state: State = {}
        if isinstance(self, Surveyor):
            state = self.begin(len(tuned_MP), dtype)
            while not self.settled(state):
                sums = self.blank(state)
                self.look(base, tuned_M, at, state, sums)
                state = self.settle(state, sums)
        return rounded(self.piece(base, tuned_M, at, state), tuned_MP.dtype, name).reshape(shape)


class Surveyor(Merge):
    """A method that looks at everything before it merges: at each tensor, or at the whole model.

    The engine begins, and until the state is settled lets the method look at every piece (in one
    pass over the files) and settle what the pass found. Several passes may be needed.

        state = method.begin(M, dtype)
        while not method.settled(state):
            sums = method.blank(state)
            for base_P, tuned_MP, at in pieces:  # of the tensor, or of the whole model
                method.look(base_P, tuned_MP, at, state, sums)
            state = method.settle(state, sums)

    Pieces of one tensor come in order; tensors may come in any. No piece is empty.
    """

    @property
    @abstractmethod
    def over(self) -> Over:
        """What one survey goes over."""

    @final
    def sees_all(self, at: Place, elements: int) -> bool:
        """Return True where a piece of so many elements is all that this survey goes over."""
        return at.elements == elements and (at.alone or self.over == "tensor")

    def sample(self, state: State) -> int:
        """Return s, where the first element in s of every piece is enough for the next pass.

        The engine then reads no more, and says how many elements the piece stands for. What is
        found in the end does not depend on it.
        """
        return 1

    def looks(self, state: State) -> Look | None:
        """Return what the next pass adds up, where it is one of these; `look` adds the same."""
        return None

    @abstractmethod
    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return what is known of M models before anything was seen.

        dtype: of every piece that is to come, float32 or float64.
        """

    @abstractmethod
    def settled(self, state: State) -> bool:
        """Return True where nothing is left to look for."""

    @abstractmethod
    def blank(self, state: State) -> State:
        """Return the sums of a new pass, all empty."""

    @abstractmethod
    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Add what a piece holds to `sums`, in place; `state` and the piece stay as they are."""

    @abstractmethod
    def settle(self, state: State, sums: State) -> State:
        """Return the next state, after a pass over all pieces."""


def check_models(method: Merge, models: int) -> None:
    """Raise UsageError where a method does not take so many models, or has settings for others."""
    who = type(method).__name__
    if models < method.least or (method.most is not None and models > method.most):
        takes = (
            f"exactly {method.least}" if method.least == method.most else f"at least {method.least}"
        )
        raise UsageError(f"{who} merges {takes} tuned models; {models} came.")
    weights = getattr(method, "weights", ())
    if weights and len(weights) != models:
        raise UsageError(
            f"{who}: {len(weights)} weights for {models} tuned models; give one for each."
        )
