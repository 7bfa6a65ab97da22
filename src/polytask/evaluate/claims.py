"""The claims ledger: what papers claim, re-run here, and whether it was seen.

An experiment decides a claim from paired differences, one per seed, and leaves a `claims.json`
beside its results. The ledger is all of these files in one table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from polytask.catalog import METHODS, ROOMS
from polytask.errors import DataError, UsageError, unknown
from polytask.evaluate.interval import LEVEL, interval
from polytask.records import read_json, write_json

Outcome = Literal["seen", "not seen", "undecided", "not testable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Expected = Literal["greater", "equal", "no worse"]

FILE = "claims.json"


def decide(
    differences: Sequence[float],
    expected: Expected,
    margin: float,
    level: float = LEVEL,
) -> Outcome:
    """Return whether a claim was seen, from one paired difference per seed.

    differences: claimed side minus the other, signed so that the claim is about values > 0.
    margin: the smallest difference that would matter, in the unit of the differences. Choose it
        before looking.

    The rule reads the two-sided t interval (low, high) that the ledger shows, and nothing else:

    - "greater", margin >= 0: "not seen" where high < margin or high <= 0, since an improvement
      that matters is excluded; else "seen" where low > 0; else "undecided". An improvement that is
      sure but smaller than the margin is therefore not seen.
    - "equal", margin > 0: "seen" where the interval lies inside (-margin, margin), which is the
      two one-sided tests of Schuirmann (1987, doi:10.1007/BF01068419); "not seen" where it lies
      outside altogether; else "undecided". No significant difference is not equality.
    - "no worse", margin > 0: "seen" where the interval lies above -margin; "not seen" where it
      lies below it altogether; else "undecided". How much better is no matter.

    At level 0.95 each wrong decision has probability at most 2.5 %: "seen" where the truth is no
    improvement (or a difference of at least the margin), "not seen" where the truth is an
    improvement of at least the margin (or a difference below it; or one above -margin). One
    difference has no interval and is undecided.
    """
    for i, difference in enumerate(differences):
        if not math.isfinite(difference):
            raise UsageError(
                f"Difference {i} of a claim is {difference}; a claim is decided on finite numbers "
                "of every seed. Mend that run, or record the claim as undecided with the reason."
            )
    least = ">= 0" if expected == "greater" else "> 0"
    if not (0 <= margin < math.inf) or (expected != "greater" and margin == 0):
        raise UsageError(
            f"The margin of a claim of {expected!r} is {margin}; give the smallest difference "
            f"that would matter, a number {least}."
        )
    bounds = interval(differences, level)
    if bounds is None:
        return "undecided"
    low, high = bounds
    if expected == "equal":
        if -margin < low and high < margin:
            return "seen"
        return "not seen" if low >= margin or high <= -margin else "undecided"
    if expected == "no worse":
        if low > -margin:
            return "seen"
        return "not seen" if high <= -margin else "undecided"
    if high < margin or high <= 0:
        return "not seen"
    return "seen" if low > 0 else "undecided"


def decide_against_all(
    rivals: Mapping[str, Sequence[float]],
    expected: Literal["greater", "no worse"],
    margin: float,
    level: float = LEVEL,
) -> tuple[Outcome, str]:
    """Return whether a claim was seen against every one of m rivals, and who is the hardest.

    rivals: name -> paired differences, as for `decide`. The hardest rival is the one with the
        lowest mean difference; show the effect and interval against it.

    "seen" where `decide` says so against every rival: an intersection-union test, which needs no
    correction (Berger, Technometrics 24(4), 1982). "not seen" where it says so against at least
    one at a level of 1 - (1 - level) / m (Bonferroni), since among many rivals one that is ahead
    is found by chance.
    """
    if not rivals:
        raise UsageError("A claim against all rivals needs at least one; none was given.")
    hardest = min(rivals, key=lambda name: math.fsum(rivals[name]) / len(rivals[name]))
    if all(decide(d, expected, margin, level) == "seen" for d in rivals.values()):
        return "seen", hardest
    strict = 1 - (1 - level) / len(rivals)
    lost = any(decide(d, expected, margin, strict) == "not seen" for d in rivals.values())
    return ("not seen" if lost else "undecided"), hardest


@dataclass(frozen=True)
class Effect:
    """A number with its unit in words: Effect(1.3, "% delta-m over equal weights")."""

    value: float
    unit: str


@dataclass(frozen=True)
class Claim:
    """One claim of one paper and what came of it here.

    system: what the claim is about, by its name in the catalog where it has one.
    paper: where it is claimed. claim: one line. setting: the suite, models and margin here.
    seeds: those of the paired differences; empty where the claim is not testable.
    effect, interval: mean paired difference and its interval; both needed where the outcome is
        "seen" or "not seen".
    reason: a remark; needed where the outcome is "not testable", or "undecided" without effect.
    command: what repeats it. versions: what it ran on (see `records.versions`).
    experiment: folder of the file below the experiments' folder; `load` fills it in.
    """

    system: str
    paper: str
    claim: str
    setting: str
    seeds: tuple[int, ...]
    outcome: Outcome
    effect: Effect | None
    interval: tuple[float, float] | None
    reason: str
    command: str
    versions: dict[str, str]
    experiment: str = ""

    def __post_init__(self) -> None:
        fault = _fault(self)
        if fault:
            raise DataError(f"Claim {self.claim!r} of {self.system!r}: {fault}.")

    @property
    def room(self) -> str:
        """The room of the system, "" where it is no method of the catalog."""
        return next((row.room for row in METHODS if row.name == self.system), "")


def _fault(claim: Claim) -> str:
    """Return what is wrong with a claim's fields together, or ""."""
    tested = claim.outcome != "not testable"
    if claim.outcome not in OUTCOMES:
        return f"outcome is {claim.outcome!r}; give one of {', '.join(map(repr, OUTCOMES))}"
    for name in ("system", "paper", "claim", "setting") + (("command",) if tested else ()):
        if not getattr(claim, name).strip():
            return f"{name} is empty; a reader needs it"
    if "\n" in claim.claim:
        return "claim has several lines; say it in one"
    if len(set(claim.seeds)) != len(claim.seeds):
        return f"a seed occurs twice in {list(claim.seeds)}; pairs need different seeds"
    if not tested:
        if claim.effect or claim.interval:
            return "it is not testable and yet has an effect or an interval; leave them null"
        return "" if claim.reason.strip() else "it is not testable and gives no reason; say why"
    if not claim.seeds:
        return "it has no seeds; list those that were run"
    if not claim.versions:
        return "it has no versions; store those of records.versions()"
    if claim.outcome != "undecided" and (claim.effect is None or claim.interval is None):
        return f"outcome {claim.outcome!r} rests on an effect and an interval; give both"
    if claim.effect is None:
        return "" if claim.reason.strip() else "it has neither effect nor reason; give one of them"
    if not math.isfinite(claim.effect.value):
        return f"its effect is {claim.effect.value}; give a finite number"
    if claim.interval is not None:
        low, high = claim.interval
        rounding = 1e-12 * abs(claim.effect.value)  # a mean of equal numbers may be off by a bit
        if not low - rounding <= claim.effect.value <= high + rounding:
            return f"its effect {claim.effect.value} is not inside its interval [{low}, {high}]"
    return ""


