"""Bias over all impressions: models trained on all of them, and on clicked rows alone.

    python experiments/share/impressions.py

Plan: README.md beside this file.

Shapes: N = rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from trials import Setting, mean_of, trained, tuned

from polytask.evaluate import Claim, against_truth
from polytask.fit import predict
from polytask.recipes import load_suite
from polytask.share import ESMM, SharedModel

SEEDS = (0, 1, 2, 3, 4)
SETTINGS = ((1e-3, 1e-2), (3e-3, 1e-2))
MODELS: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    "alone, clicked": ("clicked", "hard", ("conversion",)),
    "hard, clicked": ("clicked", "hard", None),
    "hard": ("clicks", "hard", None),
    "mmoe": ("clicks", "mmoe", None),
    "esmm": ("clicks", "esmm", None),
    "aitm": ("clicks", "aitm", None),
}
"""Suite, recipe, tasks."""
STEPS = ("click", "conversion", "repeat")
MEASURES = ("ratio", "error", "calibration", "auroc")


def run(name: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Train once; return the validation score and what the test impressions say."""
    suite_name, recipe, tasks = MODELS[name]
    suite = load_suite(suite_name)
    model, record = trained(
        suite if tasks is None else suite.only(tasks), recipe, setting, seed, mean_of
    )
    given_N, so_far = probabilities(name, model)
    return {"score": record.best.score} | measured(given_N, so_far)


