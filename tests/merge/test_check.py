"""The checker for merges of others' catches each way to break the contract."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from polytask.errors import UsageError
from polytask.merge import TIES, Merge, Mixture, Place, Surveyor, TaskArithmetic
from polytask.merge.base import GRAIN
from polytask.testing import check_merge


@dataclass(frozen=True)
class Plain(Merge):
    """A merge that keeps it: the base and half of each change, added up in float64 in any order."""

    factor: float = 0.5

    def piece(self, base_P, tuned_MP, at, state):
        total_P = (tuned_MP.double() - base_P.double()).sort(0).values.sum(0)
        return (base_P.double() + self.factor * total_P).to(base_P.dtype)


@dataclass(frozen=True)
class Counting(Surveyor):
    """Keeps it too: scales by how many elements of the model changed, in two passes."""

    over = "model"

    def begin(self, models, dtype):
        return {"changed": torch.zeros(()), "passes": torch.zeros(())}

    def settled(self, state):
        return bool(state["passes"] == 2)

    def blank(self, state):
        return {"changed": torch.zeros(())}

    def look(self, base_P, tuned_MP, at, state, sums):
        sums["changed"] += float((tuned_MP != base_P).any(0).sum())

    def settle(self, state, sums):
        return {"changed": sums["changed"], "passes": state["passes"] + 1}

    def piece(self, base_P, tuned_MP, at, state):
        total_P = (tuned_MP - base_P).double().sort(0).values.sum(0)
        return (base_P + total_P / (1 + state["changed"])).to(base_P.dtype)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", [Plain(), Counting()], ids=repr)
def test_what_keeps_the_contract_passes(method, seed):
    check_merge(method, seed)


def test_torch_s_own_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    check_merge(Plain())
    assert torch.equal(before, torch.get_rng_state())


class InPlace(Plain):
    def piece(self, base_P, tuned_MP, at, state):
        return tuned_MP.sub_(base_P).mean(0).add_(base_P)


class FirstCounts(Plain):
    def piece(self, base_P, tuned_MP, at, state):
        return base_P + tuned_MP[0] - base_P


class DividesByNothing(Plain):
    def piece(self, base_P, tuned_MP, at, state):
        tau_P = (tuned_MP - base_P).double().sort(0).values.sum(0)
        return base_P + (tau_P / tau_P.norm()).to(base_P.dtype)


class LeavesTheBase(Plain):
    def piece(self, base_P, tuned_MP, at, state):
        return 0.9 * base_P


class Lies(Plain):
    needs_base: ClassVar[bool] = False

    def piece(self, base_P, tuned_MP, at, state):
        return tuned_MP.double().sort(0).values.mean(0).to(tuned_MP.dtype) + len(base_P) * 1e-3


class WholeNorm(Plain):
    """Looks at a piece as if it were the tensor."""

    def piece(self, base_P, tuned_MP, at, state):
        tau_P = (tuned_MP - base_P).double().sort(0).values.sum(0)
        return (base_P + tau_P / (1 + tau_P.norm())).to(base_P.dtype)


class Tidies(Plain):
    """Hides what is not finite."""

    def piece(self, base_P, tuned_MP, at, state):
        return super().piece(base_P, tuned_MP, at, state).nan_to_num()


class Random(Plain):
    draws: ClassVar[bool] = True

    def piece(self, base_P, tuned_MP, at, state):
        return base_P + (tuned_MP - base_P).sum(0) * torch.rand(())


class FromPlace(Plain):
    """Draws by the place in the piece, not in the tensor."""

    draws: ClassVar[bool] = True

    def piece(self, base_P, tuned_MP, at, state):
        keep_P = torch.arange(len(base_P)) % (GRAIN - 1) > 7
        return base_P + keep_P * (tuned_MP.sort(0).values.mean(0) - base_P)


class Names(Plain):
    def piece(self, base_P, tuned_MP, at, state):
        return base_P + len(at.name) * (tuned_MP.sort(0).values.mean(0) - base_P)


class Narrow(Plain):
    """Rounds once more than the engine will."""

    dtype: ClassVar[torch.dtype] = torch.float64

    def piece(self, base_P, tuned_MP, at, state):
        return super().piece(base_P, tuned_MP, at, state).float()


class Wide(Plain):
    """Allowed: the engine rounds it once."""

    def piece(self, base_P, tuned_MP, at, state):
        return super().piece(base_P, tuned_MP, at, state).double()


class OtherMixture(Plain):
    def mixture(self, models, state):
        return Mixture((0.25,) * models, scale=1.0)


class Grows(Counting):
    def look(self, base_P, tuned_MP, at, state, sums):
        super().look(base_P, tuned_MP, at, state, sums)
        state["changed"] += 1


class Endless(Counting):
    def settled(self, state):
        return False


class ByTensorOrder(Counting):
    """Ends with what it saw last."""

    def look(self, base_P, tuned_MP, at, state, sums):
        sums["changed"] *= 0.5
        super().look(base_P, tuned_MP, at, state, sums)


class BelievesTheSample(Counting):
    def sample(self, state):
        return 2


class Writes(Counting):
    def piece(self, base_P, tuned_MP, at, state):
        state["changed"] += 1
        return super().piece(base_P, tuned_MP, at, state)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (FirstCounts(), "order of the models matters, but it says order_free"),
        (DividesByNothing(), "unchanged models.*a merged value is not finite"),
        (LeavesTheBase(), "nobody changed, but it leaves the base"),
        (Plain(factor=float("nan")), "a merged value is not finite"),
        (Lies(), "the base matters, but it needs none"),
        (WholeNorm(), r"pieces of \(1,\) grains give something else"),
        (Random(), "not repeatable"),
        (Tidies(), "a model full of nan leaves finite values"),
        (FromPlace(), r"pieces of \(1,\) grains give something else"),
        (Names(), "the name matters, but it does not draw"),
        (Narrow(), "piece returns neither the precision of what came nor float64"),
        (Wide(), None),
        (OtherMixture(), "its mixture gives something else than its piece"),
        (Grows(), "look changes the state"),
        (Endless(), "not settled after 100 passes"),
        (ByTensorOrder(), "order of the tensors matters|grains give something else"),
        (BelievesTheSample(), "depends on the sample"),
        (Writes(), "piece changes the state"),
        (TIES(weights=(2.0,)), None),
        (replace(TaskArithmetic(), weights=(1.0, 2.0)), None),
    ],
    ids=lambda case: case if isinstance(case, str) else type(case).__name__,
)
def test_each_way_to_break_it_is_caught(method, said):
    if said is None:
        check_merge(method)
        return
    with pytest.raises(AssertionError, match=rf"(?s)The contract of a merge is broken.*({said})"):
        check_merge(method)


def test_models_that_are_overwritten_are_caught():
    """In the precision that came nothing is copied before: the caller's own models would change."""

    @dataclass(frozen=True)
    class Double(InPlace):
        dtype: ClassVar[torch.dtype] = torch.float32

    with pytest.raises(AssertionError, match="changes the models it was given"):
        check_merge(Double())


def test_settings_that_can_change_are_caught():
    @dataclass
    class Soft(Merge):
        factor: float = 1.0

        def piece(self, base_P, tuned_MP, at, state):
            return base_P.clone()

    with pytest.raises(AssertionError, match="cannot be hashed"):
        check_merge(Soft())
    with pytest.raises(AssertionError, match="it is no Merge"):
        check_merge(object())


def test_a_method_that_takes_any_number_is_caught():
    @dataclass(frozen=True)
    class Any(Plain):
        least: ClassVar[int] = 1

    Any.__call__ = lambda self, base_P, tuned_MP, name="": self.piece(base_P, tuned_MP, Place(), {})
    with pytest.raises(AssertionError, match="0 models are taken"):
        check_merge(Any())
    with pytest.raises(UsageError):
        Plain()(torch.zeros(3), torch.zeros(0, 3))
