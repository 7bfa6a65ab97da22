"""sarcos: the seven joint torques of a robot arm from its 21 joint positions, speeds and
accelerations (inverse dynamics). One physical system, seven regressions on the same inputs.
"""

from __future__ import annotations

import io

import torch
from torch import nn

from polytask.suites import files
from polytask.suites.base import About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP, Standardise
from polytask.suites.splits import cut, frozen_random, random_split
from polytask.tasks import Regression, Task, TaskSet

INPUTS, JOINTS = 21, 7

ABOUT = About(
    title="SARCOS: inverse dynamics of a robot arm with seven joints",
    source="https://gaussianprocess.org/gpml/data/ (sarcos_inv_test.mat)",
    licence="not stated; published with the book for research",
    citation="Vijayakumar, D'Souza & Schaal, Incremental Online Learning in High Dimensions, "
    "Neural Computation 2005, doi:10.1162/089976605774320557; Rasmussen & Williams, Gaussian "
    "Processes for Machine Learning, MIT Press 2006",
    protocol="The 4,449 rows of the official test part, random 80/20, seed 0; the 20 % are the "
    "test split, and one eighth of the 80 % (a tenth of all rows) is the validation split",
)


def sarcos() -> Suite:
    """Return the suite: 21 inputs, standardised by the encoder; seven torques in N m."""
    from scipy.io import loadmat  # 0.1 s to import

    (file,) = files.SARCOS
    table = loadmat(io.BytesIO(files.read(file)))["sarcos_inv_test"]
    rows_ND = torch.from_numpy(table).float()
    targets = {f"joint_{i + 1}": rows_ND[:, INPUTS + i] for i in range(JOINTS)}
    stream = Stream("arm", rows_ND[:, :INPUTS], targets)
    parts = cut(stream, random_split(len(stream), val=0.1, test=0.2, random=frozen_random(0)))
    train = parts["train"]

    def encoder() -> nn.Module:
        assert isinstance(train.inputs, torch.Tensor)
        return nn.Sequential(Standardise.of(train.inputs), MLP(INPUTS, (256, 128)))

    return make_suite(
        name="sarcos",
        tasks=TaskSet(Task(task, Regression(unit="N m")) for task in targets),
        train=[train],
        val=[parts["val"]],
        test=[parts["test"]],
        encoder=encoder,
        width=128,
        about=ABOUT,
        batch_size=128,
        epochs=60,
        notes=(
            "The rows are the official test part alone (the train part has 44,484 more), so "
            "scores are not comparable with papers that train on all of it.",
            "Rows come from continuous movements: a random split has neighbours on both sides.",
        ),
    )
