"""A modality that is missing not at random: MultiModN against parallel fusion.

    python experiments/share/modality_missing.py

Plan: README.md beside this file.

Shapes: B, N = rows, D = numeric columns, F = categorical columns of a modality, W = width of its
features, C = D + F.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor, nn
from trials import Setting, mean_of, shorter, trained, tuned

from polytask.evaluate import Claim
from polytask.fit import Meters, primary, validate
from polytask.recipes import load_suite
from polytask.share import HardSharing, MultiModN, SharedModel
from polytask.suites import Stream, Suite
from polytask.suites.census import CATEGORICAL, NUMERIC, survey
from polytask.suites.encoders import MLP, Standardise, TableEncoder

SEEDS = (0, 1, 2, 3, 4)
SETTINGS = ((1e-3, 1e-2), (3e-3, 1e-2))
ROWS, EPOCHS, BATCH = 24_000, 6, 512
MISSING = 0.8
TASKS = ("degree", "income")
ABOUT_WORK = (
    "class_worker", "det_ind_code", "det_occ_code", "wage_per_hour", "hs_college", "major_ind_code",
    "major_occ_code", "union_member", "unemp_reason", "full_or_part_emp", "own_or_self", "num_emp",
    "weeks_worked", "vet_question", "vet_benefits",
)  # fmt: skip
ABOUT_PERSON = (
    "age", "race", "hisp_origin", "sex", "country_father", "country_mother", "country_self",
    "citizenship",
)  # fmt: skip
WORK = "work"
MODALITIES = ("person", WORK, "household")
PUBLISHED = "multimodn by batches"
MODELS = ("multimodn", "multimodn last", PUBLISHED, "zeros", "imputed")
"""`last`: with work as the last step, after which nothing reads the state but the heads. `by
batches`: a training batch of which one row lacks work passes it by, as in published code."""
PUBLISHED_EPOCHS, PUBLISHED_BATCH = 2, 16
FEATURES, STATE = 32, 64


@dataclass(frozen=True)
class Columns:
    """The columns of one modality, whose rows are (B, C): numbers first, then codes as numbers.

    train_ND: the training rows' numbers. common_F: the commonest code of each other column.
    """

    numeric: tuple[int, ...]
    categorical: tuple[int, ...]
    sizes: tuple[int, ...]
    train_ND: Tensor
    common_F: Tensor

    def encoder(self) -> nn.Module:
        return Branch(self)


class Branch(nn.Module):
    """Rows of a modality (B, C) -> features (B, W)."""

    typical_C: Tensor

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        standardise = Standardise.of(columns.train_ND) if columns.numeric else None
        self.table = TableEncoder(standardise, columns.sizes, (64, FEATURES), dropout=0.1)
        self.numbers, self.width = len(columns.numeric), FEATURES
        typical_C = torch.cat([columns.train_ND.mean(0), columns.common_F])
        self.register_buffer("typical_C", typical_C, persistent=False)

    def forward(self, rows_BC: Tensor) -> Tensor:
        codes_BF = rows_BC[:, self.numbers :].long()
        features_BW: Tensor = self.table(
            {"numeric": rows_BC[:, : self.numbers], "categorical": codes_BF}
        )
        return features_BW


class Branches(nn.Module):
    """The encoders that MultiModN takes its steps from."""

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(dict(branches))


class Fusion(Branches):
    """Parallel fusion: features of all modalities side by side, then one layer.

    impute: whether a missing modality's columns are the typical ones; else its features are 0.
    """

    def __init__(self, branches: Mapping[str, nn.Module], impute: bool) -> None:
        super().__init__(branches)
        self.impute, self.width = impute, STATE
        self.top = MLP(FEATURES * len(branches), (STATE,), norm=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        features = []
        for name, branch in self.branches.items():
            rows_BC, there_B1 = inputs[name], inputs[f"{name}_there"][:, None]
            if self.impute:
                assert isinstance(branch, Branch)
                rows_BC = torch.where(there_B1, rows_BC, branch.typical_C)
            features_BW = branch(rows_BC)
            features.append(features_BW if self.impute else features_BW * there_B1)
        fused_BW: Tensor = self.top(torch.cat(features, 1))
        return fused_BW


@functools.cache
def modalities() -> tuple[Suite, dict[str, Columns]]:
    """Return census with an input per modality, and their columns."""
    suite = shorter(load_suite("census").only(TASKS), ROWS, EPOCHS, BATCH)
    train, sizes = suite.train[0].inputs, survey().sizes
    assert not isinstance(train, Tensor)
    of: dict[str, Columns] = {}
    for name in MODALITIES:
        numeric = tuple(i for i, c in enumerate(NUMERIC) if _modality(c) == name)
        categorical = tuple(i for i, c in enumerate(CATEGORICAL) if _modality(c) == name)
        codes_NF = train["categorical"][:, categorical]
        of[name] = Columns(
            numeric,
            categorical,
            tuple(sizes[i] for i in categorical),
            train["numeric"][:, numeric],
            codes_NF.mode(0).values.float(),
        )

    def parted(stream: Stream) -> Stream:
        assert not isinstance(stream.inputs, Tensor)
        numeric_ND, codes_NF = stream.inputs["numeric"], stream.inputs["categorical"].float()
        parts: dict[str, Tensor] = {}
        for name, c in of.items():
            parts[name] = torch.cat([numeric_ND[:, c.numeric], codes_NF[:, c.categorical]], 1)
            parts[f"{name}_there"] = torch.ones(len(stream), dtype=torch.bool)
        return replace(stream, inputs=parts)

    def every(streams: tuple[Stream, ...]) -> tuple[Stream, ...]:
        return tuple(map(parted, streams))

    made = replace(suite, train=every(suite.train), val=every(suite.val), test=every(suite.test))
    return made, of


def _modality(column: str) -> str:
    if column in ABOUT_WORK:
        return WORK
    return "person" if column in ABOUT_PERSON else "household"


def without(stream: Stream, degree: int | None, seed: int) -> Stream:
    """Return the stream without the work of most rows with this label; None: of no row."""
    if degree is None:
        return stream
    assert not isinstance(stream.inputs, Tensor)
    random = torch.Generator().manual_seed(seed)
    gone_N = torch.rand(len(stream), generator=random) < MISSING
    there_N = ~(gone_N & (stream.targets["degree"] == degree))
    return replace(stream, inputs={**stream.inputs, f"{WORK}_there": there_N})


def built(name: str, suite: Suite, columns: Mapping[str, Columns], seed: int) -> SharedModel:
    """Return a fresh model; its first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = (
            (*(m for m in MODALITIES if m != WORK), WORK) if name.endswith("last") else MODALITIES
        )
        branches = {m: columns[m].encoder() for m in order}
        if name.startswith("multimodn"):
            model = MultiModN.build(Branches(branches), FEATURES, suite.tasks, state=STATE)
            if name == PUBLISHED:
                model.register_forward_pre_hook(whole_batch, with_kwargs=True)
            return model
        fusion = Fusion(branches, impute=name == "imputed")
        return HardSharing.build(fusion, STATE, suite.tasks)


