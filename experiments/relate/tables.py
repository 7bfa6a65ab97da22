"""The published tables in which the truth is known: gains of groups, and transfer between tasks.

Files lie below POLYTASK_DATA; their source, licence and commit are named in README.md.

Shapes: T = tasks, G = groups, S = sources, R = runs.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytask.relate import Affinity, Gains

NAN = float("nan")


def root() -> Path:
    """Return the folder of the data sets."""
    return Path(os.environ.get("POLYTASK_DATA", "../shared/data"))


def numbers(name: str, delimiter: str | None = None) -> np.ndarray:
    path = root() / "task_grouping_gains" / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return np.loadtxt(file, delimiter=delimiter)


@dataclass(frozen=True)
class Grouping:
    """Gains over training alone, to choose by (validation) and to score by (test).

    tag: what the authors' TAG says of every group, where they published it.
    """

    name: str
    chosen_by: Gains
    truth: Gains
    tag: Gains | None


def groupings() -> Iterator[Grouping]:
    """Yield every table of gains of groups."""
    for kind in ("", "_alt", "_large", "_small_data"):
        names, val = _standley(f"results{kind}.txt")
        _, test = _standley(f"results{kind}_test.txt")
        title = f"Taskonomy{kind.replace('_', ', ', 1).replace('_', ' ')}"
        yield Grouping(title, Gains(names, *val), Gains(names, *test), None)
    names = tuple(f"series {t}" for t in range(7))
    member_GT = _members(numbers("mtgnet/ETT_ETTm1_x.csv"))
    tables = [numbers(f"mtgnet/ETT_ETTm1_{which}.csv") for which in ("val_y", "y", "TAG_HOA")]
    yield _mtgnet("ETTm1", names, member_GT, tables)
    names = tuple(f"clinical {t}" for t in range(27))
    member_GT = _members(numbers("mtgnet/mimic27_mimic_x.csv.gz"))
    tables = [numbers(f"mtgnet/mimic27_mimic_{w}.csv.gz") for w in ("y_valid", "y_test", "TAGHOA")]
    yield _mtgnet("clinical", names, member_GT, tables)


def _members(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values > 0)


def _mtgnet(
    title: str, names: tuple[str, ...], member_GT: Tensor, tables: list[np.ndarray]
) -> Grouping:
    several = member_GT.sum(1) > 1
    val, test, tag = (
        Gains(names, member_GT[several], torch.from_numpy(t)[several]) for t in tables
    )
    return Grouping(title, val, test, tag)


def _standley(name: str) -> tuple[tuple[str, ...], tuple[Tensor, Tensor]]:
    """Return gains 1 - loss / loss alone of the groups of two or more.

    All five tasks are listed twice, first of all and, with other losses, last of all groups. The
    second is taken, which stands in the order of the other groups.
    """
    lines = (root() / "task_grouping_gains" / "standley" / name).read_text().splitlines()
    rows = [[float(c) if c.strip() else NAN for c in line.split("\t")] for line in lines if line]
    width = max(map(len, rows))
    loss_GT = torch.tensor([row + [NAN] * (width - len(row)) for row in rows]).double()
    member_GT = ~loss_GT.isnan()
    size_G = member_GT.sum(1)
    alone_T = loss_GT[size_G == 1].nan_to_num().sum(0)
    several = size_G > 1
    several[0] = False
    gain_GT = 1 - loss_GT[several] / alone_T
    return tuple(f"task {t}" for t in range(width)), (member_GT[several], gain_GT)


@dataclass(frozen=True)
class Transfer:
    """How well targets are done after sources, higher is better, with what may predict it.

    truth_ST, and guesses by their name (S, T); NaN where not known.
    """

    name: str
    truth_ST: Tensor
    guesses: dict[str, Tensor]


def transfers() -> Iterator[Transfer]:
    """Yield every table of transfer."""
    yield _taskonomy()
    yield _language()
    yield _mmlu()
    yield _flan()


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the lines of a table."""
    with gzip.open(root() / name, "rt") as file:
        return list(csv.DictReader(file))


def elsewhere(truth_ST: Tensor, own: Tensor | None = None) -> Tensor:
    """Return what each source does for the other targets on average: known of a new target too.

    own: bool (S, T), where a source is the target itself; left out of the means.
    """
    scaled_ST = truth_ST.where(~own, torch.full((), NAN).double()) if own is not None else truth_ST
    known_ST = ~scaled_ST.isnan()
    mean_T, count_T = scaled_ST.nanmean(0), known_ST.sum(0).clamp_min(1)
    off_ST = (scaled_ST - mean_T).nan_to_num()
    scaled_ST = off_ST / (off_ST.square().sum(0) / count_T).sqrt().clamp_min(1e-12)
    others_ST = (scaled_ST.sum(1, keepdim=True) - scaled_ST) / (
        known_ST.sum(1, keepdim=True) - known_ST.long()
    ).clamp_min(1)
    return others_ST


def _taskonomy() -> Transfer:
    values = defaultdict(dict)
    for row in rows_of("taskonomy_affinity/taskonomy_affinity.csv.gz"):
        if row["order"] == "1":
            values[row["table"]][row["sources"], row["target"]] = float(row["value"])
    full = values["all_affinities"]
    targets = sorted({t for _, t in full})
    sources = [s for s in sorted({s for s, _ in full}) if s not in ("self", "pixels", "random")]

    def table(name: str) -> Tensor:
        cells = [[values[name].get((s, t), NAN) for t in targets] for s in sources]
        return torch.tensor(cells).double()

    truth_ST = table("all_affinities")
    own = torch.tensor([[s == t for t in targets] for s in sources])
    truth_ST = truth_ST.masked_fill(own, NAN)
    back_ST = torch.tensor([[full.get((t, s), NAN) for t in targets] for s in sources]).double()
    guesses = {
        "the same with 16,000 images": table("all_affinities_16k"),
        "the same with 1,000 images": table("all_affinities_1k"),
        "the other direction": back_ST,
        "the source on other targets": elsewhere(truth_ST),
    }
    return Transfer("Taskonomy, 22 targets", truth_ST, guesses)


