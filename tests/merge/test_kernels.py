"""The compiled kernels give what torch gives, to the last bit, on whatever models hold.

Without kernels, as where polytask was installed without a C compiler, these tests are skipped.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import DataError, RunError
from polytask.kernels import SWITCH, missing
from polytask.merge import (
    DARE,
    SLERP,
    TIES,
    Average,
    Breadcrumbs,
    DareTies,
    Merge,
    ModelStock,
    Options,
    TaskArithmetic,
    prepare,
    stream,
)
from polytask.merge.base import GRAIN, Changes, Mixture, Sizes
from polytask.merge.kernels import Kernels, Rows, kernels
from polytask.merge.rounding import nearest
from polytask.testing import check_merge

needs_kernels = pytest.mark.skipif(bool(missing()), reason=f"no kernels: {missing()}")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BITS = {2: torch.int16, 4: torch.int32}

METHODS: dict[str, tuple[Merge, int]] = {
    "mean of 4": (Average(), 4),  # summed in float32, where all are bfloat16
    "mean of 3": (Average(), 3),
    "weighted mean": (Average((0.3, -1.7, 2.0, 0.1, 4.0)), 5),
    "task arithmetic": (TaskArithmetic(), 4),
    "task arithmetic of one": (TaskArithmetic(-1.0), 1),
    "weighted task arithmetic": (TaskArithmetic(0.7, (0.3, 1.0, -2.5)), 3),
    "SLERP": (SLERP(0.3), 2),
    "Model Stock of 2": (ModelStock(), 2),
    "Model Stock of 4": (ModelStock(), 4),
    "Model Stock of 6": (ModelStock(), 6),
    "TIES": (TIES(), 4),
    "TIES of 18": (TIES(0.5, 0.6), 18),
    "TIES that keeps all": (TIES(1.0), 3),
    "TIES, weighted, by tensor": (TIES(0.3, 0.7, (0.5, 2.0, -1.0), over="tensor"), 3),
    "DARE": (DARE(), 4),  # draws of 8 bits
    "DARE, 16 bits": (DARE(0.30078125, 1.0, (0.5, 1.5)), 2),
    "DARE, 32 bits": (DARE(0.9), 3),
    "DARE that drops none": (DARE(0.0), 2),
    "DareTies": (DareTies(), 3),
    "Breadcrumbs": (Breadcrumbs(), 4),
    "weighted Breadcrumbs": (Breadcrumbs(0.5, 0.2, 0.6, (0.5, -2.0)), 2),
}  # fmt: skip


def of_bits(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return numbers of random bits, all of them finite."""
    kind = BITS[dtype.itemsize]
    ends = torch.iinfo(kind)
    bits_P = torch.randint(ends.min, ends.max, (count,), generator=generator).to(kind)
    values_P = bits_P.view(dtype)
    return torch.where(values_P.isfinite(), values_P, torch.ones_like(values_P))


def hard(kind: str, count: int, models: int, dtype: torch.dtype) -> list[Tensor]:
    """Return a base and tuned tensors, (P,) each."""
    generator = torch.Generator().manual_seed(len(kind) + count + models)
    base_P = torch.randn(count, generator=generator)
    tau_MP = 0.1 * torch.randn(models, count, generator=generator)
    if kind == "few digits":  # everything lies on ties
        base_P, tau_MP = (base_P * 4).round() / 4, (tau_MP * 40).round() / 256
    elif kind == "zeros":  # of both signs
        base_P *= torch.randint(2, (count,), generator=generator)
        tau_MP *= torch.randint(2, (models, count), generator=generator)
        base_P = base_P.where(base_P.abs() < 0.5, torch.tensor(-0.0))
        tau_MP = tau_MP.where(tau_MP.abs() < 0.2, -base_P)
    elif kind == "tiny":  # below the normal range
        unit = float(torch.finfo(dtype).smallest_normal) / 3
        base_P, tau_MP = base_P * unit, tau_MP * unit
    elif kind == "huge":
        unit = float(torch.finfo(dtype).max) / 40
        base_P, tau_MP = base_P * unit, tau_MP * unit
    elif kind == "any":
        sizes = torch.randint(-12, 12, (models, count), generator=generator)
        tau_MP = torch.ldexp(tau_MP, sizes)
    elif kind == "equal":
        tau_MP = tau_MP[:1].expand(models, count) * 0
    else:
        assert kind == "plain"
    return [base_P.to(dtype), *(base_P + tau_MP).to(dtype)]


def merged(method: Merge, models: list[dict[str, Tensor]], options: Options) -> dict[str, Tensor]:
    base, *tuned = models
    found, _ = prepare(base if method.needs_base else None, tuned, method, options).tensors()
    return found


def outcome(method: Merge, models: list[dict[str, Tensor]], options: Options) -> object:
    """Return the bytes of every merged tensor, or what is said instead."""
    try:
        found = merged(method, models, options)
    except (RunError, DataError) as error:
        return str(error)
    return {name: value.view(torch.uint8).numpy().tobytes() for name, value in found.items()}