def whole_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model is called with; in training, all rows lack work where one does."""
    inputs, *others = args
    if model.training:
        there_B = inputs[f"{WORK}_there"]
        inputs = {**inputs, f"{WORK}_there": there_B.all().expand_as(there_B)}
    return (inputs, *others), kwargs


def run(name: str, missing: bool, setting: Setting, seed: int) -> dict[str, Any]:
    """Train once; return the validation score and both tasks' AUROC of the three test splits."""
    whole, columns = modalities()
    label = 1 if missing else None
    train, val = (
        tuple(without(s, label, 10 * seed + at) for s in whole.split(split))
        for at, split in enumerate(("train", "val"))
    )
    suite = replace(whole, train=train, val=val)
    if name == PUBLISHED:
        suite = replace(suite, epochs=PUBLISHED_EPOCHS, batch_size=PUBLISHED_BATCH)
    model, record = trained(
        suite, "hard", setting, seed, mean_of, built(name, suite, columns, seed)
    )
    found: dict[str, Any] = {"score": record.best.score}
    for kind, gone in (("same", 1), ("complete", None), ("flipped", 0)):
        test = [without(s, gone, 10 * seed + 2) for s in whole.test]
        values = validate(model, test, Meters(suite.tasks, primary_only=True))
        found[kind] = primary(values, suite.tasks)
    return found


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in MODELS:
        for missing in (True, False) if name in ("multimodn", "zeros") else (True,):
            trained_on = "missing" if missing else "complete"
            found[f"{name}, {trained_on}"] = tuned(
                f"modality_missing/{name.replace(' ', '-')}-{trained_on}",
                SETTINGS[:1] if name == PUBLISHED else SETTINGS,
                SEEDS,
                lambda setting, seed, name=name, missing=missing: run(name, missing, setting, seed),
            )
    KEPT.write("modality_missing", {"seeds": SEEDS, "rows": ROWS, "models": found})


