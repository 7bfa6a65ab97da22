"""Models in half precision: searched in float32, run as they are, near what float32 models give."""

import pytest
import torch

from polytask.merge.adamerging import AdaMerging
from polytask.merge.atlas import ATLAS
from polytask.merge.concrete import Concrete
from polytask.merge.concrete_adamerging import ConcreteAdaMerging
from polytask.merge.dam import DAM
from polytask.merge.family import Family, Merged
from polytask.merge.fisher import Fisher
from polytask.merge.regmean import RegMean
from polytask.merge.surgery import Surgery
from polytask.merge.tinting import Tinting

from .families import TASKS, inputs, mlp, targets

METHODS = (
    Fisher(), RegMean(), AdaMerging(rounds=4), AdaMerging(rounds=4, plus=True, level="task"),
    Concrete(rounds=4), ConcreteAdaMerging(rounds=4, coefficient_rounds=2), Tinting(rounds=4),
    DAM(rounds=4, coefficient_rounds=2), ATLAS(epochs=1, learning_rate=0.05, parts=2),
)  # fmt: skip


def merged_in(method, dtype) -> tuple[Family, Merged]:
    family = mlp(dtype=dtype)
    data = {t: x.to(dtype) for t, x in inputs("mlp").items()}
    if isinstance(method, ATLAS):
        return family, method(family, {t: (x, targets()[t]) for t, x in data.items()})
    return family, method(family, data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS, ids=[type(m).__name__ for m in METHODS])
def test_half_precision_comes_near_to_single_and_stays_half(method, dtype):
    family, half = merged_in(method, dtype)
    _, single = merged_in(method, torch.float32)
    for name, tensor in half.shared.items():
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor.float(), single.shared[name], rtol=0.03, atol=0.03)
    for tensor in half.learned.values():
        assert tensor.dtype == torch.float32
    x = inputs("mlp")["a"].to(dtype)
    assert family.build("a", half)(x)["a"].dtype == dtype


def test_small_steps_are_not_lost_in_half_precision():
    """A bfloat16 at 0.3 cannot move by 1e-4: the coefficients are float32."""
    _, merged = merged_in(AdaMerging(rounds=3, learning_rate=1e-4), torch.bfloat16)
    lam = merged.learned["coefficients"]
    assert bool((lam != 0.3).all())
    assert float((lam - 0.3).abs().max()) < 1e-3


def test_squares_of_small_gradients_do_not_vanish():
    family = mlp(dtype=torch.float16)
    for name, f in Fisher().information(family, TASKS[0], inputs("mlp")["a"].half()).items():
        assert f.dtype == torch.float32
        assert bool((f > 0).any()), name


def test_surgery_corrects_in_the_precision_of_the_model():
    family = mlp(dtype=torch.bfloat16)
    data = {t: x.bfloat16() for t, x in inputs("mlp").items()}
    done = Surgery(rounds=200, rank=4, learning_rate=1e-2)(family, data, Merged(family.mean()))
    assert done.losses[-1] < done.losses[0]
    assert family.build("b", done)(data["b"])["b"].dtype == torch.bfloat16