def both(
    monkeypatch: pytest.MonkeyPatch,
    method: Merge,
    models: list[dict[str, Tensor]],
    options: Options,
) -> tuple[object, object]:
    monkeypatch.setenv(SWITCH, "0")
    slow = outcome(method, models, options)
    monkeypatch.setenv(SWITCH, "1")
    return outcome(method, models, options), slow


SIZES = {"one": 1, "few": 7, "step": 16, "hundred": 100, "long": 3 * GRAIN + 77}


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_bit_is_that_of_torch(name, dtype, monkeypatch):
    method, count = METHODS[name]
    for kind in ("plain", "few digits", "zeros", "tiny", "huge", "any", "equal"):
        tensors = {size: hard(kind, n, count, dtype) for size, n in SIZES.items()}
        models = [{size: rows[m] for size, rows in tensors.items()} for m in range(count + 1)]
        quick, slow = both(monkeypatch, method, models, Options(chunk=GRAIN))
        assert quick == slow, kind


@needs_kernels
@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_any_bits_give_the_same(name, monkeypatch):
    method, count = METHODS[name]
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        models = [
            {"x": of_bits(GRAIN + 100, dtype, generator), "y": of_bits(9, dtype, generator)}
            for _ in range(count + 1)
        ]
        # Many sums leave the dtype's range: float32 has room for those of 16 bits.
        for kind in {dtype, torch.float32}:
            quick, slow = both(monkeypatch, method, models, Options(kind, chunk=GRAIN))
            assert quick == slow, (dtype, kind)


@needs_kernels
@pytest.mark.parametrize("name", ["mean of 4", "task arithmetic", "TIES", "DARE", "Breadcrumbs"])
@pytest.mark.parametrize("into", DTYPES, ids=str)
def test_results_of_another_dtype_are_the_same(name, into, monkeypatch):
    method, count = METHODS[name]
    for dtype in DTYPES:
        rows = hard("plain", GRAIN + 5, count, dtype)
        models = [{"x": row_P} for row_P in rows]
        quick, slow = both(monkeypatch, method, models, Options(into, chunk=GRAIN))
        assert quick == slow, dtype
        assert isinstance(quick, dict)


@needs_kernels
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nonfinite", ["refuse", "continue"])
def test_what_is_not_finite_comes_to_the_same(name, nonfinite, monkeypatch):
    method, count = METHODS[name]
    for dtype in DTYPES:
        for value in (torch.nan, torch.inf, -torch.inf):
            rows = hard("plain", 2 * GRAIN + 5, count, dtype)
            rows[-1][GRAIN + 3] = value
            models = [{"x": row_P} for row_P in rows]
            options = Options(chunk=GRAIN, nonfinite=nonfinite)
            quick, slow = both(monkeypatch, method, models, options)
            assert quick == slow, (dtype, value)
            assert isinstance(quick, str) == (nonfinite == "refuse")


@needs_kernels
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_few_numbers_give_the_same(data):
    """Properties over all bits at once: NaN, infinities, zeros and subnormal numbers among them."""
    name = data.draw(st.sampled_from(sorted(METHODS)))
    method, count = METHODS[name]
    dtype = data.draw(st.sampled_from(DTYPES))
    kind = BITS[dtype.itemsize]
    ends = torch.iinfo(kind)
    length = data.draw(st.integers(1, 40))
    near = st.sampled_from([0, 1, -1, ends.max, ends.min, ends.min + 1, 0x3F80, 0x7F80, 0x7BFF])
    bits = st.lists(near | st.integers(ends.min, ends.max), min_size=length, max_size=length)
    models = [
        {"x": torch.tensor(data.draw(bits), dtype=torch.int64).to(kind).view(dtype)}
        for _ in range(count + 1)
    ]
    with pytest.MonkeyPatch.context() as patched:
        quick, slow = both(patched, method, models, Options(nonfinite="continue"))
    assert quick == slow


KINDS = ("tuned", "few digits", "cancelling", "any size", "powers of two")


def spread(kind: str, models: int, scale: float, generator: torch.Generator) -> Tensor:
    """Return tuned models and, last, the base, (M + 1, P), in bfloat16."""
    shape = (models, GRAIN)
    base_P = 0.02 * torch.randn(GRAIN, generator=generator)
    tau_MP = 0.002 * torch.randn(shape, generator=generator)
    if kind == "few digits":
        base_P = (base_P * 400).round() / 8
        tau_MP = torch.randint(-5, 6, shape, generator=generator) / 16
    elif kind == "cancelling":  # all but the models' last digits
        tau_MP = (-base_P / scale / models).expand(shape)
    elif kind != "tuned":  # each number of a size of its own, and some that cancel out
        exponent_MP = torch.randint(-26, 1, shape, generator=generator)
        digits_MP = torch.randint(128, shape, generator=generator) / 128 * (kind == "any size")
        sign_MP = 2 * torch.randint(2, shape, generator=generator) - 1
        tuned_MP = torch.ldexp(1 + digits_MP, exponent_MP) * sign_MP
        tuned_MP[1:2] = -tuned_MP[0]
        base_P = tuned_MP[-1].roll(1)
        kept_MP = torch.rand(shape, generator=generator) < 0.6
        tau_MP = torch.where(kept_MP, tuned_MP - base_P, 0)
    return torch.cat([base_P + tau_MP, base_P[None]]).to(torch.bfloat16)


