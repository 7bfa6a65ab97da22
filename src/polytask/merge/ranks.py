"""Values of given ranks among any number of streamed ones: exact, in bounded memory, few passes.

A float's bits, read as an integer, keep its order. The first pass looks at a sample and leaves a
bracket around each rank; the next counts what lies above the bracket and, inside, how many values
each integer has, or keeps them where they are few. Where the bracket missed, or is too wide for the
counters, passes follow until one integer is left. What is found is the same however values came.

Shapes: R = rows, ranked apart; K = ranks asked of each; L = R * K lines; P = elements of a piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.merge.base import State

BINS = 1 << 17
"""Counters per line, or values kept: one mebibyte."""

STRIDE = 31
"""The first pass looks at one element in so many; a prime, so that no row length falls in step."""

DEVIATIONS = 4.0
"""Half the bracket's width in standard deviations of the sample's rank: one in 16,000 misses."""


@dataclass(frozen=True)
class Ranks:
    """Finds the K values of given ranks, the largest having rank 1, in each of R rows.

    signed: False where no value is negative; half the integers are then left out. NaN counts as
        larger than everything.
    keeps: keep the values inside a bracket where they are few, which saves a pass. Sums of two
        lookers can then not be added.
    """

    signed: bool = False
    keeps: bool = False

    def begin(self, rows: int, ranks: int, dtype: torch.dtype) -> State:
        """Return the state before the first pass; dtype: float32 or float64."""
        low, high = self._ends(dtype)
        return {
            "like": torch.empty(0, dtype=dtype),
            "rank_K": torch.zeros(ranks, dtype=torch.int64),  # 0: not known before the first pass
            "low_L": torch.full((rows * ranks,), low, dtype=torch.int64),
            "high_L": torch.full((rows * ranks,), high, dtype=torch.int64),
            "rows": torch.tensor(rows),
            "few": torch.tensor(False),  # whether the next pass keeps what is inside the brackets
        }

    def settled(self, state: State) -> bool:
        """Return True where every value is known."""
        return torch.equal(state["low_L"], state["high_L"])

    def values(self, state: State) -> Tensor:
        """Return what was found, (R, K)."""
        dtype = state["like"].dtype
        keys_L = state["low_L"].to(torch.int32 if dtype == torch.float32 else torch.int64)
        found_L = torch.from_numpy(self._turned(keys_L.numpy())).view(dtype)
        return found_L.reshape(int(state["rows"]), -1)

    def stride(self, state: State) -> int:
        """Return s, where one element in s is enough for the next pass."""
        return 1 if bool(state["rank_K"].any()) else STRIDE

    def blank(self, state: State, counters: bool = True) -> State:
        """Return the sums of a new pass. counters: False leaves them to the first look, if any."""
        sums = {"elements": torch.zeros((), dtype=torch.int64)}
        return sums | _counters(state) if counters else sums

    def look(self, values_RP: Tensor, elements: int, state: State, sums: State) -> None:
        """Count a piece. elements: of it, also where `stride` has thinned it out."""
        self.note(elements, state, sums)
        keys_RP = self._keys(values_RP)
        ranks = len(state["rank_K"])
        above_L, inside_LB = sums["above_L"].numpy(), sums["inside_LB"].numpy()
        for line, (low, high) in enumerate(_brackets(state)):
            keys_P = keys_RP[line // ranks]
            if low == high:
                continue
            from_low_P = keys_P >= keys_P.dtype.type(low)
            inside_N = np.flatnonzero(from_low_P & (keys_P <= keys_P.dtype.type(high)))
            above_L[line] += np.count_nonzero(from_low_P) - len(inside_N)
            if "kept_L" in sums:
                kept = int(sums["kept_L"][line])
                fits = min(len(inside_N), max(0, BINS - kept))
                inside_LB[line, kept : kept + fits] = keys_P[inside_N[:fits]]
                sums["kept_L"][line] += len(inside_N)
                continue
            bin_N = _binned(keys_P[inside_N], low, high)
            if len(bin_N) > BINS:
                inside_LB[line] += np.bincount(bin_N, minlength=BINS)
            else:
                np.add.at(inside_LB[line], bin_N, 1)

    def note(self, elements: int, state: State, sums: State) -> None:
        """Add to how many elements were seen, and make room for what is counted of them."""
        sums["elements"] += elements
        if "above_L" not in sums:
            sums.update(_counters(state))

    def lines(self, state: State) -> tuple[NDArray[np.uint32], ...]:
        """Return of each line the low and the high of its bracket, and by how many bits keys are
        cut there. Of float32 that has no sign alone."""
        ends = _brackets(state)
        found = zip(*((low, high, _shift(low, high)) for low, high in ends), strict=True)
        return tuple(np.array(values, dtype=np.uint32) for values in found)

    def settle(self, state: State, sums: State, ranks: tuple[int, ...]) -> State:
        """Return the state after a pass. ranks: K of them, each from 1 to `sums["elements"]`."""
        if "found_L" in sums:
            found_L = sums["found_L"]
            return state | {"rank_K": torch.tensor(ranks), "low_L": found_L, "high_L": found_L}
        sampled = not bool(state["rank_K"].any())
        everything = self._ends(state["like"].dtype)
        elements = max(1, int(sums["elements"]))
        ends, most = [], 0.0
        for line, (low, high) in enumerate(_brackets(state)):
            inside_B, above = sums["inside_LB"][line].numpy(), int(sums["above_L"][line])
            rank = ranks[line % len(ranks)]
            if sampled:
                low, high, share = _bracketed(low, high, inside_B, rank / elements)
                most = max(most, share * elements)
            elif "kept_L" in sums:
                kept = int(sums["kept_L"][line])
                if kept <= BINS:  # else all again, counted
                    low, high = _found(low, high, inside_B[:kept], rank, above, everything)
            else:
                low, high = _narrowed(low, high, inside_B, rank, above, everything)
            ends.append((low, high))
        return state | {
            "few": torch.tensor(self.keeps and sampled and most < 0.8 * BINS),
            "rank_K": torch.tensor(ranks),
            "low_L": torch.tensor([low for low, _ in ends]),
            "high_L": torch.tensor([high for _, high in ends]),
        }

    def look_whole(self, values_RP: Tensor, sums: State, ranks: tuple[int, ...]) -> None:
        """Find the values at once, of a single piece that is everything."""
        sums["elements"] += values_RP.shape[1]
        keys_RP = self._keys(values_RP)
        places = [keys_RP.shape[1] - rank for rank in ranks]
        found_L = np.partition(keys_RP, places, axis=1)[:, places].reshape(-1)
        sums["found_L"] = torch.from_numpy(found_L.astype(np.int64))

    def _ends(self, dtype: torch.dtype) -> tuple[int, int]:
        most = (1 << (31 if dtype == torch.float32 else 63)) - 1
        return (-most - 1 if self.signed else 0), most

    def _keys(self, values_RP: Tensor) -> NDArray[np.signedinteger]:
        bits = torch.int32 if values_RP.dtype == torch.float32 else torch.int64
        keys_RP: NDArray[np.signedinteger] = values_RP.contiguous().view(bits).cpu().numpy()
        return self._turned(keys_RP)

    def _turned(self, keys: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
        """Return bits as keys, and keys as bits: below zero, a float's bits count the other way."""
        if not self.signed:
            return keys
        width = 8 * keys.dtype.itemsize
        return keys ^ ((keys >> (width - 1)) & keys.dtype.type((1 << (width - 1)) - 1))


