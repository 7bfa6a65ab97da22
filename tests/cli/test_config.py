"""The file that `polytask fit` reads: its keys, its types, where paths are relative to."""

from pathlib import Path

import pytest

from polytask.cli.config import Asked, read
from polytask.errors import UsageError


def written(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


def test_every_key(tmp_path: Path):
    asked = read(
        written(
            tmp_path,
            "suite: digits2\nmethod: pcgrad+uniform\ntasks: [left, right]\nout: runs/one\n"
            "settings: {lr: 1e-3, epochs: 4, clip: none, per_task_best: true, precision: bf16}\n",
        )
    )
    assert asked == Asked(
        suite="digits2",
        method="pcgrad+uniform",
        tasks=("left", "right"),
        out=Path("runs/one"),
        settings={
            "lr": 0.001,
            "epochs": 4,
            "clip": None,
            "per_task_best": True,
            "precision": "bf16",
        },
    )


def test_a_suite_alone_is_enough():
    assert read("digits2") == Asked("digits2")


def test_a_file_of_own_data_is_a_suite(tmp_path: Path):
    path = written(tmp_path, "tables: []\n")
    assert read(path) == Asked(path)


def test_own_data_is_looked_for_beside_the_file_that_names_it(tmp_path: Path):
    asked = read(written(tmp_path, "suite: tables/people.yaml\n"))
    assert asked.suite == str(tmp_path / "tables" / "people.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "suite: digits2\nmetod: dwa",
            r"Unknown key of \S+run\.yaml 'metod'\. Did you mean 'method'",
        ),
        ("suite: digits2\nsettings: {epoch: 3}", r"Unknown setting .* Did you mean 'epochs'"),
        ("suite: digits2\nsettings: [lr]", r"settings is \['lr'\]; give a mapping"),
        ("suite: digits2\nsettings: {epochs: '3'}", r"epochs is '3'; give a whole number"),
        ("suite: digits2\nsettings: {epochs: true}", r"epochs is True; give a whole number"),
        ("suite: digits2\nsettings: {lr: fast}", r"lr is 'fast'; give a number"),
        ("suite: digits2\nsettings: {clip: x}", r"clip is 'x'; give a number or none"),
        ("suite: digits2\nsettings: {per_task_best: 1}", r"per_task_best is 1; give true or false"),
        ("suite: digits2\nsettings: {schedule: 1}", r"schedule is 1; give a text"),
        ("suite: digits2\ntasks: left", r"tasks is 'left'; give a list, such as \[left, right\]"),
        ("suite: [digits2", r"run\.yaml is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, said: str):
    with pytest.raises(UsageError, match=said) as raised:
        read(written(tmp_path, text))
    assert "run.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"absent\.yaml cannot be read: No such file"):
        read(str(tmp_path / "absent.yaml"))
