"""Numbers from outputs: gains, intervals over seeds, verdicts, reasons, cost, and claims.

Claims and known truths are imported when they are first used (PEP 562).
"""

from typing import TYPE_CHECKING

from polytask.evaluate.gain import delta_m, gains
from polytask.evaluate.interval import LEVEL, interval
from polytask.evaluate.paired import paired_error
from polytask.evaluate.result import (
    CostResult,
    Counts,
    MethodResult,
    Scores,
    TaskResult,
    Verdict,
    cost,
    judge,
    reference,
)
from polytask.evaluate.why import why
from polytask.lazily import lazily

if TYPE_CHECKING:
    from polytask.evaluate.claims import Claim, Effect, Outcome, decide, decide_against_all
    from polytask.evaluate.truth import AgainstTruth, against_truth

_WHERE = {
    "Claim": "claims",
    "Effect": "claims",
    "Outcome": "claims",
    "decide": "claims",
    "decide_against_all": "claims",
    "AgainstTruth": "truth",
    "against_truth": "truth",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "LEVEL",
    "AgainstTruth",
    "Claim",
    "CostResult",
    "Counts",
    "Effect",
    "MethodResult",
    "Outcome",
    "Scores",
    "TaskResult",
    "Verdict",
    "against_truth",
    "cost",
    "decide",
    "decide_against_all",
    "delta_m",
    "gains",
    "interval",
    "judge",
    "paired_error",
    "reference",
    "why",
]
