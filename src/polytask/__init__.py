"""polytask: one model that does many tasks, through its whole life.

Rooms load when they are first used, so importing the package costs next to nothing:

    from polytask.balance import Balancer, PCGrad

    import polytask
    polytask.balance.Balancer
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what __getattr__ does, in words that editors and type checkers read
    from types import ModuleType

    from polytask import adapt as adapt
    from polytask import balance as balance
    from polytask import catalog as catalog
    from polytask import errors as errors
    from polytask import evaluate as evaluate
    from polytask import fit as fit
    from polytask import kernels as kernels
    from polytask import lazily as lazily
    from polytask import lock as lock
    from polytask import merge as merge
    from polytask import mix as mix
    from polytask import parsing as parsing
    from polytask import peft_folders as peft_folders
    from polytask import recipes as recipes
    from polytask import records as records
    from polytask import relate as relate
    from polytask import report as report
    from polytask import share as share
    from polytask import suites as suites
    from polytask import tasks as tasks
    from polytask import testing as testing

__version__ = "0.1.0"

_ROOMS = (
    "adapt", "balance", "catalog", "errors", "evaluate", "fit", "kernels", "lazily", "lock",
    "merge", "mix", "parsing", "peft_folders", "recipes", "records", "relate", "report",
    "share", "suites", "tasks", "testing",
)  # fmt: skip


def __getattr__(name: str) -> "ModuleType":
    """Import the room called `name` when it is first used (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'polytask' has no attribute {name!r}")
    import importlib

    return importlib.import_module(f"polytask.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
