"""Aligned-MTL: weights from the Gramian against the singular value decomposition of the rows."""

import pytest
import torch

from polytask.balance import AlignedMTL
from polytask.errors import UsageError

MODES = ("min", "median", "rmse")


def on_rows(rows_KP: torch.Tensor, mode: str, preference_K: torch.Tensor) -> torch.Tensor:
    """Return the update of the source: the rows with equal singular values, weighted, added."""
    left_KR, sigma_R, right_RP = torch.linalg.svd(rows_KP, full_matrices=False)
    kept_R = sigma_R**2 > sigma_R[0] ** 2 * len(rows_KP) * torch.finfo(torch.float32).eps
    if not kept_R.any():
        return preference_K @ rows_KP
    kept = sigma_R[kept_R]
    scale = {"min": kept.min(), "median": kept.median(), "rmse": (kept**2).mean().sqrt()}[mode]
    return preference_K @ (scale * left_KR[:, kept_R] @ right_RP[kept_R])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preference", [None, (0.5, 2.0, 0.0, 1.0)])
def test_it_is_the_sources_algorithm(rows_KP, signal, mode, preference):
    if preference is not None:
        preference = preference[: len(rows_KP)]
    method = AlignedMTL(mode, preference)
    weights_K = method(signal(rows_KP), method.start(len(rows_KP))).weights_K
    given_K = rows_KP.new_tensor(preference or [1.0] * len(rows_KP))
    expected_P = on_rows(rows_KP, mode, given_K)
    scale = float(rows_KP.abs().max()) or 1.0
    assert bool(torch.isfinite(weights_K).all())
    assert float((weights_K @ rows_KP - expected_P).abs().max()) <= 1e-10 * scale


@pytest.mark.parametrize("mode", MODES)
def test_orthogonal_gradients_by_hand(signal, mode):
    # Rows of norms 1, 2 and 7 at right angles: every task gets the common norm s.
    rows_KP = torch.diag(torch.tensor([2.0, 1, 7], dtype=torch.float64))
    scale = {"min": 1.0, "median": 2.0, "rmse": (54 / 3) ** 0.5}[mode]
    weights_K = AlignedMTL(mode)(signal(rows_KP), {}).weights_K
    expected_K = torch.tensor([scale / 2, scale, scale / 7], dtype=torch.float64)
    torch.testing.assert_close(weights_K, expected_K, rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_tasks_may_stand_in_any_order(signal, mode):
    generator = torch.Generator().manual_seed(1)
    rows_KP = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 2, 1])
    one_K = AlignedMTL(mode)(signal(rows_KP), {}).weights_K
    other_K = AlignedMTL(mode)(signal(rows_KP[order]), {}).weights_K
    torch.testing.assert_close(one_K[order], other_K, rtol=1e-10, atol=1e-12)


def test_a_gramian_of_zeros_gives_the_preference(signal):
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    assert AlignedMTL()(signal(zeros), {}).weights_K.tolist() == [1.0, 1.0, 1.0]
    weighted = AlignedMTL(preference=(1.0, 0.0, 3.0))
    assert weighted(signal(zeros), {}).weights_K.tolist() == [1.0, 0.0, 3.0]


def test_absent_tasks_take_their_preference_with_them(signal):
    rows_KP = torch.eye(2, dtype=torch.float64)
    weights_K = AlignedMTL(preference=(5.0, 2.0, 3.0))(signal(rows_KP, at=(0, 2)), {}).weights_K
    torch.testing.assert_close(weights_K, torch.tensor([5.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale_mode": "max"}, "scale_mode is 'max'; give 'min', 'median' or 'rmse'"),
        ({"preference": (1.0, -1.0)}, "give finite numbers >= 0"),
        ({"preference": (1.0, float("nan"))}, "give finite numbers >= 0"),
        ({"preference": (0.0, 0.0)}, "not all 0"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        AlignedMTL(**settings)


def test_a_preference_for_other_tasks_is_refused():
    with pytest.raises(UsageError, match="preference has 2 numbers for 3 tasks; give one per task"):
        AlignedMTL(preference=(1.0, 2.0)).start(3)
