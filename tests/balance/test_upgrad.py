"""UPGrad and DualProj: against projections of the rows themselves, by another solver."""

import pytest
import torch
from scipy.optimize import nnls

from polytask.balance import DualProj, UPGrad


def projected(vector_P: torch.Tensor, rows_KP: torch.Tensor) -> torch.Tensor:
    """Return the nearest vector that has no negative product with any row."""
    norms_K = rows_KP.norm(dim=1)
    length = float(vector_P.norm())
    some_KP = rows_KP[norms_K > 0] / norms_K[norms_K > 0, None]
    if not len(some_KP) or not length:
        return vector_P
    parts_K = torch.from_numpy(nnls(some_KP.T.numpy(), -(vector_P / length).numpy())[0])
    return vector_P + length * parts_K @ some_KP


@pytest.mark.parametrize("preference", [None, (0.5, 2.0, 0.0, 1.0)])
def test_upgrad_is_the_mean_of_the_projections(rows_KP, signal, preference):
    preference = preference and (preference[: len(rows_KP)])
    weights_K = UPGrad(preference)(signal(rows_KP), {}).weights_K
    each_K = preference or [1 / len(rows_KP)] * len(rows_KP)
    expected_P = sum(
        part * projected(row_P, rows_KP) for part, row_P in zip(each_K, rows_KP, strict=True)
    )
    scale = float(rows_KP.norm(dim=1).max())
    assert float((weights_K @ rows_KP - expected_P).norm()) <= 1e-8 * scale


@pytest.mark.parametrize("preference", [None, (0.5, 2.0, 0.0, 1.0)])
def test_dualproj_is_the_projection_of_the_mean(rows_KP, signal, preference):
    preference = preference and (preference[: len(rows_KP)])
    weights_K = DualProj(preference)(signal(rows_KP), {}).weights_K
    each_K = rows_KP.new_tensor(preference or [1 / len(rows_KP)] * len(rows_KP))
    expected_P = projected(each_K @ rows_KP, rows_KP)
    scale = float(rows_KP.norm(dim=1).max())
    assert float((weights_K @ rows_KP - expected_P).norm()) <= 1e-8 * scale


def test_two_tasks_in_conflict_by_hand(signal):
    # g1 = (1, 0) without its part along g2 is (1/2, 1/2); g2 = (-1, 1) without g1's is (0, 1).
    rows_KP = torch.tensor([[1.0, 0], [-1, 1]], dtype=torch.float64)
    assert (UPGrad()(signal(rows_KP), {}).weights_K @ rows_KP).tolist() == pytest.approx(
        [0.25, 0.75]
    )
    # The mean, (0, 1/2), conflicts with neither.
    assert (DualProj()(signal(rows_KP), {}).weights_K @ rows_KP).tolist() == pytest.approx(
        [0.0, 0.5]
    )


def test_upgrad_grows_at_most_linearly_with_one_gradient(signal):
    rows_KP = torch.randn(4, 7, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    updates = []
    for factor in (1.0, 2.0, 3.0):
        scaled_KP = rows_KP.clone()
        scaled_KP[2] *= factor
        updates.append(UPGrad()(signal(scaled_KP), {}).weights_K @ scaled_KP)
    torch.testing.assert_close(updates[2] - updates[1], updates[1] - updates[0])