_UNSIGNED = {np.dtype(np.int32): np.uint32, np.dtype(np.int64): np.uint64}


def _counters(state: State) -> State:
    """Return room for what a pass finds: counts, or values and how many they are."""
    lines = len(state["low_L"])
    above = {"above_L": torch.zeros(lines, dtype=torch.int64)}
    if bool(state["few"]):
        kept = {"kept_L": torch.zeros(lines, dtype=torch.int64)}
        return above | kept | {"inside_LB": torch.empty(lines, BINS, dtype=torch.int64)}
    return above | {"inside_LB": torch.zeros(lines, BINS, dtype=torch.int64)}


def _brackets(state: State) -> list[tuple[int, int]]:
    return list(zip(state["low_L"].tolist(), state["high_L"].tolist(), strict=True))


def _shift(low: int, high: int) -> int:
    """Return by how many bits the keys of a bracket are cut, so that the counters hold them."""
    return max(0, (high - low).bit_length() - (BINS.bit_length() - 1))


def _binned(keys_N: NDArray[np.signedinteger], low: int, high: int) -> NDArray[np.int64]:
    """Return the counter of each key of a bracket."""
    unsigned = _UNSIGNED[keys_N.dtype]
    over_low_N = (keys_N - keys_N.dtype.type(low)).view(unsigned)
    bin_N: NDArray[np.int64] = (over_low_N >> unsigned(_shift(low, high))).astype(np.int64)
    return bin_N


