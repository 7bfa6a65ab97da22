"""What every data-free method of the catalog promises, tried on all of them."""

import pytest
import torch

from polytask.catalog import METHODS
from polytask.errors import RunError, UsageError
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
    Merge,
    ModelStock,
    TallMasks,
    TaskArithmetic,
    prepare,
)
from polytask.testing import check_merge

ROWS = [
    row for row in METHODS
    if row.room == "merge" and isinstance(target := row.load(), type) and issubclass(target, Merge)
]  # fmt: skip
FREE = [row.load()() for row in ROWS]
MORE = [
    TIES(over="tensor"), TIES(1.0), DareTies(over="tensor"), DareTies(density=1.0), SLERP(0.3),
    TaskArithmetic(0.5, (1.0, 2.0, -1.0)), Average((2.0, 1.0)), Breadcrumbs(0.7, 0.3), PCB(0.9),
    TIES(0.5, 1.0, (3.0, 1.0, 1.0)), Consensus(agree=1), TallMasks(task=1), IsoCTS(common=0.5),
]  # fmt: skip


def models(method, shape=(40, 31), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    base_P = torch.randn(shape, generator=generator, dtype=dtype)
    count = method.most or 4
    tau_MP = 0.1 * torch.randn((count, *shape), generator=generator, dtype=dtype)
    return base_P, base_P + tau_MP


def test_every_row_of_the_room_that_merges_tensors_is_tried():
    assert {type(method) for method in FREE} >= {
        Average, TaskArithmetic, TIES, DARE, DareTies, Breadcrumbs, PCB, SLERP, ModelStock,
        TallMasks, Consensus, TSVM, IsoC, IsoCTS,
    }  # fmt: skip


@pytest.mark.parametrize("method", [*FREE, *MORE], ids=repr)
def test_every_method_keeps_the_contract(method):
    """Finite on hard models, in any order and any pieces, no change for no change: see there."""
    check_merge(method)


@pytest.mark.parametrize("method", [m for m in FREE if not m.order_free], ids=repr)
def test_a_method_that_minds_the_order_does(method):
    method = SLERP(0.3) if method == SLERP() else method
    base_P, tuned_MP = models(method)
    assert not torch.equal(method(base_P, tuned_MP.flip(0)), method(base_P, tuned_MP))


@pytest.mark.parametrize("method", [TIES(), TIES(1.0), PCB()], ids=repr)
def test_what_goes_over_the_model_is_as_if_the_model_were_one_tensor(method):
    shapes = [(300,), (41, 7), (1,), (90, 11)]
    tensors = {str(i): models(method, shape, i) for i, shape in enumerate(shapes)}
    tensors["1"] = tensors["1"][0], tensors["1"][0] + 50 * (tensors["1"][1] - tensors["1"][0])
    job = prepare(
        {name: base_P for name, (base_P, _) in tensors.items()},
        [{name: tuned_MP[m] for name, (_, tuned_MP) in tensors.items()} for m in range(4)],
        method,
    )
    merged, _ = job.tensors()
    whole_P = method(
        torch.cat([base_P.flatten() for base_P, _ in tensors.values()]),
        torch.cat([tuned_MP.flatten(1) for _, tuned_MP in tensors.values()], 1),
    )
    assert torch.equal(torch.cat([part_P.flatten() for part_P in merged.values()]), whole_P)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", FREE, ids=repr)
def test_16_bit_models_are_merged_in_more_and_rounded_once(method, dtype):
    base_P, tuned_MP = (x.to(dtype) for x in models(method))
    merged_P = method(base_P, tuned_MP)
    assert merged_P.dtype == dtype
    wide_P = method(base_P.to(torch.float64), tuned_MP.to(torch.float64))
    gap_P = (merged_P.to(torch.float64) - wide_P).abs()
    # Half a unit in the last place, and a hair for what float32 computes another way.
    unit_P = wide_P.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).tiny
    if not isinstance(method, PCB):  # its scores lie close, and rank otherwise in float32
        assert bool((gap_P <= 0.5 * unit_P * (1 + 1e-2) + 2e-6).all())
    assert float(gap_P.norm() / wide_P.norm()) < torch.finfo(dtype).eps


@pytest.mark.parametrize("method", FREE, ids=repr)
def test_a_value_out_of_range_raises_and_names_the_tensor(method):
    """65504 is the largest float16: methods that go beyond every model must say so."""
    base_P = torch.full((8, 8), 30000.0, dtype=torch.float16)
    tuned_MP = torch.full((method.most or 8, 8, 8), 65000.0, dtype=torch.float16)
    wide_P = method(base_P.float(), tuned_MP.float(), "layers.3.weight")
    if float(wide_P.abs().max()) < 65520:
        assert bool(method(base_P, tuned_MP, "layers.3.weight").isfinite().all())
    else:
        with pytest.raises(RunError, match=r"'layers\.3\.weight'.*out of the range of float16"):
            method(base_P, tuned_MP, "layers.3.weight")


@pytest.mark.parametrize("method", FREE, ids=repr)
def test_shapes_and_numbers_that_do_not_fit_are_refused(method):
    name = type(method).__name__
    count = method.most or 3
    with pytest.raises(UsageError, match=rf"{name}: the base has shape \(3,\), .* \(4,\)"):
        method(torch.zeros(3), torch.zeros(count, 4))
    with pytest.raises(UsageError, match=rf"{name} merges .* {method.least} tuned models; 0 came"):
        method(torch.zeros(3), torch.zeros(0, 3))
    if method.needs_base:
        with pytest.raises(UsageError, match=f"{name} needs the base model; give it"):
            method(None, torch.zeros(count, 3))
    if hasattr(method, "weights"):
        weighted = type(method)(weights=(1.0, 2.0))
        with pytest.raises(UsageError, match=f"{name}: 2 weights for 3 tuned models"):
            weighted(torch.zeros(3), torch.zeros(3, 3))
