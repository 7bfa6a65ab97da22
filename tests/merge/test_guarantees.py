"""What every data-free method of the catalog promises, tried on all of them."""

import itertools

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
    Place,
    Surveyor,
    TallMasks,
    TaskArithmetic,
)
from polytask.merge.base import GRAIN

ROWS = [
    row for row in METHODS
    if row.room == "merge" and isinstance(target := row.load(), type) and issubclass(target, Merge)
]  # fmt: skip
FREE = [row.load()() for row in ROWS]
MORE = [TIES(over="tensor"), TIES(1.0), DareTies(over="tensor"), DareTies(density=1.0), SLERP(0.3)]
ELEMENTWISE = [method for method in (*FREE, *MORE) if method.reach == "elements"]


def models(method, shape=(40, 31), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    base_P = torch.randn(shape, generator=generator, dtype=dtype)
    count = method.most or 4
    tau_MP = 0.1 * torch.randn((count, *shape), generator=generator, dtype=dtype)
    return base_P, base_P + tau_MP


def hard(method):
    """Yield a word, a base and tuned models on which methods go wrong."""
    base_P, tuned_MP = models(method)
    tau_MP = tuned_MP - base_P
    yield "random", base_P, tuned_MP
    yield "equal sizes", base_P.round(), base_P.round() + (tau_MP * 10).round()
    yield (
        "opposed",
        base_P,
        base_P + tau_MP[:1] * (-1.0) ** torch.arange(len(tau_MP))[:, None, None],
    )
    yield "unchanged", base_P, base_P.expand_as(tau_MP)
    yield "zero", base_P * 0, tau_MP * 0
    yield "all negative", -base_P.abs(), -base_P.abs() - tau_MP.abs()
    yield "tiny", base_P * 1e-10, tuned_MP * 1e-10
    yield "huge", base_P * 1e10, tuned_MP * 1e10
    scales = torch.logspace(-10, 10, len(tau_MP))[:, None, None]
    yield "unlike", base_P, base_P + tau_MP * scales
    yield "rank one", base_P, base_P + tau_MP[:, :, :1] * tau_MP[:, :1]


def streamed(method, tensors, cuts=(1,)):
    """Return every tensor merged, given to the method in pieces of so many grains, as in files.

    tensors: name -> (base, tuned). cuts: sizes of the pieces in grains, in turn.
    """
    dtype = torch.promote_types(next(iter(tensors.values()))[0].dtype, method.dtype)

    def pieces(name):
        base_P, tuned_MP = (x.to(dtype) for x in tensors[name])
        shape = tuple(base_P.shape)
        base_P, tuned_MP = base_P.reshape(-1), tuned_MP.reshape(len(tuned_MP), -1)
        start = 0
        for cut in itertools.cycle(cuts):
            piece = slice(start, start + cut * GRAIN)
            yield base_P[piece], tuned_MP[:, piece], Place(name, start, shape)
            start = piece.stop
            if start >= base_P.numel():
                return

    def surveyed(names):
        state = {}
        if isinstance(method, Surveyor):
            state = method.begin(len(next(iter(tensors.values()))[1]), dtype)
            while not method.settled(state):
                sums = method.blank(state)
                for name in names:
                    for base_P, tuned_MP, at in pieces(name):
                        method.look(base_P, tuned_MP, at, state, sums)
                state = method.settle(state, sums)
        return state

    over_model = isinstance(method, Surveyor) and method.over == "model"
    state = surveyed(tensors) if over_model else {}
    merged = {}
    for name, (base_P, _) in tensors.items():
        own = state if over_model else surveyed([name])
        parts = [method.piece(*piece, own) for piece in pieces(name)]
        merged[name] = torch.cat(parts).reshape(base_P.shape)
    return merged


def test_every_row_of_the_room_that_merges_tensors_is_tried():
    assert {type(method) for method in FREE} >= {
        Average, TaskArithmetic, TIES, DARE, DareTies, Breadcrumbs, PCB, SLERP, ModelStock,
        TallMasks, Consensus, TSVM, IsoC, IsoCTS,
    }  # fmt: skip


@pytest.mark.parametrize("method", FREE, ids=repr)
def test_hard_inputs_give_finite_values_and_the_inputs_stay_as_they_were(method):
    for word, base_P, tuned_MP in hard(method):
        before = base_P.clone(), tuned_MP.clone()
        merged_P = method(base_P, tuned_MP, "layer")
        assert bool(merged_P.isfinite().all()), word
        assert merged_P.shape == base_P.shape
        assert merged_P.dtype == base_P.dtype
        assert torch.equal(merged_P, method(base_P, tuned_MP, "layer")), word
        assert torch.equal(base_P, before[0])
        assert torch.equal(tuned_MP, before[1])


@pytest.mark.parametrize("method", [m for m in FREE if m.order_free], ids=repr)
def test_the_order_of_the_models_does_not_matter(method):
    for word, base_P, tuned_MP in hard(method):
        merged_P = method(base_P, tuned_MP)
        for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
            other_P = method(base_P, tuned_MP[order])
            if method.reach == "elements":
                assert torch.equal(other_P, merged_P), word
            else:  # a solver's rounding, which the smallest directions kept may magnify
                unit = float((tuned_MP - base_P).norm()) + float(base_P.norm()) * 1e-3
                assert float((other_P - merged_P).norm()) <= 1e-3 * unit, word


@pytest.mark.parametrize("method", [m for m in FREE if not m.order_free], ids=repr)
def test_a_method_that_minds_the_order_does(method):
    method = SLERP(0.3) if method == SLERP() else method
    base_P, tuned_MP = models(method)
    assert not torch.equal(method(base_P, tuned_MP.flip(0)), method(base_P, tuned_MP))


@pytest.mark.parametrize("method", ELEMENTWISE, ids=repr)
def test_pieces_give_the_whole_to_the_last_bit(method):
    base_P, tuned_MP = models(method, (2 * GRAIN + GRAIN // 2 + 77,))
    whole_P = streamed(method, {"layer": (base_P, tuned_MP)}, (3,))["layer"]
    assert torch.equal(method(base_P, tuned_MP, "layer"), whole_P.to(torch.float32))
    for cuts in ((1,), (2, 1)):
        pieces_P = streamed(method, {"layer": (base_P, tuned_MP)}, cuts)["layer"]
        assert torch.equal(pieces_P, whole_P)


@pytest.mark.parametrize("method", ELEMENTWISE, ids=repr)
def test_the_order_of_the_tensors_does_not_matter(method):
    """Of one model: tensors of several sizes, one without shape, one that nobody changed."""
    tensors = {
        str(shape): models(method, shape, seed)
        for seed, shape in enumerate([(GRAIN + 5,), (), (7, 3), (1,), (130, 140)])
    }
    base_P, tuned_MP = tensors["(7, 3)"]
    tensors["(7, 3)"] = base_P, base_P.expand_as(tuned_MP).clone()
    merged = streamed(method, tensors)
    again = streamed(method, dict(reversed(tensors.items())))
    for name, merged_P in merged.items():
        assert torch.equal(merged_P, again[name])


@pytest.mark.parametrize("method", [TIES(), TIES(1.0), PCB()], ids=repr)
def test_what_goes_over_the_model_is_as_if_the_model_were_one_tensor(method):
    shapes = [(300,), (41, 7), (1,), (90, 11)]
    tensors = {str(i): models(method, shape, i) for i, shape in enumerate(shapes)}
    tensors["1"] = tensors["1"][0], tensors["1"][0] + 50 * (tensors["1"][1] - tensors["1"][0])
    merged = streamed(method, tensors)
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "method", [m for m in ELEMENTWISE if not isinstance(m, Surveyor)], ids=repr
)
def test_what_is_not_finite_in_one_model_is_not_finite_in_the_result(method, value):
    """Whatever the method leaves out: the engine looks for it there."""
    base_P, tuned_MP = models(method, (200,))
    for row in range(len(tuned_MP) + method.needs_base):
        base, tuned = base_P.clone(), tuned_MP.clone()
        (base if row == len(tuned) else tuned[row])[:] = value
        merged_P = method.piece(base, tuned, Place("w", 0, (200,)), {})
        assert not bool(merged_P.isfinite().any())


@pytest.mark.parametrize("method", FREE, ids=repr)
def test_a_tensor_without_elements_or_without_a_shape_is_merged_too(method):
    count = method.most or 3
    assert method(torch.zeros(0, 4), torch.zeros(count, 0, 4)).shape == (0, 4)
    merged_P = method(torch.tensor(2.0), torch.full((count,), 3.0))
    assert merged_P.shape == ()
    assert bool(merged_P.isfinite())


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