@needs_kernels
@pytest.mark.parametrize("models", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_short_fractions_round_as_float64_does(kind, models):
    """They lead to ties, which the kernels may decide in float32: at scales of two digits, and at
    means of any number."""
    found = kernels()
    assert found is not None
    generator = torch.Generator().manual_seed(0)
    scales = [top / 100 for top in range(-120, 121, 3)] + [0.7, 1 / 3, 3 / 128, 7.0, 100.0]
    mixtures = [Mixture((1.0,) * models, base=-float(models), scale=scale) for scale in scales]
    mixtures += [Mixture((2.0,) * models, base=-1.0, scale=scale) for scale in scales]
    mixtures += [
        Mixture((1.0,) * models, over=float(over)) for over in (3, 5, 6, 7, 10, 100, 129, 0.3, 0.7)
    ]
    for mixture in mixtures:
        rows_RP = spread(kind, models, mixture.scale or 1.0, generator)
        rows_RP = rows_RP[: models + (mixture.base != 0)]
        out_P = torch.empty(GRAIN, dtype=torch.bfloat16)
        rows = Rows([row_P.data_ptr() for row_P in rows_RP], GRAIN, torch.bfloat16)
        assert found.mix(mixture, rows, out_P)
        exact_P = mixture.of(rows_RP, torch.empty(2, GRAIN, dtype=torch.float64))
        assert torch.equal(bits(out_P), bits(nearest(exact_P, torch.bfloat16))), mixture


def bits(values_P: Tensor) -> Tensor:
    """Return what tells 0 from -0."""
    return values_P.view(BITS[values_P.itemsize])


@needs_kernels
@pytest.mark.parametrize("name", METHODS)
def test_no_level_of_the_machines_vectors_changes_a_bit(name, monkeypatch):
    best = kernels()
    assert best is not None
    method, count = METHODS[name]
    for dtype in DTYPES:
        rows = hard("any", 2 * GRAIN + 77, count, dtype)
        models = [{"x": row_P} for row_P in rows]
        found = []
        for level in {0, 3, best.compiled.level} if best.compiled.level >= 3 else {0}:
            one = Kernels(dataclasses.replace(best.compiled, level=level))
            monkeypatch.setattr(stream, "kernels", lambda one=one: one)
            found.append(outcome(method, models, Options(chunk=GRAIN)))
        assert found.count(found[0]) == len(found)


@needs_kernels
@pytest.mark.parametrize("name", METHODS)
def test_merged_files_are_the_same_bytes_and_say_who_made_them(name, monkeypatch, tmp_path):
    method, count = METHODS[name]
    sizes = {"long": 3 * GRAIN + 77, "short": 50}
    made = {}
    for switch in ("0", "1"):
        monkeypatch.setenv(SWITCH, switch)
        tensors = {key: hard("plain", n, count, torch.bfloat16) for key, n in sizes.items()}
        models = [{key: rows[m] for key, rows in tensors.items()} for m in range(count + 1)]
        base = models[0] if method.needs_base else None
        out = tmp_path / f"{switch}.safetensors"
        options = Options(chunk=GRAIN, threads=2 if switch == "1" else 1)
        written = prepare(base, models[1:], method, options).run(out)
        assert written.compiled == (switch == "1")
        made[switch] = out.read_bytes()
    assert made["0"] == made["1"]


@needs_kernels
def test_tensors_that_kernels_do_not_take_are_merged_by_torch(monkeypatch):
    rows = hard("plain", 100, 2, torch.float32)
    mixed = [{"x": rows[0]}, {"x": rows[1].to(torch.bfloat16)}, {"x": rows[2]}]
    wide = [{"x": row_P.to(torch.float64)} for row_P in rows]
    for models in (mixed, wide):
        for method in (TaskArithmetic(), TIES(), DARE()):
            quick, slow = both(monkeypatch, method, models, Options())
            assert quick == slow


class OtherForm(DARE):
    """Says to the kernels something else than it does."""

    def formed(self, models, state):
        return dataclasses.replace(super().formed(models, state), scale=0.25)


class OtherLook(Breadcrumbs):
    """Lets the kernels count something else than it looks at."""

    def looks(self, state):
        return Sizes(Changes(over=2.0))


@needs_kernels
@pytest.mark.parametrize("method", [OtherForm(), OtherLook()], ids=repr)
def test_the_contract_finds_what_is_said_to_the_kernels_and_not_done(method):
    with pytest.raises(AssertionError, match="where what it says to the kernels counts"):
        check_merge(method)
