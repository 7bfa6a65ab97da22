"""Answers known without computing: equal models, one model, ends of a setting; and refusals."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.merge import (
    DARE,
    PCB,
    SLERP,
    TIES,
    TSVM,
    Average,
    Breadcrumbs,
    Consensus,
    DareTies,
    IsoC,
    IsoCTS,
    ModelStock,
    TallMasks,
    TaskArithmetic,
    average,
    breadcrumbs,
    consensus,
    dare_ties,
    iso_c,
    iso_cts,
    model_stock,
    pcb,
    slerp,
    tall_masks,
    task_arithmetic,
    ties,
    tsv_m,
)

SHAPE = (12, 20)


@pytest.fixture(params=[1e-30, 1e-10, 1e-3, 1.0, 1e10])
def equal_models(request):
    """A base, a task vector of the given size beside it, and three times the model."""
    generator = torch.Generator().manual_seed(4)
    base_P = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    tau_P = request.param * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    # The base is as small as the change where that would be lost beside it.
    base_P = base_P * min(1.0, request.param * 1e6)
    return base_P, torch.stack([base_P + tau_P] * 3), request.param


def top(tau_P, share):
    least = tau_P.abs().flatten().sort(descending=True).values[round(share * tau_P.numel()) - 1]
    return tau_P * (tau_P.abs() >= least)


def close(out_P, wanted_P, unit):
    torch.testing.assert_close(out_P, wanted_P, rtol=1e-9, atol=1e-9 * unit)


def test_equal_models_return_themselves(equal_models):
    """Also where their change is far below what others take for a length worth dividing by."""
    base_P, tuned_MP, _ = equal_models
    for dtype in (torch.float32, torch.bfloat16):
        model_P = tuned_MP[0].to(dtype)
        same_MP = torch.stack([model_P] * 3)
        assert torch.equal(average(same_MP), model_P)
        assert torch.equal(average(same_MP, (0.2, 0.3, 0.5)), model_P)
        assert torch.equal(model_stock(base_P.to(dtype), same_MP), model_P)
        for t in (0.0, 0.3, 0.5, 1.0):
            assert torch.equal(slerp(same_MP[:2], t), model_P)


def test_equal_models_give_the_part_of_their_change_that_is_kept(equal_models):
    base_P, tuned_MP, unit = equal_models
    tau_P = tuned_MP[0] - base_P
    close(task_arithmetic(base_P, tuned_MP, 0.5), base_P + 1.5 * tau_P, unit)
    close(ties(base_P, tuned_MP, 0.25), base_P + top(tau_P, 0.25), unit)
    close(ties(base_P, tuned_MP, 1.0, 2.0), base_P + 2 * tau_P, unit)
    kept_P = top(tau_P, 0.3) - top(tau_P, 0.1)
    close(breadcrumbs(base_P, tuned_MP, 0.2, 0.1, 1.0), base_P + 3 * kept_P, unit)
    close(TallMasks(1)(base_P, tuned_MP), base_P + 3 * tau_P, unit)
    close(consensus(base_P, tuned_MP, 3, 0.4, 1.0), base_P + 3 * tau_P, unit)
    close(consensus(base_P, tuned_MP, 1, 0.6, 1.0), base_P, unit)  # |tau| < 0.6 * |2 tau|
    u, s, vh = torch.linalg.svd(tau_P, full_matrices=False)
    close(tsv_m(base_P, tuned_MP), base_P + u[:, :4] * s[:4] @ vh[:4], unit)
    close(iso_c(base_P, tuned_MP), base_P + 3 * s.mean() * u @ vh, unit)
    # Of 12 directions 10 are common, less one so that three tasks share evenly: 9, and 1 each;
    # all three take the same one, which the common part leaves.
    own = s[9].expand(3).sum()
    length = (3 * s[:9].sum() + own) / 12
    close(iso_cts(base_P, tuned_MP), base_P + length * u[:, :10] @ vh[:10], unit)


def test_equal_models_make_pcb_keep_their_largest_changes():
    """All scores grow with size, so the top tenth is kept, and the mean of equals is the value."""
    tau_P = torch.arange(1.0, 41.0, dtype=torch.float64) / 7 * (-1.0) ** torch.arange(40)
    merged_P = pcb(torch.zeros(40, dtype=torch.float64), torch.stack([tau_P] * 2), 0.1)
    # The largest is clamped to the one before, as in the authors' code; the fourth is the bottom.
    assert merged_P.nonzero().flatten().tolist() == [37, 38, 39]
    torch.testing.assert_close(merged_P[[37, 38]], tau_P[[37, 38]])
    torch.testing.assert_close(merged_P[39], -tau_P[38])


def test_of_one_model_the_average_is_the_model_and_ties_trims_it():
    generator = torch.Generator().manual_seed(5)
    base_P, model_P = torch.randn((2, *SHAPE), generator=generator)
    assert torch.equal(average(model_P[None]), model_P)
    merged_P = ties(base_P, model_P[None], 0.5)
    torch.testing.assert_close(merged_P, base_P + top(model_P - base_P, 0.5))
    single_P = tsv_m(base_P, model_P[None])
    torch.testing.assert_close(single_P, model_P, rtol=1e-4, atol=1e-5)


def test_slerp_ends_at_its_models_and_reads_both_ways():
    generator = torch.Generator().manual_seed(6)
    pair_MP = torch.randn((2, 500), generator=generator)
    assert torch.equal(slerp(pair_MP, 0.0), pair_MP[0])
    assert torch.equal(slerp(pair_MP, 1.0), pair_MP[1])
    assert torch.equal(slerp(pair_MP, 0.3), slerp(pair_MP.flip(0), 0.7))
    unit_MP = (pair_MP / pair_MP.norm(dim=1, keepdim=True)).to(torch.float64)
    assert abs(float(slerp(unit_MP, 0.3).norm()) - 1) < 1e-6  # the arc keeps the length


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_is_straight_where_the_arc_is_too_flat(sign):
    line_MP = torch.tensor([[1.0, 0.0], [1.0, 0.02]], dtype=torch.float64)  # cos 0.9998
    line_MP[1] *= sign
    torch.testing.assert_close(slerp(line_MP, 0.25), 0.75 * line_MP[0] + 0.25 * line_MP[1])
    arc_MP = torch.tensor([[1.0, 0.0], [1.0, 0.04]], dtype=torch.float64)  # cos 0.9992
    arc_MP[1] *= sign
    assert not torch.allclose(slerp(arc_MP, 0.25), 0.75 * arc_MP[0] + 0.25 * arc_MP[1], rtol=1e-6)
    empty_MP = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(slerp(empty_MP, 0.25), 0.25 * empty_MP[1])


def test_model_stock_stays_at_the_base_where_models_disagree():
    base_P = torch.ones(4)
    tau_P = torch.tensor([1.0, -2.0, 3.0, 0.5])
    right_angles_MP = base_P + torch.eye(4)
    assert torch.equal(model_stock(base_P, right_angles_MP), base_P)
    assert torch.equal(model_stock(base_P, torch.stack([base_P + tau_P, base_P - tau_P])), base_P)
    # 60 degrees: t = 2 cos / (1 + cos) = 2/3 of the way to the average
    pair_MP = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    merged_P = model_stock(torch.zeros(2, dtype=torch.float64), pair_MP)
    torch.testing.assert_close(merged_P, 2 / 3 * pair_MP.mean(0))


def test_ties_of_the_paper_s_figure():
    """Figure 2 by hand: trim to the largest half, elect by sum, mean of those that agree."""
    tau_MP = torch.tensor([[3.0, 0.1, -2.0, 0.2], [0.1, 1.0, 3.0, -0.2], [2.0, -3.0, 0.1, 0.0]])
    # trimmed: [3, 0, -2, 0], [0, 1, 3, 0], [2, -3, 0, 0]; signs +, -, +, majority +
    assert ties(torch.zeros(4), tau_MP, 0.5).tolist() == [2.5, -3.0, 3.0, 0.0]


def test_an_elected_sum_of_zero_takes_the_sign_that_most_elements_have():
    tau_MP = torch.tensor([[1.0, -5.0, -4.0, 2.0], [-1.0, -5.0, -4.0, 2.0]])
    assert ties(torch.zeros(4), tau_MP, 1.0).tolist() == [-1.0, -5.0, -4.0, 2.0]
    assert ties(torch.zeros(4), -tau_MP, 1.0).tolist() == [1.0, 5.0, 4.0, -2.0]
    assert ties(torch.zeros(4), tau_MP * torch.tensor([1.0, 0, 0, 1.0]), 1.0)[0] == 1.0
    # As many + as -: nobody is elected.
    assert ties(torch.zeros(1), torch.tensor([[1.0], [-1.0]]), 1.0).tolist() == [0.0]


def test_the_majority_is_that_of_what_trimming_left():
    small = [-0.1] * 5
    tau_MP = torch.tensor([[5.0, 4.0, 3.0, *small], [5.0, 4.0, -3.0, *small]])
    merged_P = ties(torch.zeros(8), tau_MP, 3 / 8)
    assert merged_P.tolist() == [5.0, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_masks_serve_each_task_with_what_it_needs():
    tau_MP = torch.tensor([[4.0, 0.0, 1.0, 1.0], [0.0, 4.0, 1.0, -1.0]])
    assert tall_masks(tau_MP).tolist() == [[True, False, True, True], [False, True, True, True]]
    served = [TallMasks(task)(torch.ones(4), 1 + tau_MP).tolist() for task in (0, 1)]
    assert served == [[5.0, 1.0, 3.0, 1.0], [1.0, 5.0, 3.0, 1.0]]
    assert consensus(torch.ones(4), 1 + tau_MP, scale=1.0).tolist() == [1.0, 1.0, 3.0, 1.0]


def test_functions_are_their_methods():
    generator = torch.Generator().manual_seed(7)
    base_P = torch.randn(SHAPE, generator=generator)
    tuned_MP = base_P + torch.randn((3, *SHAPE), generator=generator)
    for function, method in [
        (task_arithmetic, TaskArithmetic()), (ties, TIES()), (dare_ties, DareTies()),
        (breadcrumbs, Breadcrumbs()), (pcb, PCB()), (model_stock, ModelStock()),
        (consensus, Consensus()), (tsv_m, TSVM()), (iso_c, IsoC()), (iso_cts, IsoCTS()),
    ]:  # fmt: skip
        assert torch.equal(function(base_P, tuned_MP), method(base_P, tuned_MP))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Average((1.0, -1.0)), r"Average: the weights \(1.0, -1.0\) sum to 0"),
        (lambda: TIES(0.0), r"TIES: density is 0.0; give a share in \(0, 1\]"),
        (lambda: TIES(20), r"TIES: density is 20; give a share in \(0, 1\]"),
        (lambda: TIES(scale=float("nan")), "TIES: scale is nan; give a finite number"),
        (lambda: TIES(weights=(0.0, 0.0)), "TIES: every weight is 0"),
        (lambda: TIES(weights=(float("inf"),)), "TIES: a weight is inf"),
        (lambda: DARE(1.0), r"DARE: drop is 1.0; give a share in \[0, 1\)"),
        (lambda: DARE(seed=-1), "DARE: seed is -1; give an integer >= 0"),
        (lambda: DareTies(-0.1), r"DareTies: drop is -0.1; give a share in \[0, 1\)"),
        (lambda: Breadcrumbs(0.8, 0.3), "Breadcrumbs: beta 0.8 \\+ gamma 0.3 is more than all"),
        (lambda: PCB(0.0), r"PCB: ratio is 0.0; give a share in \(0, 1\]"),
        (lambda: SLERP(1.5), "SLERP: t is 1.5; give a number from 0 to 1"),
        (lambda: TallMasks(-1), "TallMasks: task is -1; give a position >= 0"),
        (lambda: TallMasks(threshold=-1), "TallMasks: threshold is -1; give a number >= 0"),
        (lambda: Consensus(-1), "Consensus: agree is -1; give a number of tasks >= 0"),
        (lambda: IsoCTS(common=1.1), r"IsoCTS: common is 1.1; give a share in \[0, 1\]"),
        (
            lambda: TallMasks(3)(torch.zeros(2), torch.zeros(3, 2)),
            "TallMasks: task is 3, and 3 models came; give a position from 0 to 2",
        ),
        (
            lambda: SLERP()(None, torch.zeros(3, 2)),
            "SLERP merges exactly 2 tuned models; 3 came",
        ),
    ],
)
def test_a_wrong_setting_is_answered_with_what_to_do(wrong, said):
    with pytest.raises(UsageError, match=said):
        wrong()
