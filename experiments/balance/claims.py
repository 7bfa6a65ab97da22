"""What this folder's tables say of the claims in README.md.

    python experiments/balance/claims.py

Writes `claims.json` from the tables that are there; a claim whose table is missing has no record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import store

from kept import Table, claim, minus
from polytask.evaluate import Claim
from polytask.evaluate.claims import save

RIVALS = ("pcgrad", "cagrad", "nash-mtl")


def of_paths(table: Table) -> Iterator[Claim]:
    """Aligned-MTL's stability and preset weights, CoBa's convergence, along training."""
    found, aligned = table["methods"], table["methods"]["aligned-mtl"]
    setting = "digits2, every update of 15 epochs"
    for rival in RIVALS:
        other = found[rival]
        conditions = [10 ** fmean(side["log10_condition"]) for side in (aligned, other)]
        yield claim(
            table, "aligned-mtl",
            f"training is more stable than with {rival}: better conditioned gradients", setting,
            minus(other["log10_condition"], aligned["log10_condition"]), "greater", 0.05,
            f"in log10 of the condition number below {rival}",
            reason="mean condition numbers {:.2g} and {:.2g}: there is little to mend".format(
                *conditions
            )
            if max(conditions) < 10
            else "",
        )  # fmt: skip
        yield claim(
            table, "aligned-mtl",
            f"training is more stable than with {rival}: less conflict with the update", setting,
            minus(aligned["least_cosine"], other["least_cosine"]), "greater", 0.05,
            f"in the smallest cosine of the update with a task's gradient over {rival}",
        )  # fmt: skip
        yield claim(
            table, "aligned-mtl",
            f"training is more stable than with {rival}: no task dominates", setting,
            minus(aligned["similarity"], other["similarity"]), "greater", 0.05,
            f"in gradient magnitude similarity over {rival}",
        )  # fmt: skip
    fixed, preset = (
        found[name]["preset_objective"] for name in ("fixed preset", "aligned-mtl preset")
    )
    lower = fmean(found["equal"]["preset_objective"]) < fmean(fixed)
    yield claim(
        table, "aligned-mtl", "reaches the optimum of preset weights (network)",
        "digits2, weights 1/1/3/3, training objective after 15 epochs against descent on the "
        "weighted sum itself",
        [100 * (a - b) / a for a, b in zip(fixed, preset, strict=True)], "no worse", 5.0,
        "% of the objective below fixed weights",
        reason="fixed weights are not at the optimum either: equal weights end lower" * lower,
    )  # fmt: skip
    yield claim(
        table, "coba", "evens out convergence: validation losses",
        "digits2, deviation over tasks of validation loss / loss before training, mean over 15 "
        "epochs",
        minus(found["equal"]["unevenness"], found["coba"]["unevenness"]), "greater", 0.01,
        "in that deviation below equal",
    )  # fmt: skip


def of_preset(table: Table) -> Iterator[Claim]:
    """Aligned-MTL on convex problems with known optimum."""
    settings = table["settings"]
    yield claim(
        table, "aligned-mtl", "reaches the optimum of preset weights (convex)",
        f"{len(table['seeds'])} random problems of {settings['tasks']} quadratic tasks in "
        f"{settings['dimensions']} dimensions, {settings['updates']} updates of gradient descent",
        [-left for left in table["gap_left_percent"]["aligned-mtl"]], "no worse", 1.0,
        "% of the first gap to the optimum (0 is the optimum)",
    )  # fmt: skip


def of_famo_cost(table: Table) -> Iterator[Claim]:
    """FAMO's cost against the number of tasks."""
    ratios = table["ratios"]["famo"]
    yield claim(
        table, "famo", "costs the same whatever the number of tasks",
        "perceptron, processor time of a step over that of equal weights, 40 tasks against 2; "
        "seeds are repetitions",
        minus(ratios["40"], ratios["2"]), "equal", 0.25, "plain steps more at 40 tasks than at 2",
    )  # fmt: skip


