"""Every balance method of the catalog keeps the contract; the checker catches those that do not."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from polytask.balance import AlignedMTL, Equal, Signal, State, Update
from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.testing import check_balance

ROWS = [row for row in METHODS if row.room == "balance" and not row.wraps]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_method_of_the_catalog_keeps_the_contract(row):
    check_balance(row.load()())


@pytest.mark.parametrize("mode", ["median", "rmse"])
def test_settings_keep_the_contract(mode):
    check_balance(AlignedMTL(mode, preference=(1.0, 0.0, 2.0)), tasks=3)


@dataclass(frozen=True)
class Broken(Equal):
    """Equal weights with one fault."""

    fault: str = ""
    needs: ClassVar[str] = "gramian"

    def start(self, tasks: int) -> State:
        return {"seen_T": torch.zeros(tasks)}

    def __call__(self, signal: Signal, state: State) -> Update:
        ones_K = torch.ones(len(signal.index_K), dtype=torch.float64)
        seen_T = state["seen_T"]
        if self.fault == "shape":
            ones_K = torch.ones(signal.tasks)
        elif self.fault == "division":
            ones_K = 1 / signal.gram_KK.diagonal()
        elif self.fault == "in place":
            seen_T += 1
        elif self.fault == "layout":
            seen_T = seen_T.double()
        elif self.fault == "chance":
            ones_K = torch.rand(len(ones_K))
        elif self.fault == "losses":
            ones_K = signal.losses_K
        elif self.fault == "presence":
            ones_K = ones_K / len(ones_K)
        elif self.fault == "graph":
            ones_K.requires_grad_()
        return Update({"seen_T": seen_T}, ones_K)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("shape", r"weights have shape \(4,\), expected \(1,\)"),
        ("division", r"one zero|partly zero.*a weight is not finite"),
        ("in place", "changed the state it was given"),
        ("layout", "the state's layout changed"),
        ("chance", "it is not repeatable"),
        ("losses", "it says foresees, but weights depend"),
        ("presence", "it says foresees, but weights depend"),
        ("graph", "the method is no nn.Module"),
    ],
)
def test_the_checker_names_the_broken_rule(fault, text):
    with pytest.raises(AssertionError, match=text):
        check_balance(Broken(fault))


def test_the_checker_passes_the_same_method_without_a_fault():
    check_balance(Broken())


def test_the_checker_wants_three_tasks():
    with pytest.raises(UsageError, match="tasks is 2; give at least 3"):
        check_balance(Equal(), tasks=2)
