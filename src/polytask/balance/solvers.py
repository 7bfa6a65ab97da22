"""The small problems that Gramian methods share, solved exactly on the host in float64.

All are posed in cosines and norms: G = diag(d) C diag(d). Gradients of very different sizes then
meet in a matrix whose diagonal is 1, and what is solved is as exact for the small ones as for the
large. Every answer is held to its optimality conditions; where they are not met, the answer comes
with a `trouble` that names the substitute used, for `Update.note`.

Shapes: K = tasks present, N = problems solved side by side, M = most free variables of any.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RIDGE = 1e-15
"""Times K, added to the diagonal of C: the rounding error that C has anyway, made positive."""

TOLERANCE = 1e-12
"""By how much a sign may be wrong, for a matrix of diagonal 1 and variables near 1."""


class Solution(NamedTuple):
    """values: what was asked for. trouble: None, or what was used in place of the exact answer."""

    values: Floats
    trouble: str | None = None


class Split(NamedTuple):
    """A Gramian as cosines_KK (diagonal 1, or 0 for a gradient of zero) and norms_K."""

    cosines_KK: Floats
    norms_K: Floats


def split(gram_KK: Floats) -> Split:
    """Return the cosines between the gradients and their norms."""
    norms_K = np.sqrt(np.maximum(gram_KK.diagonal(), 0.0))
    inverse_K = np.divide(1.0, norms_K, out=np.zeros_like(norms_K), where=norms_K > 0)
    # One factor after the other: their product may overflow where the cosine does not.
    cosines_KK = np.clip(gram_KK * inverse_K[:, None] * inverse_K, -1.0, 1.0)
    np.fill_diagonal(cosines_KK, norms_K > 0)
    return Split(cosines_KK, norms_K)


def nonnegative(
    quadratic_KK: Floats,
    linear_NK: Floats,
    free_NK: Flags | None = None,
    exchanges: int = 15,
    additions: int = 10,
) -> Solution:
    """Return the z_NK >= 0 that minimise z A z / 2 - b z for each of N vectors b.

    quadratic_KK: A, positive semi-definite with a diagonal near 1; b in its range.
    free_NK: a guess of which z are not 0; None: those with b > 0.
    exchanges: rounds of block principal pivoting (Judice & Pires 1994; Kim & Park 2011), which
        exchanges every variable of the wrong sign at once: a handful of rounds as a rule, but
        where gradients depend on each other it may go in circles.
    additions: times K, rounds of the active set of Lawson & Hanson (1974) for what is left: slower,
        never uphill, and always at a feasible point.
    """
    matrix_KK = quadratic_KK + RIDGE * len(quadratic_KK) * np.eye(len(quadratic_KK))
    free_NK = linear_NK > 0 if free_NK is None else free_NK.copy()
    values_NK = np.zeros_like(linear_NK)
    open_N = np.arange(len(linear_NK))
    for _ in range(exchanges):
        trial_NK = _on_free(matrix_KK, linear_NK[open_N], free_NK[open_N])
        slope_NK = trial_NK @ matrix_KK - linear_NK[open_N]
        signed_NK = np.where(free_NK[open_N], trial_NK, slope_NK)
        wrong_NK = signed_NK < -_allowed(trial_NK)
        done_N = ~wrong_NK.any(axis=1)
        values_NK[open_N[done_N]] = np.maximum(trial_NK[done_N], 0.0)
        open_N = open_N[~done_N]
        if not len(open_N):
            return Solution(values_NK)
        free_NK[open_N] ^= wrong_NK[~done_N]
    values_NK[open_N], settled = _by_additions(
        matrix_KK, linear_NK[open_N], free_NK[open_N], additions * len(matrix_KK)
    )
    if settled:
        return Solution(values_NK)
    return Solution(values_NK, "the active set did not settle; used its last feasible point")


def _allowed(values_NK: Floats) -> Floats:
    """Return by how much a sign may be wrong: never more than a millionth."""
    largest_N1 = 1.0 + np.abs(values_NK).max(axis=1, keepdims=True)
    allowed_N1: Floats = TOLERANCE * np.minimum(largest_N1, 1e6)
    return allowed_N1


def _by_additions(
    matrix_KK: Floats, linear_NK: Floats, free_NK: Flags, rounds: int
) -> tuple[Floats, bool]:
    """Return feasible points and whether all are minima: one variable comes in at a time.

    free_NK: where to begin, changed in place; those of them that turn out below 0 go first.
    """
    values_NK = np.zeros_like(linear_NK)
    barred_NK = np.zeros_like(free_NK)  # came in, and went straight out: depends on the others
    moving_N = free_NK.sum(axis=1) > 0  # still on the way to the minimum of its set
    for _ in range(rounds):
        gain_NK = linear_NK - values_NK @ matrix_KK
        gain_NK[free_NK | barred_NK] = 0.0
        next_N = gain_NK.argmax(axis=1)
        adds_N = ~moving_N & (gain_NK.max(axis=1) > 10 * _allowed(values_NK)[:, 0])
        if not (adds_N | moving_N).any():
            return values_NK, True
        free_NK[adds_N, next_N[adds_N]] = True
        at_N = np.flatnonzero(adds_N | moving_N)
        start_NK, trial_NK = values_NK[at_N], _on_free(matrix_KK, linear_NK[at_N], free_NK[at_N])
        fresh_N, next_N = adds_N[at_N], next_N[at_N]
        futile_N = fresh_N & (trial_NK[np.arange(len(at_N)), next_N] <= 0)
        # As far towards the trial as every free variable stays >= 0.
        down_NK = free_NK[at_N] & (trial_NK <= 0)
        part_NK = np.divide(
            start_NK,
            start_NK - trial_NK,
            out=np.ones_like(start_NK),
            where=down_NK & (start_NK > 0),
        )
        part_NK[down_NK & (start_NK <= 0)] = 0.0
        part_N = np.where(futile_N, 0.0, part_NK.min(axis=1))
        moved_NK = np.maximum(start_NK + part_N[:, None] * (trial_NK - start_NK), 0.0)
        leaves_NK = down_NK & (part_NK <= part_N[:, None]) & ~futile_N[:, None]
        moved_NK[leaves_NK] = 0.0
        values_NK[at_N] = moved_NK
        free_NK[at_N] &= ~leaves_NK
        free_NK[at_N[futile_N], next_N[futile_N]] = False
        barred_NK[at_N[part_N > 0]] = False
        barred_NK[at_N[futile_N], next_N[futile_N]] = True
        moving_N[at_N] = leaves_NK.any(axis=1)
    return values_NK, False


def _on_free(matrix_KK: Floats, linear_NK: Floats, free_NK: Flags) -> Floats:
    """Return the minimisers with the free variables alone, the others 0."""
    if len(free_NK) == 1:
        values_NK = np.zeros_like(linear_NK)
        at = np.flatnonzero(free_NK[0])
        values_NK[0, at] = np.linalg.solve(matrix_KK[np.ix_(at, at)], linear_NK[0, at])
        return values_NK
    most = int(free_NK.sum(axis=1).max())
    at_NM = np.argsort(~free_NK, axis=1, kind="stable")[:, :most]  # the free ones first
    is_free_NM = np.take_along_axis(free_NK, at_NM, axis=1)
    small_NMM = matrix_KK[at_NM[:, :, None], at_NM[:, None, :]]
    small_NMM *= is_free_NM[:, :, None] & is_free_NM[:, None, :]
    rows, columns = np.nonzero(~is_free_NM)
    small_NMM[rows, columns, columns] = 1.0
    right_NM = np.take_along_axis(linear_NK, at_NM, axis=1) * is_free_NM
    values_NK = np.zeros_like(linear_NK)
    solved_NM = np.linalg.solve(small_NMM, right_NM[:, :, None])[:, :, 0]
    np.put_along_axis(values_NK, at_NM, solved_NM, axis=1)
    return values_NK


def nearest(gram_KK: Floats, support_K: Flags | None = None) -> Solution:
    """Return weights >= 0 with sum 1 that give the shortest weighted sum of the gradients.

    support_K: a guess of which weights are not 0. Gradients of zero share all the weight.

    With u >= 0 and no sum to keep, |J'u|^2 + (sum u - 1)^2 has its minimum at a multiple of the
    weights sought (Wolfe 1976), and is bounded whatever the gradients. Measured in the length of
    the shortest gradient, the multiple is between 1/2 and 1.
    """
    cosines_KK, norms_K = split(gram_KK)
    zero_K = norms_K == 0
    if zero_K.any():
        return Solution(zero_K / zero_K.sum())
    share_K = norms_K.min() / norms_K  # weight = share x variable
    free_NK = None if support_K is None else support_K[None]
    solved = nonnegative(cosines_KK + np.outer(share_K, share_K), share_K[None], free_NK)
    weights_K = share_K * solved.values[0]
    if not weights_K.any():  # stopped where it began
        weights_K[norms_K.argmin()] = 1.0
        return Solution(weights_K, "the active set did not settle; used the shortest gradient")
    return Solution(weights_K / weights_K.sum(), solved.trouble)


def towards(
    gram_KK: Floats, target_K: Floats, pull: float, support_K: Flags | None = None
) -> Solution:
    """Return weights w on the simplex that give the shortest J'(w + pull x target).

    Since the weights add up to 1, that is `nearest` for gradients g_k + pull x J' target.
    """
    towards_K = pull * (gram_KK @ target_K)
    shifted_KK = gram_KK + towards_K[:, None] + towards_K + pull * (target_K @ towards_K)
    return nearest(shifted_KK, support_K)


def into_dual_cone(cosines_KK: Floats, given_NK: Floats) -> Solution:
    """Return for each u the v >= u with the shortest J'v, J of unit rows.

    J'v is the projection of J'u onto the vectors that conflict with no row (Quinton & Rey 2024,
    proposition 1).
    """
    solved = nonnegative(cosines_KK, -given_NK @ cosines_KK)
    return Solution(given_NK + solved.values, solved.trouble)


def equilibrium(gram_KK: Floats, power: float, rounds: int = 200) -> Solution:
    """Return the weights w > 0 with (G w)_k = w_k ** -power; 0 for a gradient of zero.

    power: > 0. It is the minimum of w G w / 2 - sum of the integrals of w ** -power, convex, found
    by Newton steps. Where some weights make the gradients cancel there is none: weights then grow
    until a ridge of 1e-13 on the cosines holds them, which leaves the update bounded.
    """
    weights_K = np.zeros(len(gram_KK))
    some_K = gram_KK.diagonal() > 0
    if not some_K.any():
        return Solution(weights_K)
    cosines_KK, norms_K = split(gram_KK[np.ix_(some_K, some_K)])
    tasks = len(norms_K)
    matrix_KK = cosines_KK + 1e-13 * np.eye(tasks)
    # With w = v / norm it reads C v = unit ** (power + 1) v ** -power; were C = I, v = unit.
    unit_K = norms_K ** ((power - 1) / (power + 1))
    factor_K = np.ones(tasks)  # v = unit x factor
    trouble: str | None = "Newton's steps did not settle; used the last of them"
    for _ in range(rounds):
        value_K = unit_K * factor_K
        pulled_K = matrix_KK @ value_K
        wanted_K = unit_K * factor_K**-power
        # What C v cannot say, because its terms are larger than their sum, is not asked of it.
        rounding_K = np.abs(matrix_KK) @ value_K * np.finfo(np.float64).eps * tasks
        if bool((np.abs(pulled_K - wanted_K) <= 1e-10 * wanted_K + rounding_K).all()):
            trouble = None
            break
        hessian_KK = matrix_KK + np.diag(power * factor_K ** (-power - 1))
        move_K = np.linalg.solve(hessian_KK, wanted_K - pulled_K)
        factor_K = _step(matrix_KK, unit_K, power, factor_K, move_K / unit_K)
    weights_K[some_K] = unit_K * factor_K / norms_K
    return Solution(weights_K, trouble)


def _step(
    matrix_KK: Floats, unit_K: Floats, power: float, factor_K: Floats, move_K: Floats
) -> Floats:
    """Return the factors after as much of the move as keeps them > 0 and does not overshoot."""
    shrink = float((-move_K / factor_K).max())
    length = 1.0 if shrink < 0.99 else 0.99 / shrink

    def slope(at_K: Floats) -> Any:
        return (matrix_KK @ (unit_K * at_K) - unit_K * at_K**-power) @ (unit_K * move_K)

    downhill = slope(factor_K)
    for _ in range(60):
        at_K = factor_K + length * move_K
        if slope(at_K) <= 0.9 * abs(downhill):
            break
        length /= 2
    return at_K


def even_products(cosines_KK: Floats, aims_K: Floats) -> Floats:
    """Return the a for which J'a, J of unit rows, makes the products `aims` with the rows.

    The least-squares solution of C a = aims, and of those the shortest, where gradients depend on
    each other; all 0 where no combination comes nearer to the aims than none. Eigenvalues below
    K x 1e-13 of the largest count as 0.
    """
    values_K, basis_KK = np.linalg.eigh(cosines_KK)
    parts_K = aims_K @ basis_KK
    kept_K = (values_K > values_K[-1] * len(values_K) * 1e-13) & (
        np.abs(parts_K) > 1e-12 * np.linalg.norm(aims_K)
    )
    inverse_K = np.divide(1.0, values_K, out=np.zeros_like(values_K), where=kept_K)
    even_K: Floats = basis_KK @ (inverse_K * parts_K)
    return even_K


def onto_simplex(point_K: Floats) -> Floats:
    """Return the nearest weights >= 0 with sum 1."""
    high_K = np.sort(point_K - point_K.max())[::-1]
    levels_K = (np.cumsum(high_K) - 1) / np.arange(1, len(high_K) + 1)
    level = levels_K[np.flatnonzero(high_K > levels_K)[-1]]
    weights_K: Floats = np.maximum(point_K - point_K.max() - level, 0.0)
    return weights_K