def save(folder: Path, claims: Iterable[Claim]) -> None:
    """Write the claims of one experiment as `claims.json` into its folder, atomically."""
    names = [f.name for f in fields(Claim) if f.name != "experiment"]  # the folder says it
    write_json(folder / FILE, [{name: getattr(c, name) for name in names} for c in claims])


def load(folder: Path) -> tuple[Claim, ...]:
    """Return every claim recorded below `folder` (the experiments), in the order of the files.

    Raises DataError, naming file and record, where one is not a claim; RunError where a file
    cannot be read.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder of experiments; give the one whose subfolders hold {FILE}."
        )
    claims = []
    for path in sorted(folder.rglob(FILE)):
        raw = read_json(path)
        if not isinstance(raw, list):
            raise DataError(f"{path} must hold a list of claims; it holds {_kind(raw)}.")
        experiment = path.parent.relative_to(folder).as_posix()
        for i, item in enumerate(raw):
            try:
                claims.append(_claim(item, experiment))
            except (DataError, UsageError) as error:
                raise DataError(f"{path}, record {i}: {error}") from error
    return tuple(claims)


def _claim(raw: Any, experiment: str) -> Claim:
    """Return the claim in `raw`, every field checked for its type."""
    if not isinstance(raw, dict):
        raise DataError(f"a claim is an object with named fields; this is {_kind(raw)}.")
    known = [f.name for f in fields(Claim) if f.name != "experiment"]
    for name in raw:
        if name not in known:
            raise unknown("field of a claim", name, known, f"Its fields: {', '.join(known)}.")
    missing = [name for name in known if name not in raw]
    if missing:
        raise DataError(f"the claim lacks {', '.join(missing)}; write null where there is none.")
    for name in ("system", "paper", "claim", "setting", "outcome"):
        _expect(isinstance(raw[name], str), name, "a text", raw[name])
    for name in ("reason", "command"):
        _expect(raw[name] is None or isinstance(raw[name], str), name, "a text", raw[name])
    seeds, versions = raw["seeds"], raw["versions"]
    _expect(isinstance(seeds, list) and all(map(_is_int, seeds)), "seeds", "a list of ints", seeds)
    _expect(
        isinstance(versions, dict) and all(isinstance(v, str) for v in versions.values()),
        "versions",
        "an object of texts",
        versions,
    )
    effect, bounds = raw["effect"], raw["interval"]
    if effect is not None:
        _expect(
            isinstance(effect, dict)
            and set(effect) == {"value", "unit"}
            and _is_number(effect["value"])
            and isinstance(effect["unit"], str),
            "effect",
            'null or {"value": number, "unit": text}',
            effect,
        )
        effect = Effect(float(effect["value"]), effect["unit"])
    if bounds is not None:
        _expect(
            isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds)),
            "interval",
            "null or [low, high]",
            bounds,
        )
        bounds = (float(bounds[0]), float(bounds[1]))
    return Claim(
        system=raw["system"],
        paper=raw["paper"],
        claim=raw["claim"],
        setting=raw["setting"],
        seeds=tuple(seeds),
        outcome=raw["outcome"],
        effect=effect,
        interval=bounds,
        reason=raw["reason"] or "",
        command=raw["command"] or "",
        versions=dict(versions),
        experiment=experiment,
    )


def _expect(right: bool, name: str, wanted: str, came: Any) -> None:
    if not right:
        raise DataError(f"{name} must be {wanted}; it is {came!r}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


COLUMNS = (
    "Room", "System", "Claim", "Setting", "Seeds", "Outcome", "Effect", "Remark", "Experiment",
)  # fmt: skip

HEADER = """\
# Claims ledger