def higher_orders() -> dict[str, list[tuple[float, float, float, str]]]:
    """Return of order 2, 3, 4: (measured, mean of its sources alone, best of them, target)."""
    single, several = {}, defaultdict(list)
    for row in rows_of("taskonomy_affinity/taskonomy_affinity.csv.gz"):
        if row["table"] != "all_affinities_16k":
            continue
        if row["order"] == "1":
            single[row["sources"], row["target"]] = float(row["value"])
        elif row["order"] in ("2", "3", "4"):
            several[row["order"]].append(row)
    found = {}
    for order, rows in several.items():
        found[order] = [
            (float(row["value"]), sum(parts) / len(parts), max(parts), row["target"])
            for row in rows
            if all((s, row["target"]) in single for s in row["sources"].split("|"))
            for parts in [[single[s, row["target"]] for s in row["sources"].split("|")]]
        ]
    return found


def _language() -> Transfer:
    """Return the metric's mean over runs; of several metrics of a task the first in order."""
    values = defaultdict(list)
    for row in rows_of("nlp_intermediate_transfer/intermediate_transfer.csv.gz"):
        if row["intermediate"] != "base_results2" and row["tag"] in ("run1", "run2", "run3"):
            key = row["target"], row["metric"]
            if row["metric"] not in ("macro_avg", "micro_avg"):
                values[key].append((row["intermediate"], row["tag"], float(row["value"])))
    metric = {}
    for target, name in sorted(values):
        metric.setdefault(target, name)
    sources = sorted({s for cells in values.values() for s, _, _ in cells})
    targets = [t for t, name in metric.items() if len({s for s, _, _ in values[t, name]}) > 4]

    def table(runs: tuple[str, ...]) -> Tensor:
        cells = torch.full((len(sources), len(targets)), NAN).double()
        for t, target in enumerate(targets):
            for s, source in enumerate(sources):
                seen = [
                    v for i, r, v in values[target, metric[target]] if i == source and r in runs
                ]
                cells[s, t] = sum(seen) / len(seen) if seen else NAN
        return cells

    about = (root() / "nlp_intermediate_transfer" / "task_metadata.csv").read_text().splitlines()
    size = {
        row["task_jiant_name"]: float(row["num_examples"] or "nan") for row in csv.DictReader(about)
    }
    truth_ST = table(("run2", "run3"))
    probing = torch.tensor(
        [t.startswith(("edges", "se-probing", "acceptability")) for t in targets]
    )
    probes_ST = truth_ST.where(probing, torch.full((), NAN).double())
    guesses = {
        "another run of the same": table(("run1",)),
        "the source on other targets": elsewhere(truth_ST),
        "the source on probing tasks": elsewhere(probes_ST).where(~probing, torch.tensor(NAN)),
        "examples of the source": torch.tensor([[size.get(s, NAN)] for s in sources])
        .double()
        .expand(len(sources), len(targets)),
    }
    return Transfer(f"language, {len(targets)} targets", truth_ST, guesses)


def mmlu_runs() -> tuple[tuple[str, ...], Tensor]:
    """Return the 57 subjects and the accuracies (R, T, T) with examples of one for another."""
    rows = rows_of("bento_transfer/mmlu_transfer_acc.csv.gz")
    tasks = tuple(name for name in rows[0] if name not in ("run", "row"))
    acc = torch.zeros(10, len(tasks), len(tasks)).double()
    for row in rows:
        acc[int(row["run"]), int(row["row"])] = torch.tensor(
            [float(row[t]) for t in tasks]
        ).double()
    return tasks, acc


def _guesses(truth_TT: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what a square table says of itself: the other direction, other targets, likeness."""
    own = torch.eye(len(tasks), dtype=torch.bool)
    hidden_TT = truth_TT.masked_fill(own, NAN)
    centred_TT = truth_TT - truth_TT.mean(0)
    alike_TT = -torch.cdist(centred_TT, centred_TT).masked_fill(own, NAN)
    return {
        "the other direction": hidden_TT.T.clone(),
        "the source on other targets": elsewhere(hidden_TT),
        "likeness of what both transfer": alike_TT,
    }


def _mmlu() -> Transfer:
    tasks, acc = mmlu_runs()
    own = torch.eye(len(tasks), dtype=torch.bool)
    truth_TT = acc[5:].mean(0).masked_fill(own, NAN)
    guesses = {"other runs of the same": acc[:5].mean(0), **_guesses(acc[:5].mean(0), tasks)}
    return Transfer("MMLU in context, 57 targets", truth_TT, guesses)


def _flan() -> Transfer:
    rows = rows_of("bento_transfer/flan_transfer_neg_loss.csv.gz")
    tasks = tuple(rows[0])
    values_TT = torch.tensor([[float(row[t]) for t in tasks] for row in rows]).double()
    own = torch.eye(len(tasks), dtype=torch.bool)
    return Transfer("FLAN in context, 66 targets", values_TT.masked_fill(own, NAN),
                    _guesses(values_TT, tasks))  # fmt: skip


def as_affinity(tasks: tuple[str, ...], values_TT: Tensor) -> Affinity:
    """Return a square table as an affinity."""
    return Affinity(tasks, values_TT, torch.full_like(values_TT, NAN), "published")