def probabilities(name: str, model: SharedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Return p(conversion given click), and p of each step and all before it, of test rows."""
    (test,) = load_suite("clicks").test
    of = {t: out.double().sigmoid().flatten() for t, out in predict(model, test).items()}
    if MODELS[name][0] == "clicked":
        given_N, so_far, product_N = of["conversion"], {}, torch.ones(len(test))
        for step in STEPS if name == "hard, clicked" else ():
            product_N = product_N * of[step]
            so_far[step] = product_N
        return given_N, so_far
    if isinstance(model, ESMM):
        with torch.no_grad():
            logit_N1 = model.eval().conditional(test.inputs, "conversion")
        return logit_N1.double().sigmoid().flatten(), of
    return (of["conversion"] / of["click"]).clamp(max=1.0), of


def measured(given_N: Tensor, so_far: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return bias, calibration and ranking of these probabilities of the test rows."""
    (seen,), (told,) = load_suite("clicked").test, load_suite("clicks").test
    assert seen.truth is not None
    assert told.truth is not None
    label_N = seen.targets["conversion"]
    found: dict[str, Any] = {"given": _against(given_N, seen.truth["conversion"], label_N)}
    for step, p_N in so_far.items():
        found[step] = _against(p_N, told.truth[step], told.targets[step])
    if so_far:
        pairs = pairwise(STEPS)
        wrong_N = torch.stack([so_far[after] > so_far[before] for before, after in pairs]).any(0)
        found["disorder"] = 100 * float(wrong_N.double().mean())
    return found


def _against(p_N: Tensor, truth_N: Tensor, label_N: Tensor) -> dict[str, float]:
    """Return measures of all rows; the AUROC of those with a label."""
    found, there_N = against_truth(p_N, truth_N), ~label_N.isnan()
    auroc = float(binary_auroc(p_N[there_N], label_N[there_N].long()))
    return {
        "ratio": found.ratio,
        "error": found.error,
        "calibration": found.calibration,
        "auroc": auroc,
    }


def limit() -> dict[str, Any]:
    """Return the same of a model that knows all that inputs can tell of the clicked rows."""
    (told,) = load_suite("clicks").test
    truth = told.truth
    assert truth is not None
    return measured(truth["conversion"] / truth["click"], truth)


def main() -> None:
    torch.set_num_threads(1)
    found = {
        name: tuned(
            f"impressions/{name.replace(', ', '-')}",
            SETTINGS,
            SEEDS,
            lambda setting, seed, name=name: run(name, setting, seed),
        )
        for name in MODELS
    }
    KEPT.write("impressions", {"seeds": SEEDS, "limit": limit(), "models": found})


def _of(table: Table, name: str, place: str, measure: str) -> list[float]:
    """Return a measure of every seed; "bias" is the size of the log of the ratio."""
    runs = [run[place] for run in table["models"][name]["runs"]]
    if measure == "bias":
        return [abs(math.log(run["ratio"])) for run in runs]
    return [run[measure] for run in runs]


def claims(table: Table) -> Iterator[Claim]:
    """ESMM against training on clicks, AITM's last step and calibrator."""
    everywhere = "clicks, simulated on census; conversion given click over all test impressions"
    limit = abs(math.log(table["limit"]["given"]["ratio"]))
    words = {
        "bias": ("mean probability", 0.05, "in abs(log(mean p / mean truth))"),
        "calibration": ("calibration", 0.005, "in calibration error"),
        "error": ("error of a row", 0.005, "in mean abs(p - truth)"),
    }
    for rival, said in (
        ("alone, clicked", "a network of clicked rows alone"),
        ("hard, clicked", "an encoder shared with clicks, conversion trained on clicked rows"),
    ):
        for measure, (what, margin, unit) in words.items():
            yield claim(
                table, "esmm",
                f"all impressions remove the bias of training on clicks: {what}, {said}",
                everywhere,
                minus(_of(table, rival, "given", measure), _of(table, "esmm", "given", measure)),
                "greater", margin, f"{unit} below {rival}",
                reason=f"what no input tells leaves {limit:.2f} to a perfect model of either kind"
                if measure == "bias"
                else "",
            )  # fmt: skip
    for words_, place, rival, where in (
        ("ranks conversions of clicks better", "given", "alone, clicked", "clicked test rows"),
        ("ranks clicks with conversion better", "conversion", "hard, clicked", "all test rows"),
    ):
        yield claim(
            table, "esmm", words_, f"clicks, {where}",
            minus(_of(table, "esmm", place, "auroc"), _of(table, rival, place, "auroc")),
            "greater", 0.005, f"of AUROC over {rival}",
        )  # fmt: skip
    yield claim(
        table, "esmm", "is calibrated over all impressions: click with conversion",
        "clicks, all test impressions: 0.005 minus the calibration error",
        [0.005 - error for error in _of(table, "esmm", "conversion", "calibration")],
        "greater", 0.0, "of calibration error below 0.005",
    )  # fmt: skip
    for rival in ("hard", "mmoe"):
        yield claim(
            table, "aitm", f"handing on from step to step gains in the last one: {rival}",
            "clicks, repeat over all test impressions",
            minus(_of(table, "aitm", "repeat", "auroc"), _of(table, rival, "repeat", "auroc")),
            "greater", 0.005, f"of AUROC over {rival}",
        )  # fmt: skip
    for rival in ("hard", "mmoe"):
        disorder = {
            name: [run["disorder"] for run in table["models"][name]["runs"]]
            for name in ("aitm", rival)
        }
        yield claim(
            table, "aitm", f"the calibrator keeps the order of the steps: {rival}",
            "clicks, test rows with a step more probable than the one before",
            minus(disorder[rival], disorder["aitm"]), "greater", 1.0,
            f"% of the rows fewer than {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    """Return the models' bias, calibration and ranking, for both questions."""
    rows = []
    for place, what in (("given", "conversion given click"), ("conversion", "click, conversion")):
        for name, of in table["models"].items():
            if place in of["runs"][0]:
                figures = [spread(_of(table, name, place, measure)) for measure in MEASURES]
                steps = [run.get("disorder") for run in of["runs"]]
                last = f"{spread(steps)}" if place != "given" else ""
                rows.append([what, name, *figures, last])
        of_limit = table["limit"][place]
        rows.append([what, "*limit*", *(f"{of_limit[m]:.4g}" for m in MEASURES), ""])
    head = ["probability", "model", "ratio", "error", "calibration", "AUROC", "disorder, %"]
    return grid(
        table,
        "Clicks and conversions over all impressions",
        head,
        rows,
        "*ratio*: mean probability over mean truth, 1 without bias. *error*: mean abs(p - truth); "
        "*calibration*: the same after averaging within 20 bins. *AUROC*: of rows with a label. "
        "*disorder*: rows with a step more probable than the one before. *limit*: what a model "
        "would say that knows all that inputs tell of the rows it learns from.",
    )


if __name__ == "__main__":
    main()
