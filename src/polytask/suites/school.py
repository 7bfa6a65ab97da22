"""school: exam scores of pupils in 139 London schools, one task and one stream per school.

The classic of many small related tasks: 22 to 251 pupils per school, the same 28 inputs (year,
the pupil's group and gender, the school's intake), and a score to predict.
"""

from __future__ import annotations

import io

import torch
from torch import nn

from polytask.suites import files
from polytask.suites.base import SPLITS, About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP, Standardise
from polytask.suites.splits import cut, frozen_random, random_split
from polytask.tasks import Regression, Task, TaskSet

ABOUT = About(
    title="School: exam scores in 139 schools of the Inner London Education Authority",
    source="https://github.com/jiayuzhou/MALSAR, data/school.mat",
    licence="no terms stated by the ILEA; the repository that carries the file is GPL-3",
    citation="Goldstein, Multilevel Modelling of Survey Data, The Statistician 1991, "
    "doi:10.2307/2348496; as tasks: Bakker & Heskes, Task Clustering and Gating for Bayesian "
    "Multitask Learning, JMLR 2003",
    protocol="Per school at random, seed 0: 60 % train, 15 % validation, 25 % test. Training "
    "takes the 60 % that papers train on, so validation comes out of what they test on",
)


def school() -> Suite:
    """Return the suite: 139 streams with 28 inputs; scores in points."""
    from scipy.io import loadmat  # 0.1 s to import

    (file,) = files.SCHOOL
    cells = loadmat(io.BytesIO(files.read(file)))
    random = frozen_random(0)
    splits: dict[Split, list[Stream]] = {split: [] for split in SPLITS}
    for i, (inputs, scores) in enumerate(zip(cells["X"][0], cells["Y"][0], strict=True)):
        name = f"school_{i + 1}"
        target_N = torch.from_numpy(scores).float().squeeze(1)
        stream = Stream(name, torch.from_numpy(inputs).float(), {name: target_N})
        rows = random_split(len(stream), val=0.15, test=0.25, random=random)
        for split, part in cut(stream, rows).items():
            splits[split].append(part)
    pupils_ND = torch.cat([s.inputs for s in splits["train"] if isinstance(s.inputs, torch.Tensor)])

    def encoder() -> nn.Module:
        return nn.Sequential(
            Standardise.of(pupils_ND),
            MLP(28, (64,), dropout=0.25, input_dropout=0.25, norm=False, gain=0.1),
        )

    return make_suite(
        name="school",
        tasks=TaskSet(Task(stream.name, Regression(unit="points")) for stream in splits["train"]),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        encoder=encoder,
        width=64,
        about=ABOUT,
        batch_size=32,
        epochs=40,
        notes=(
            "A school has 13 to 151 training and 6 to 63 test pupils: read the tasks together; "
            "a single school's gain is noise.",
            "Papers report the variance explained over the test pupils of all schools at once; on "
            "this split ridge per school has 0.320 (penalty 20, best on test) or 0.315 (penalty "
            "chosen on validation), one ridge for all schools 0.341.",
            "The last input is the constant 1 of the source; standardised, it is 0.",
            "Inputs are standardised with the pupils of all schools, also for a school alone.",
        ),
    )
