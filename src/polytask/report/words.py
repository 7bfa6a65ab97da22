"""The verdict in words: what a reader should know before the first table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # sources reads what other files of this room put into words
    from polytask.report.sources import Compared, Interval, MethodResult, Number


def verdict(run: Compared) -> list[str]:
    """Return a few sentences: the best method, what its tasks gained, what it cost."""
    best = best_method(run)
    if best is None:
        if run.failed:
            said = ["Every method failed, so there is nothing to compare."]
        elif not list(run.joint()):
            said = ["Only the single-task models were trained, so there is nothing to compare yet."]
        else:
            said = ["No method has a defined mean gain, so no winner can be named."]
        return said
    said = [_headline(run, best), _left_out(best), _tasks(run, best), _cost(run, best)]
    return [sentence for sentence in [*said, _rivals(run, best), _failed(run)] if sentence]


def _rivals(run: Compared, best: MethodResult) -> str:
    """Return how many methods the best one is not told apart from; "" where few were compared."""
    others = [m for m in run.joint() if m is not best and m.delta_m is not None]
    if len(others) < 5 or best.interval is None:
        return ""
    near = sum((m.delta_m or 0.0) >= best.interval[0] for m in others)
    return (
        f"The mean of {near} of the {len(others)} other methods lies inside its interval or above, "
        "and the best of many is in part luck: read the whole list."
    )


def _failed(run: Compared) -> str:
    if not run.failed:
        return ""
    return f"Left out, because they stopped with an error: {listing(list(run.failed))}."


def best_method(run: Compared) -> MethodResult | None:
    """Return the joint method with the highest delta-m, None where none has one."""
    defined = [method for method in run.joint() if method.delta_m is not None]
    return max(defined, key=lambda method: method.delta_m or 0.0, default=None)


def _headline(run: Compared, best: MethodResult) -> str:
    gain = f"{percent(best.delta_m)}{_bracket(best.interval)}"
    over = "one task" if len(run.tasks) == 1 else f"{len(run.tasks)} tasks"
    seeds, doubt = "", ""
    if len(run.seeds) < 2:
        doubt = " With a single seed there is no interval: take it as a hint."
    elif best.interval is None:
        doubt = " No interval could be computed."
    elif best.interval[0] <= 0 <= best.interval[1]:
        doubt = f" The interval over {len(run.seeds)} seeds includes 0, so this is not settled."
    else:
        seeds = f" and {len(run.seeds)} seeds"
    if best.delta_m is not None and best.delta_m < 0:
        return (
            f"No method is ahead of the single-task models on average over {over}{seeds}; "
            f"{best.name} comes nearest with {gain}.{doubt}"
        )
    return f"{best.name} does best: a mean gain of {gain} over {over}{seeds}.{doubt}"


def _left_out(best: MethodResult) -> str:
    if not best.left_out:
        return ""
    if len(best.left_out) > 3:
        return f"The mean leaves out {len(best.left_out)} tasks whose gain is undefined."
    return f"The mean leaves out {listing(best.left_out)}, whose gain is undefined."


def _tasks(run: Compared, best: MethodResult) -> str:
    parts = []
    for kind in ("gained", "lost", "undecided"):
        names = [task.name for task in run.tasks if best.outcomes[task.name].verdict == kind]
        named = f" ({listing(names)})" if 1 <= len(names) <= 3 and len(run.tasks) <= 12 else ""
        parts.append(f"{len(names) or 'none'} {kind}{named}")
    said = f"Against their own single-task models, {listing(parts)}."
    gained, lost = (best.counts.get(f"{kind}_adjusted") for kind in ("gained", "lost"))
    if gained is None or lost is None:
        return said
    if gained + lost < best.counts["gained"] + best.counts["lost"]:
        # Each verdict stands alone; among many tasks some are wrong by chance.
        remain = f"{gained or 'no'} gained and {lost or 'no'} lost"
        said += f" Corrected for testing {len(run.tasks)} tasks at once, {remain} tasks remain."
    return said


def _cost(run: Compared, best: MethodResult) -> str:
    cost = best.cost
    shares = [
        f"{ratio:.2f}\u00a0× {what}" if ratio >= 0.1 else f"{ratio:.2g}\u00a0× {what}"
        for ratio, what in (
            (cost.seconds_ratio, "the training time"),
            (cost.parameters_ratio, "the parameters"),
        )
        if ratio is not None
    ]
    if not shares:
        return ""
    return f"It took {listing(shares)} of the {len(run.tasks)} single-task models together."


def percent(value: Number) -> str:
    """Return a signed percentage with one decimal and a true minus sign; "n/a" for None."""
    if value is None:
        return "n/a"
    return f"{_signed(value)}\u00a0%"


def _bracket(interval: Interval) -> str:
    if interval is None:
        return ""
    return f" [{_signed(interval[0])}, {_signed(interval[1])}]"


def _signed(value: float) -> str:
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def listing(parts: Sequence[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