def _of(table: Table, name: str, kind: str, task: str = "degree") -> list[float]:
    return [run[kind][task] for run in table["models"][name]["runs"]]


def _drop(table: Table, name: str) -> list[float]:
    return minus(_of(table, name, "same"), _of(table, name, "flipped"))


def claims(table: Table) -> Iterator[Claim]:
    """MultiModN where a modality was missing by label in training, and where none was."""
    setting = (
        f"census in three modalities, {table['rows']} training rows; work missing for 80 % of the "
        "rows with a degree in training"
    )
    said = {"zeros": "features of 0", "imputed": "imputed columns"}
    for name, step in (("multimodn", "second"), ("multimodn last", "last")):
        mine = _drop(table, f"{name}, missing")
        for rival, words in said.items():
            yield claim(
                table, "multimodn",
                f"survives missing not at random ({step} step) better than fusion with {words}",
                f"{setting}, in test of those without: drop of degree's AUROC",
                minus(_drop(table, f"{rival}, missing"), mine), "greater", 0.05,
                f"of AUROC lost less than parallel fusion with {words}",
            )  # fmt: skip
        yield claim(
            table, "multimodn", f"survives missing not at random ({step} step): no fall of AUROC",
            f"{setting}, in test of those without", [-drop for drop in mine], "no worse", 0.05,
            "of AUROC, flipped test rows over the same pattern as in training",
            reason="steps after the missing one read from the state whether it was made"
            if step == "second"
            else "",
        )  # fmt: skip
    for rival, words in said.items():
        yield claim(
            table, "multimodn", f"is ahead on complete rows after such training: {words}",
            f"{setting}, in test of nobody: AUROC of degree",
            minus(
                _of(table, "multimodn, missing", "complete"),
                _of(table, f"{rival}, missing", "complete"),
            ),
            "greater", 0.01, f"of AUROC over parallel fusion with {words}",
        )  # fmt: skip
    both = {
        name: [
            fmean(pair)
            for pair in zip(*(_of(table, name, "complete", task) for task in TASKS), strict=True)
        ]
        for name in ("multimodn, complete", "zeros, complete")
    }
    yield claim(
        table, "multimodn", "matches parallel fusion where nothing is missing",
        f"census in three modalities, {table['rows']} training rows, mean AUROC of degree, income",
        minus(*both.values()), "no worse", 0.01, "of AUROC over parallel fusion",
    )  # fmt: skip


def section(table: Table) -> str:
    """Return AUROC by what is missing in test."""
    rows = [
        [name, task, *(spread(_of(table, name, kind, task)) for kind in KINDS)]
        for name in table["models"]
        for task in TASKS
    ]
    return grid(
        table,
        "A modality missing by label: AUROC on census",
        ["model, training", "task", *(f"test: {kind}" for kind in KINDS)],
        rows,
        "*same*: work is missing for 80 % of the test rows with a degree, as in *missing* "
        "training; *flipped*: of those without one. *last*: work is the last step. *by batches*: "
        "a training batch of which one row lacks work passes it by, as in published code.",
    )


KINDS = ("same", "complete", "flipped")

if __name__ == "__main__":
    main()
