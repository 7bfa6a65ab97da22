"""Checkers for plug-ins: a contract, tried on an object of yours.

    from polytask.testing import check_kind
    check_kind(MyKind(), target, width=8)

Each returns nothing where the contract holds, and raises AssertionError with the broken rule where
it does not.
"""

from polytask.testing.adapters import check_adapter
from polytask.testing.balances import check_balance, check_wrapper
from polytask.testing.kinds import check_kind
from polytask.testing.merges import check_merge
from polytask.testing.mixes import check_mix
from polytask.testing.relations import check_grouping, check_watch

__all__ = [
    "check_adapter",
    "check_balance",
    "check_grouping",
    "check_kind",
    "check_merge",
    "check_mix",
    "check_watch",
    "check_wrapper",
]
