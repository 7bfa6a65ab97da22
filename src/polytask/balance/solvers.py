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
    additions: int | None = None,
    roots: Roots | None = None,
) -> Solution:
    """Return the z_NK >= 0 that minimise z A z / 2 - b z for each of N vectors b.

    quadratic_KK: A, positive semi-definite with a diagonal near 1; b in its range.
    free_NK: a guess of which z are not 0; None: those with b > 0.
    exchanges: rounds of block principal pivoting (Judice & Pires 1994; Kim & Park 2011), which
        exchanges every variable of the wrong sign at once, for all N side by side: a handful of
        rounds as a rule, but where many gradients depend on each other it goes in circles, and is
        left out unless N = 1.
    additions: >= 1, rounds of the active set of Lawson & Hanson (1974) for each that is left, one
        after the other from z = 0; None: 10 K.
    roots: of A, where the caller has them.
    """
    matrix_KK = quadratic_KK + RIDGE * len(quadratic_KK) * np.eye(len(quadratic_KK))
    values_NK = np.zeros_like(linear_NK)
    free_NK = linear_NK > 0 if free_NK is None else free_NK.copy()
    open_N = np.flatnonzero((linear_NK > 0).any(axis=1))  # the others: z = 0
    if roots is None and len(open_N) > 1:
        roots = rooted(quadratic_KK)
    for _ in range(exchanges if roots is None or roots.mostly_independent() else 0):
        if not len(open_N):
            break
        trial_NK = _on_free(matrix_KK, linear_NK[open_N], free_NK[open_N])
        slope_NK = trial_NK @ matrix_KK - linear_NK[open_N]
        signed_NK = np.where(free_NK[open_N], trial_NK, slope_NK)
        wrong_NK = signed_NK < -_allowed(trial_NK)
        done_N = ~wrong_NK.any(axis=1)
        values_NK[open_N[done_N]] = np.maximum(trial_NK[done_N], 0.0)
        open_N = open_N[~done_N]
        free_NK[open_N] ^= wrong_NK[~done_N]
    if not len(open_N):
        return Solution(values_NK)
    roots = roots or rooted(quadratic_KK)
    values_NK[open_N], settled = _by_additions(roots, linear_NK[open_N], additions)
    if settled:
        return Solution(values_NK)
    return Solution(values_NK, "the active set did not settle; used the point it started from")


class Roots(NamedTuple):
    """R with A = R'R, of as many rows as there are independent gradients, and its inverse's rows.

    What rounding left of the others, or made negative, is no part of it.
    """

    values_K: Floats  # A's eigenvalues, ascending
    rows_RK: Floats
    inverse_KR: Floats

    def mostly_independent(self) -> bool:
        """Return whether nine in ten gradients have a part that float32 would not lose."""
        return bool((self.values_K > 1e-5 * self.values_K[-1]).mean() >= 0.9)


def rooted(quadratic_KK: Floats) -> Roots:
    values_K, basis_KK = np.linalg.eigh(quadratic_KK)
    kept_K = values_K > RIDGE * len(values_K) * values_K[-1]
    roots_R, basis_KR = np.sqrt(values_K[kept_K]), basis_KK[:, kept_K]
    return Roots(values_K, np.ascontiguousarray((basis_KR * roots_R).T), basis_KR / roots_R)


def _allowed(values_NK: Floats) -> Floats:
    """Return by how much a sign may be wrong: never more than a millionth."""
    largest_N1 = 1.0 + np.abs(values_NK).max(axis=1, keepdims=True)
    allowed_N1: Floats = TOLERANCE * np.minimum(largest_N1, 1e6)
    return allowed_N1


def _by_additions(roots: Roots, linear_NK: Floats, rounds: int | None) -> tuple[Floats, bool]:
    """Return the minima, 0 for those not found within the rounds, and whether all were.

    With A = R'R and b = R'c it is the least-squares problem |R z - c|.
    """
    from scipy.optimize import nnls  # 0.3 s to import, and most runs never come here

    rounds = 10 * len(roots.values_K) if rounds is None else rounds
    solved_NK, settled = np.zeros_like(linear_NK), True
    for solved_K, goal_R in zip(solved_NK, linear_NK @ roots.inverse_KR, strict=True):
        try:
            solved_K[:] = nnls(roots.rows_RK, goal_R, maxiter=rounds)[0]
        except RuntimeError:  # out of rounds: the caller says so
            settled = False
    return solved_NK, settled


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
    roots = rooted(cosines_KK) if len(given_NK) > 1 else None
    cancelling_K = None if roots is None else _cancelling(roots)
    if cancelling_K is not None:  # a multiple of it is above any u
        times_N1 = (given_NK / cancelling_K).max(axis=1, keepdims=True)
        return Solution(np.maximum(given_NK, times_N1 * cancelling_K))
    solved = nonnegative(cosines_KK, -given_NK @ cosines_KK, roots=roots)
    return Solution(given_NK + solved.values, solved.trouble)


def _cancelling(roots: Roots) -> Floats | None:
    """Return weights >= 1 with which the unit gradients add up to 0; None where there are none.

    There are where every update but 0 conflicts with a gradient (Stiemke's lemma).
    """
    rows_RK = roots.rows_RK
    rank, tasks = rows_RK.shape
    if not 0 < rank < tasks:
        return None
    added_1K, settled = _by_additions(roots, -(rows_RK.T @ rows_RK.sum(axis=1))[None], None)
    weights_K: Floats = 1.0 + added_1K[0]
    left = float(np.linalg.norm(rows_RK @ weights_K))
    return weights_K if settled and left <= 1e-13 * weights_K.sum() else None


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
