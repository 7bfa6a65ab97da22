"""Where TorchJD is installed: its weights and ours on the same Gramians."""

import pytest
import torch

from polytask.balance import AlignedMTL, PCGrad

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl_agrees_with_torchjd(rows_KP, signal, mode):
    ours_K = AlignedMTL(mode)(signal(rows_KP), {}).weights_K
    ones_K = torch.ones(len(rows_KP), dtype=torch.float64)
    theirs_K = aggregation.AlignedMTLWeighting(ones_K, scale_mode=mode)(rows_KP @ rows_KP.T)
    scale = float(rows_KP.abs().max())
    torch.testing.assert_close(ours_K @ rows_KP, theirs_K @ rows_KP, rtol=1e-8, atol=1e-10 * scale)


def test_pcgrad_agrees_with_torchjd_on_two_tasks(signal):
    # With more tasks each follows its own random order.
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows_KP = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        ours_K = PCGrad()(signal(rows_KP), {}).weights_K
        theirs_K = aggregation.PCGradWeighting()(rows_KP @ rows_KP.T)
        torch.testing.assert_close(ours_K, theirs_K, rtol=1e-10, atol=1e-12)
