"""census: income, marriage and degree of people, from a survey's categorical and numeric columns.

The tasks follow Ma et al. 2018 (MMoE): income over 50,000 dollars, and never married; the third,
a degree, is made of the education column in the same way.

Shapes: N = people, D = numeric columns, F = categorical columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from polytask.suites import files
from polytask.suites.base import About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import Standardise, TableEncoder
from polytask.suites.fields import Fields
from polytask.suites.splits import frozen_random
from polytask.tasks import Binary, Task, TaskSet

COLUMNS = (
    "age", "class_worker", "det_ind_code", "det_occ_code", "education", "wage_per_hour",
    "hs_college", "marital_stat", "major_ind_code", "major_occ_code", "race", "hisp_origin",
    "sex", "union_member", "unemp_reason", "full_or_part_emp", "capital_gains",
    "capital_losses", "stock_dividends", "tax_filer_stat", "region_prev_res",
    "state_prev_res", "det_hh_fam_stat", "det_hh_summ", "instance_weight", "mig_chg_msa",
    "mig_chg_reg", "mig_move_reg", "mig_same", "mig_prev_sunbelt", "num_emp",
    "fam_under_18", "country_father", "country_mother", "country_self", "citizenship",
    "own_or_self", "vet_question", "vet_benefits", "weeks_worked", "year", "income_50k",
)  # fmt: skip
"""The source's columns in order; the file itself has no header."""
TARGETS = ("income_50k", "marital_stat", "education")
"""What the tasks are made of."""
LEFT_OUT = (*TARGETS, "instance_weight")
"""Columns no input is made of. The weight says how many people a row stands for, not who it is."""
MONEY = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
"""Mostly 0 with a long tail: taken as log(1 + dollars)."""
NUMERIC = ("age", "num_emp", "weeks_worked", *MONEY)
CATEGORICAL = tuple(c for c in COLUMNS if c not in NUMERIC and c not in LEFT_OUT)
DEGREES = {
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
}
TRAIN, VAL = 80_000, 8_000
"""Rows from the start of the file that are not test, and how many of these are validation."""

ABOUT = About(
    title="Census-Income (KDD): three answers of a survey from all others",
    source="https://archive.ics.uci.edu/dataset/117/census+income+kdd (census-income.test)",
    licence="CC BY 4.0 (UCI)",
    citation="Census-Income (KDD), UCI Machine Learning Repository 2000, doi:10.24432/C5N30T; as "
    "tasks: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate "
    "Mixture-of-Experts, KDD 2018, doi:10.1145/3219819.3220007",
    protocol="The 99,762 rows of the official test part: the first 80,000 are for training, 8,000 "
    "of them at random (seed 0) for validation; the other 19,762 are the test split",
)


@dataclass(frozen=True)
class Survey:
    """The survey's people as tensors, and who of them is in which split.

    inputs: "numeric" (N, 7) and "categorical" (N, 31); a category's code is 0 where training
        never saw it. sizes: number of codes of each categorical column.
    targets: of the suite's tasks, (N,).
    """

    inputs: dict[str, Tensor]
    sizes: tuple[int, ...]
    targets: dict[str, Tensor]
    rows: dict[Split, Tensor]

    def encoder(self) -> Callable[[], nn.Module]:
        """Return what builds an encoder of the inputs, to 64 features. It keeps no other row."""
        train_ND, sizes = self.inputs["numeric"][self.rows["train"]], self.sizes
        return lambda: TableEncoder(Standardise.of(train_ND), sizes, (128, 64), dropout=0.1)

    def fields(self) -> Callable[[], nn.Module]:
        """Return what builds an encoder that only embeds and standardises."""
        train_ND, sizes = self.inputs["numeric"][self.rows["train"]], self.sizes
        return lambda: Fields(Standardise.of(train_ND), sizes)


def survey() -> Survey:
    """Return what the data file says."""
    (file,) = files.CENSUS
    # No cell of this very file (its sum is checked) holds a quote or ", ": one split of the whole
    # text takes a fifth of the time of a CSV reader.
    cells = files.read_text(file).strip().replace("\n", ", ").split(", ")
    values = {column: cells[i :: len(COLUMNS)] for i, column in enumerate(COLUMNS)}
    order_N = torch.from_numpy(frozen_random(0).permutation(TRAIN))
    rows: dict[Split, Tensor] = {
        "train": order_N[VAL:].sort().values,
        "val": order_N[:VAL].sort().values,
        "test": torch.arange(TRAIN, len(values["age"])),
    }
    coded = [_codes(values[column], rows["train"]) for column in CATEGORICAL]
    numeric_ND = torch.stack([_numbers(values[c], money=c in MONEY) for c in NUMERIC], dim=1)
    return Survey(
        inputs={"numeric": numeric_ND, "categorical": torch.stack([c for c, _ in coded], dim=1)},
        sizes=tuple(size for _, size in coded),
        targets={
            "income": _says(values["income_50k"], {"50000+."}),
            "never_married": _says(values["marital_stat"], {"Never married"}),
            "degree": _says(values["education"], DEGREES),
        },
        rows=rows,
    )


def census() -> Suite:
    """Return the suite: inputs "numeric" (N, 7) and "categorical" (N, 31), one stream.

    A category's code is 0 where training never saw it.
    """
    read = survey()
    people = Stream("people", read.inputs, read.targets)
    return make_suite(
        name="census",
        tasks=TaskSet(Task(task, Binary()) for task in read.targets),
        train=[people.take(read.rows["train"])],
        val=[people.take(read.rows["val"])],
        test=[people.take(read.rows["test"])],
        encoder=read.encoder(),
        width=64,
        about=ABOUT,
        batch_size=512,
        epochs=8,
        notes=(
            "Education, marital status, income and the instance weight are no inputs.",
            "Household columns all but say who never married: AUROC is near 1 for every model.",
            "The survey repeats: some test rows equal a training row in every input.",
            "Papers use the official parts (199,523 rows to train); these scores differ.",
        ),
        fields=read.fields(),
    )


def _codes(column: Sequence[str], train_N: Tensor) -> tuple[Tensor, int]:
    """Return each row's code and the number of codes; code 0 is for values unseen in train."""
    first_N, first = _firsts(column)
    seen = set(torch.unique(first_N[train_N]).tolist())
    known = sorted(value for value, row in first.items() if row in seen)
    code_N = torch.zeros(len(column), dtype=torch.int64)
    code_N[[first[value] for value in known]] = torch.arange(1, len(known) + 1)
    return code_N[first_N], len(known) + 1


def _numbers(column: Sequence[str], *, money: bool) -> Tensor:
    first_N, first = _firsts(column)
    number_N = torch.zeros(len(column))
    number_N[list(first.values())] = torch.tensor([float(value) for value in first])
    number_N = number_N[first_N]
    return number_N.log1p() if money else number_N


def _says(column: Sequence[str], answers: set[str]) -> Tensor:
    first_N, first = _firsts(column)
    yes_N = torch.zeros(len(column))
    yes_N[[first[value] for value in answers]] = 1.0
    return yes_N[first_N]


def _firsts(column: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Return for each row the first row with its value, and that row for each value.

    Columns repeat few values many times: everything else is done once per value. The look-ups
    run without a line of Python per cell, three times as fast as a comprehension.
    """
    first: dict[str, int] = {}
    rows = map(first.setdefault, column, range(len(column)))
    return torch.from_numpy(np.fromiter(rows, np.int64, len(column))), first
