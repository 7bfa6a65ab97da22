"""Numbers from outputs: gains, intervals over seeds, verdicts, reasons, cost, and claims."""

from polytask.evaluate.claims import Claim, Effect, Outcome, decide, decide_against_all
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
from polytask.evaluate.truth import AgainstTruth, against_truth
from polytask.evaluate.why import why

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
