"""Numbers from outputs: gains, intervals over seeds, verdicts, reasons, cost, and claims."""

from polytask.evaluate.gain import delta_m, gains
from polytask.evaluate.interval import LEVEL, interval
from polytask.evaluate.result import (
    CostResult,
    Counts,
    MethodResult,
    TaskResult,
    Verdict,
    cost,
    judge,
    reference,
)

__all__ = [
    "LEVEL",
    "CostResult",
    "Counts",
    "MethodResult",
    "TaskResult",
    "Verdict",
    "cost",
    "delta_m",
    "gains",
    "interval",
    "judge",
    "reference",
]
