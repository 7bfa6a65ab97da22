"""Methods that look at losses they do not weigh: how the balancer shows them, and who forgets."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from polytask.balance import FAMO, Balancer, CoBa, Equal, Observer, PCGrad, Signal, State
from polytask.errors import RunError, UsageError
from polytask.testing import check_balance

OBSERVERS = [FAMO(), CoBa(warmup=2, history=3)]


def made(method) -> tuple[Balancer, torch.Tensor]:
    leaf = torch.ones((), requires_grad=True)
    return Balancer(method, [leaf], ["a", "b"]), leaf


def values(a: float, b: float) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(a), "b": torch.tensor(b)}


def test_the_balancer_says_what_its_method_observes_and_what_that_costs():
    assert [made(m)[0].observes for m in (Equal(), PCGrad(), *OBSERVERS)] == [
        *(None, None, "after", "validation")
    ]
    assert made(FAMO())[0].engine == "one backward of the weighted losses, one forward more"
    assert made(CoBa())[0].engine.endswith("losses, one forward of validation rows")
    assert all(isinstance(method, Observer) for method in OBSERVERS)


def test_losses_come_in_every_form_that_backward_takes():
    states = []
    for form in (values(1.0, 2.0), torch.tensor([1.0, 2.0]), list(values(1.0, 2.0).values())):
        balancer, _ = made(CoBa(warmup=2, history=2))
        balancer.observe(form)
        states.append(balancer.state["first_T"].tolist())
    balancer.observe(torch.tensor([4.0, 3.0]), tasks=["b", "a"])
    assert states == [[1.0, 2.0]] * 3
    assert balancer.state["ratios_HT"][1].tolist() == [3.0, 2.0]


def test_an_update_that_was_not_looked_at_again_is_noticed():
    balancer, leaf = made(FAMO())
    balancer.backward({"a": leaf * 1, "b": leaf * 1})
    with pytest.raises(UsageError, match=r"FAMO must see.*after optimizer.step\(\).*observe\(loss"):
        balancer.backward({"a": leaf * 1, "b": leaf * 1})
    balancer.observe(values(0.5, 0.9))
    balancer.backward({"a": leaf * 1, "b": leaf * 1})


def test_a_loaded_state_awaits_no_second_look():
    balancer, leaf = made(FAMO())
    saved = balancer.state_dict()
    balancer.backward({"a": leaf * 1, "b": leaf * 1})
    balancer.load_state_dict(saved)
    assert dict(balancer.backward({"a": leaf * 1, "b": leaf * 1})) == {"a": 0.5, "b": 0.5}


def test_an_update_without_any_task_needs_no_second_look():
    balancer, leaf = made(FAMO())
    balancer.backward({})
    balancer.backward({"a": leaf * 1, "b": leaf * 1})


def test_methods_that_look_at_nothing_are_shown_nothing():
    with pytest.raises(UsageError, match=r"Equal looks at no other losses; leave out observe\(\)"):
        made(Equal())[0].observe(values(1.0, 1.0))


@pytest.mark.parametrize("method", OBSERVERS, ids=repr)
def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(method):
    balancer, leaf = made(method)
    balancer.backward({"a": leaf * 1, "b": leaf * 1})
    before = balancer.state_dict()
    with pytest.raises(RunError, match="the loss of task 'b' is nan; expected a finite number"):
        balancer.observe(values(1.0, torch.nan))
    after = balancer.state_dict()
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


@pytest.mark.parametrize("method", OBSERVERS, ids=repr)
@pytest.mark.parametrize("looked", [False, True], ids=["before the look", "after it"])
def test_a_resumed_run_goes_on_bit_for_bit(method, looked):
    draw = torch.Generator().manual_seed(0)
    steps = torch.rand(8, 2, 2, generator=draw) + 0.1

    def go(balancer: Balancer, leaf: torch.Tensor, shown, look: bool = True) -> list[float]:
        used = []
        for before, after in shown:
            used += balancer.backward([leaf * before[0], leaf * before[1]]).values()
            if look:
                balancer.observe(after)
        return used

    balancer, leaf = made(method)
    go(balancer, leaf, steps[:3])
    go(balancer, leaf, steps[3:4], looked)
    resumed, other = made(method)
    resumed.load_state_dict(balancer.state_dict())
    if not looked:
        balancer.observe(steps[3, 1])
        resumed.observe(steps[3, 1])
    assert go(resumed, other, steps[4:]) == go(balancer, leaf, steps[4:])


@dataclass(frozen=True)
class Broken(Equal):
    """An observer with one fault."""

    fault: str = ""
    observes: ClassVar[str] = "validation"

    def start(self, tasks: int) -> State:
        return {"seen_T": torch.zeros(tasks)}

    def observe(self, signal: Signal, state: State) -> State:
        seen_T = state["seen_T"]
        if self.fault == "in place":
            seen_T += 1
        elif self.fault == "layout":
            seen_T = seen_T.double()
        elif self.fault == "chance":
            seen_T = torch.rand(len(seen_T))
        return {"seen_T": seen_T}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("in place", "observe changed the state it was given"),
        ("layout", "observe changed the state's layout"),
        ("chance", "observe is not repeatable"),
    ],
)
def test_the_checker_looks_at_observers_too(fault, text):
    check_balance(Broken())
    with pytest.raises(AssertionError, match=text):
        check_balance(Broken(fault))