def _bracketed(
    low: int, high: int, bins_B: NDArray[np.int64], share: float
) -> tuple[int, int, float]:
    """Return a bracket that most likely holds the rank, and what share of values it holds.

    bins_B: counts of a sample over all keys.
    """
    sampled = int(bins_B.sum())
    if low == high or sampled == 0:
        return low, high, 1.0
    margin = 2 + DEVIATIONS * math.sqrt(sampled * share * (1 - share))
    first = max(1, math.floor(sampled * share - margin))
    last = min(sampled, math.ceil(sampled * share + margin))
    bottom, top = _bins_of((last, first), bins_B)
    shift = _shift(low, high)
    inside = bins_B[bottom : top + 1].sum() / sampled
    return low + (bottom << shift), min(high, low + ((top + 1) << shift) - 1), float(inside)


def _found(
    low: int,
    high: int,
    kept_N: NDArray[np.int64],
    rank: int,
    above: int,
    everything: tuple[int, int],
) -> tuple[int, int]:
    """Return the key of the rank, or on which side of the bracket it is."""
    if low == high:
        return low, high
    if rank <= above:
        return high + 1, everything[1]
    if rank > above + len(kept_N):
        return everything[0], low - 1
    # Counted before they are ordered: changes of 16-bit models are few different values.
    bin_N = _binned(kept_N, int(kept_N.min()), int(kept_N.max()))
    bins_B = np.bincount(bin_N)
    (at,) = _bins_of((rank - above,), bins_B)
    inside_N = kept_N[bin_N == at]
    place = len(inside_N) - (rank - above - int(bins_B[at + 1 :].sum()))
    key = int(np.partition(inside_N, place)[place])
    return key, key


def _narrowed(
    low: int,
    high: int,
    bins_B: NDArray[np.int64],
    rank: int,
    above: int,
    everything: tuple[int, int],
) -> tuple[int, int]:
    """Return the one bin of the bracket that holds the rank, or on which side of it the rank is.

    above: how many values are larger than the bracket.
    """
    if low == high:
        return low, high
    if rank <= above:
        return high + 1, everything[1]
    if rank > above + bins_B.sum():
        return everything[0], low - 1
    shift = _shift(low, high)
    bottom = low + (_bins_of((rank - above,), bins_B)[0] << shift)
    return bottom, min(high, bottom + (1 << shift) - 1)


def _bins_of(ranks: tuple[int, ...], bins_B: NDArray[np.int64]) -> list[int]:
    """Return the bins that hold values of these ranks, of which the largest value has 1."""
    up_to_B = np.cumsum(bins_B)
    found: list[int] = np.searchsorted(up_to_B, [up_to_B[-1] + 1 - rank for rank in ranks]).tolist()
    return found