def of_convergence(table: Table) -> Iterator[Claim]:
    """CoBa's convergence and validation scores in the comparisons."""
    suites = table["suites"]
    seeds = min((tuple(found["seeds"]) for found in suites.values()), key=len)

    def differences(of: str, one: str, other: str) -> list[float]:
        each = [minus(found[one][of], found[other][of]) for found in suites.values()]
        return [fmean(of_seed) for of_seed in zip(*(d[: len(seeds)] for d in each), strict=True)]

    setting = f"mean over {', '.join(suites)}; hard sharing, each method tuned alike"
    yield claim(
        table, "coba", "evens out convergence: epochs",
        f"deviation over tasks of the epoch of the best validation value, {setting}",
        differences("spread", "equal", "coba"), "greater", 2.0, "% of the epochs below equal",
        seeds=seeds,
    )  # fmt: skip
    yield claim(
        table, "coba", "beats equal weights on validation",
        f"best delta-m on the validation split, {setting}",
        differences("best_score", "coba", "equal"), "greater", 0.5,
        "points of delta-m over equal, validation", seeds=seeds,
        reason="trained on losses of the same split",
    )  # fmt: skip


def of_added(table: Table) -> Iterator[Claim]:
    """Flat regions and IGB against the method alone."""
    suites = table["suites"]
    said = {
        "flat": ("flat-regions", "improves the method it wraps"),
        "igb": ("igb-v1", "adds to gradient balancers"),
    }
    setting = (
        f"delta-m, mean over {', '.join(suites)}; both with the learning rate and decay that the "
        "method alone picked"
    )
    for added, recipes in table["added"].items():
        system, words = said[added]
        every: list[list[float]] = []
        for base, recipe in recipes.items():
            each = []
            for found in suites.values():
                with_it = found["delta_m"][recipe]  # of the first seeds; the base may have more
                each.append(minus(with_it, found["delta_m"][base][: len(with_it)]))
            every.append([fmean(of_seed) for of_seed in zip(*each, strict=True)])
            yield claim(
                table, system, f"{words}: {base}", setting, every[-1], "greater", 0.5,
                f"points of delta-m over {base} alone", seeds=range(len(every[-1])),
            )  # fmt: skip
        means = [fmean(of_seed) for of_seed in zip(*every, strict=True)]
        yield claim(
            table, system, f"{words}: mean of {', '.join(recipes)}", setting, means, "greater", 0.5,
            "points of delta-m over the methods alone", seeds=range(len(means)),
        )  # fmt: skip


def of_modalities(table: Table) -> Iterator[Claim]:
    """FULLER's calibration with two modality branches."""
    found = table["methods"]
    setting = (
        "camvid at 64 x 48 with Sobel edges as second modality, two branches; delta-m against "
        "equal weights"
    )
    wrapped = table["wrapped"]
    calibrated = found[f"{wrapped}+fuller"]["delta_m"]
    for rival, words in (
        (wrapped, "calibration helps a model with two modality branches"),
        (f"{wrapped}+feature-level", "bringing modality branches to one level helps by itself"),
        ("equal", "calibration beats equal weights with two modality branches"),
    ):
        yield claim(
            table, "fuller", words, setting,
            minus(calibrated, found[rival]["delta_m"]), "greater", 0.5,
            f"points of delta-m over {rival}",
        )  # fmt: skip


MAKERS = {
    "paths": of_paths,
    "preset": of_preset,
    "famo_cost": of_famo_cost,
    "convergence": of_convergence,
    "added": of_added,
    "modalities": of_modalities,
}


def made(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that these tables decide."""
    return [
        claim for name, make in MAKERS.items() if name in tables for claim in make(tables[name])
    ]


def main() -> None:
    tables = {name: table for name in MAKERS if (table := store.load(name))}
    save(Path(__file__).parent, made(tables))


if __name__ == "__main__":
    main()
