"""tox21, sider, clintox: properties of molecules from their fingerprints (MoleculeNet).

Inputs are Morgan fingerprints (radius 2, 1,024 bits, also called ECFP4) as numbers 0 and 1. In
tox21 not every molecule went through every assay: a label that is missing is not a negative.

Shapes: N = molecules, D = bits.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from polytask.suites import files
from polytask.suites.base import About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import MLP
from polytask.suites.files import DataFile
from polytask.suites.splits import cut, frozen_random, random_split
from polytask.tasks import Binary, Task, TaskSet

BITS = 1024

PROTOCOL = (
    "random 80/20, seed 0; the 20 % are the test split, and one eighth of the 80 % (a tenth of all "
    "molecules) is the validation split"
)
SOURCE = "https://github.com/GLambard/Molecules_Dataset_Collection, originals/"
MOLECULENET = "Wu et al., MoleculeNet, Chemical Science 2018, doi:10.1039/C7SC02664A"
RANDOM_SPLIT = (
    "A random split puts relatives of test molecules into training; scores by scaffold are lower."
)

TOX21 = {
    name: name
    for name in (
        "NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD",
        "NR-PPAR-gamma", "SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53",
    )
}  # fmt: skip
SIDER = {
    "hepatobiliary": "Hepatobiliary disorders",
    "metabolism": "Metabolism and nutrition disorders",
    "product": "Product issues",
    "eye": "Eye disorders",
    "investigations": "Investigations",
    "musculoskeletal": "Musculoskeletal and connective tissue disorders",
    "gastrointestinal": "Gastrointestinal disorders",
    "social": "Social circumstances",
    "immune": "Immune system disorders",
    "reproductive": "Reproductive system and breast disorders",
    "neoplasms": "Neoplasms benign, malignant and unspecified (incl cysts and polyps)",
    "general": "General disorders and administration site conditions",
    "endocrine": "Endocrine disorders",
    "surgical": "Surgical and medical procedures",
    "vascular": "Vascular disorders",
    "blood": "Blood and lymphatic system disorders",
    "skin": "Skin and subcutaneous tissue disorders",
    "congenital": "Congenital, familial and genetic disorders",
    "infections": "Infections and infestations",
    "respiratory": "Respiratory, thoracic and mediastinal disorders",
    "psychiatric": "Psychiatric disorders",
    "renal": "Renal and urinary disorders",
    "pregnancy": "Pregnancy, puerperium and perinatal conditions",
    "ear": "Ear and labyrinth disorders",
    "cardiac": "Cardiac disorders",
    "nervous": "Nervous system disorders",
    "injury": "Injury, poisoning and procedural complications",
}
CLINTOX = {"FDA_APPROVED": "FDA_APPROVED", "CT_TOX": "CT_TOX"}
"""Per suite: the task's name and the source's column."""


def tox21() -> Suite:
    """Return 12 assays of 7,823 molecules, binary, 17 % of the labels missing."""
    return _suite(
        "tox21",
        files.TOX21,
        TOX21,
        About(
            title="Tox21: activity of molecules in 12 toxicity assays",
            source=SOURCE + "tox21.csv",
            licence="MIT (collection); Tox21 is in the public domain",
            citation=f"Tox21 Data Challenge 2014; {MOLECULENET}",
            protocol=PROTOCOL,
        ),
        epochs=15,
        notes=(
            "8 molecules whose SMILES did not parse are left out.",
            "Logistic regression per task (C = 0.05, train alone): mean AUROC 0.808 on this test.",
        ),
    )


def sider() -> Suite:
    """Return 27 classes of side effects of 1,427 medicines, binary, no label missing."""
    return _suite(
        "sider",
        files.SIDER,
        SIDER,
        About(
            title="SIDER: side effects of medicines, by organ class",
            source=SOURCE + "sider.csv",
            licence="MIT (collection); SIDER 4.1 is CC BY-NC-SA 4.0",
            citation=f"Kuhn et al., Nucleic Acids Research 2016, doi:10.1093/nar/gkv1075; "
            f"{MOLECULENET}",
            protocol=PROTOCOL,
        ),
        epochs=25,
        notes=(
            "`product` and `pregnancy` have few positives in a split; their AUROC is rough.",
            "Logistic regression per task (C = 0.02, train alone): mean AUROC 0.642 on this test.",
        ),
    )


def clintox() -> Suite:
    """Return approval and toxicity in clinical trials of 1,480 medicines, binary."""
    return _suite(
        "clintox",
        files.CLINTOX,
        CLINTOX,
        About(
            title="ClinTox: approval of medicines, and toxicity in clinical trials",
            source=SOURCE + "clintox.csv",
            licence="MIT (collection)",
            citation=f"Gayvert, Madhukar & Elemento, Cell Chemical Biology 2016, "
            f"doi:10.1016/j.chembiol.2016.07.023; {MOLECULENET}",
            protocol=PROTOCOL,
        ),
        epochs=25,
        notes=(
            "4 molecules whose SMILES did not parse are left out.",
            "The two tasks are near opposites, and about 1 in 14 medicines is the rare class.",
            "Logistic regression per task (C = 0.05, train alone): mean AUROC 0.856 on this test.",
        ),
    )


def _suite(
    name: str,
    sources: Sequence[DataFile],
    columns: dict[str, str],
    about: About,
    epochs: int,
    notes: tuple[str, ...],
) -> Suite:
    table, fingerprints = sources
    rows = list(csv.DictReader(io.StringIO(files.read_text(table))))
    arrays = np.load(io.BytesIO(files.read(fingerprints)), allow_pickle=False)
    valid_N = torch.from_numpy(arrays["valid"])
    bits_ND = torch.from_numpy(np.unpackbits(arrays["fp"], axis=1)).float()
    targets = {
        task: torch.tensor([float(row[column] or "nan") for row in rows])[valid_N]
        for task, column in columns.items()
    }
    stream = Stream("molecules", bits_ND[valid_N], targets)
    parts = cut(stream, random_split(len(stream), val=0.1, test=0.2, random=frozen_random(0)))
    return make_suite(
        name=name,
        tasks=TaskSet(Task(task, Binary()) for task in columns),
        train=[parts["train"]],
        val=[parts["val"]],
        test=[parts["test"]],
        encoder=_encoder,
        width=256,
        about=about,
        batch_size=128,
        epochs=epochs,
        notes=(*notes, RANDOM_SPLIT),
    )


def _encoder() -> nn.Module:
    # One layer, heavily dropped out: with a few thousand molecules and sparse bits, deeper or
    # less regularised networks score lower on validation.
    return MLP(BITS, (256,), dropout=0.5, input_dropout=0.5)