What published methods claim, re-run here with the commands in the table. This page is written by
`polytask claims`; the records behind it lie beside each experiment's results as `claims.json`,
with the versions they ran on.

- **seen**: the interval of the paired differences over seeds lies on the claimed side, and an
  effect large enough to matter is not excluded (for a claim of equality: it lies within the
  margin; of "no worse": above the negative margin).
- **not seen**: the interval excludes an improvement as large as the margin (for a claim of
  equality: it excludes equality; of "no worse": it lies below the negative margin).
- **undecided**: the interval allows both; more seeds would tell.
- **not testable**: this cannot be run here; the remark says why.

Not seen here does not mean that a paper is wrong: the setting differs. Intervals are 95 %
Student t intervals unless the remark says otherwise.
"""


def markdown(claims: Sequence[Claim], experiments: str = "../experiments") -> str:
    """Return the ledger as a Markdown page: what it is, counts per outcome, and one table.

    Rows are sorted by room (in the order of the catalog; systems outside of it come last), system
    and claim. experiments: the folder given to `load`, relative to the page.
    """
    counts = Counter(claim.outcome for claim in claims)
    total = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    noun = "claim" if len(claims) == 1 else "claims"
    table = [list(COLUMNS), ["---"] * len(COLUMNS)]
    table += [_row(claim, experiments) for claim in sorted(claims, key=_place)]
    lines = [f"| {' | '.join(row)} |" for row in table] if claims else []
    return "\n".join([HEADER, f"{len(claims)} {noun}: {total}.", "", *lines]).rstrip() + "\n"


def _place(claim: Claim) -> tuple[int, str, str, str]:
    rank = ROOMS.index(claim.room) if claim.room else len(ROOMS)
    return rank, claim.system.casefold(), claim.claim, claim.experiment


def _row(claim: Claim, experiments: str) -> list[str]:
    effect = "" if claim.effect is None else f"{claim.effect.value:+.3g} {claim.effect.unit}"
    if claim.interval is not None:
        effect += f" [{claim.interval[0]:+.3g}, {claim.interval[1]:+.3g}]"
    folder = PurePosixPath(experiments) / claim.experiment
    link = f"[{_cell(claim.experiment or 'experiments')}]({folder.as_posix().replace(' ', '%20')}/)"
    return [
        _cell(claim.room),
        _cell(claim.system),
        f"{_cell(claim.claim)} ({_cell(claim.paper)})",
        _cell(claim.setting),
        ", ".join(map(str, claim.seeds)),
        claim.outcome,
        _cell(effect),
        _cell(claim.reason),
        link + (f": `{_cell(claim.command)}`" if claim.command else ""),
    ]


def _cell(text: str) -> str:
    """Return `text` as it can stand in a cell: one line, no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
