"""IMTL-G and ConFIG: equal products and equal cosines, and where there are none."""

import pytest
import torch

from polytask.balance import IMTLG, ConFIG


def problem(seed: int, tasks: int = 4, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale_K1 = torch.exp(spread * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
    return torch.randn(tasks, tasks + 2, generator=generator, dtype=torch.float64) * scale_K1


@pytest.mark.parametrize("seed", range(10))
def test_imtl_g_is_the_sources_closed_form_but_for_the_sign(signal, seed):
    # alpha_2.. = g_1 U' (D U')^-1, D = g_1 - g_k, U = u_1 - u_k: section 3.1 of the source.
    rows_KP = problem(seed)
    units_KP = rows_KP / rows_KP.norm(dim=1, keepdim=True)
    far_RP, turn_RP = rows_KP[:1] - rows_KP[1:], units_KP[:1] - units_KP[1:]
    rest_R = torch.linalg.solve((far_RP @ turn_RP.T).T, turn_RP @ rows_KP[0])
    source_K = torch.cat([1 - rest_R.sum()[None], rest_R])
    weights_K = IMTLG()(signal(rows_KP), {}).weights_K
    sign = torch.sign(units_KP[0] @ (source_K @ rows_KP))
    torch.testing.assert_close(weights_K, sign * source_K, rtol=1e-8, atol=1e-10)


def test_imtl_g_never_climbs_on_every_task(signal):
    """The source's own weights do, for some of these."""
    turned = 0
    for seed in range(60):
        rows_KP = problem(seed, tasks=3, spread=2.0)
        weights_K = IMTLG()(signal(rows_KP), {}).weights_K
        product_K = rows_KP @ (weights_K @ rows_KP) / rows_KP.norm(dim=1)
        assert float(product_K.min()) > 0
        assert float(product_K.max() / product_K.min()) == pytest.approx(1, rel=1e-6)
        assert abs(float(weights_K.sum())) == pytest.approx(1)
        turned += int(weights_K.sum() < 0)
    assert turned > 0


@pytest.mark.parametrize("preference", [None, (1.0, 2.0, 0.5, 3.0)])
@pytest.mark.parametrize("seed", range(5))
def test_config_is_the_sources_formula_on_the_rows(signal, seed, preference):
    rows_KP = problem(seed)
    units_KP = rows_KP / rows_KP.norm(dim=1, keepdim=True)
    aims_K = torch.tensor(preference or (1.0,) * 4, dtype=torch.float64)
    best_P = torch.linalg.pinv(units_KP) @ aims_K
    best_P = best_P / best_P.norm()
    method = ConFIG(preference)
    update_P = method(signal(rows_KP), method.start(4)).weights_K @ rows_KP
    torch.testing.assert_close(update_P, (rows_KP @ best_P).sum() * best_P, rtol=1e-9, atol=1e-10)


def test_config_with_dependent_gradients_is_the_formula_too(signal):
    rows_KP = torch.tensor([[1.0, 0, 1], [0, 1, -1], [1, 1, 0], [2, -1, 3]], dtype=torch.float64)
    units_KP = rows_KP / rows_KP.norm(dim=1, keepdim=True)
    best_P = torch.linalg.pinv(units_KP, rtol=1e-9).sum(1)
    best_P = best_P / best_P.norm()
    update_P = ConFIG()(signal(rows_KP), {}).weights_K @ rows_KP
    torch.testing.assert_close(update_P, (rows_KP @ best_P).sum() * best_P, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [IMTLG(), ConFIG()], ids=repr)
def test_opposed_gradients_get_no_update_and_a_note(signal, method):
    update = method(signal(torch.tensor([[1.0, 2], [-3, -6]], dtype=torch.float64)), {})
    assert update.weights_K.tolist() == [0.0, 0.0]
    assert "used no update instead" in update.note


@pytest.mark.parametrize("method", [IMTLG(), ConFIG()], ids=repr)
def test_a_task_without_gradient_leaves_the_others_alone(signal, method):
    rows_KP = problem(0)
    with_zero_KP = torch.cat([rows_KP, torch.zeros_like(rows_KP[:1])])
    update = method(signal(with_zero_KP), {})
    torch.testing.assert_close(update.weights_K[:4], method(signal(rows_KP), {}).weights_K)
    assert float(update.weights_K[4]) == 0.0
    assert update.note is None
