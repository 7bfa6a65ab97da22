"""Bad input: one line that says what was expected, what came and what to do; nothing is lost."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polytask import records

from .conftest import DECLARED, Call, contents, rows, write


def refused(polytask: Call, code: int, words: list[str], *args: object) -> None:
    """The command fails with this code and one line that has these words."""
    said = polytask(*args)
    assert said.code == code, said.err
    assert [word for word in words if word not in said.line] == [], said.line


# Names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "tox12"], ["Unknown suite 'tox12'", "Did you mean 'tox21'?"]),
        (["fit", "digit2"], ["Unknown suite 'digit2'", "Did you mean 'digits2'?"]),
        (
            ["compare", "digits2", "--methods", "equal,pcgrat"],
            ["Unknown method 'pcgrat'", "Did you mean 'pcgrad'?", "`polytask methods`"],
        ),
        (["fit", "digits2", "--method", "dwa+unform"], ["'unform'", "Did you mean 'uniform'?"]),
        (
            ["fit", "digits2", "--method", "dwa:temprature=1"],
            ["Unknown setting of dwa 'temprature'", "Did you mean 'temperature'?"],
        ),
        (["fit", "digits2", "--tasks", "left,rigth"], ["'rigth'", "Did you mean 'right'?"]),
        (["compare", "absent.yaml"], ["absent.yaml", "does not exist", "polytask init"]),
        (["init", "absent.csv"], ["absent.csv"]),
    ],
)
def test_unknown_names(polytask: Call, tmp_path: Path, args: list[str], words: list[str]):
    code = 1 if args[0] == "init" else 2  # a missing table is missing data
    refused(polytask, code, words, *args)
    assert contents(tmp_path) == {}


def test_unknown_column(polytask: Call, tmp_path: Path):
    path = write(tmp_path, rows(), DECLARED.replace("dose: regression", "doze: regression"))
    before = contents(tmp_path)
    refused(
        polytask, 2, ["column 'doze'", "Did you mean 'dose'?", "people.csv: x, y"], "compare", path
    )
    assert contents(tmp_path) == before


# Data files


def test_missing_data_file(polytask: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused(
        polytask,
        1,
        [
            "Data file moleculenet/sider.csv.gz is missing",
            f"searched: {tmp_path / 'data'}",
            "Source: GitHub GLambard/Molecules_Dataset_Collection",
            "SHA-256 ebf65c641eaaaf1702e39faaadde886bfc8c5245fa34c4a55087327dabddead7",
            "set POLYTASK_DATA=FOLDER",
        ],
        "compare",
        "sider",
    )


def test_truncated_data_file(
    polytask: Call,
    require_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    names = ["moleculenet/sider.csv.gz", "moleculenet/sider_ecfp4_1024.npz"]
    root = require_data(*names)
    (tmp_path / "moleculenet").mkdir()
    for name in names:
        shutil.copyfile(root / name, tmp_path / name)
    cut = tmp_path / names[0]
    cut.write_bytes(cut.read_bytes()[:-1000])
    before = contents(tmp_path)
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
    refused(
        polytask,
        1,
        [
            str(cut),
            "expected SHA-256 ebf65c641eaaaf17",
            "truncated or changed; replace it from its source: GitHub GLambard",
        ],
        "compare",
        "sider",
    )
    assert contents(tmp_path) == before


# Values of a person's own table


@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("sick", {"": "1"}, ["'sick'", "one class", "'1'"]),
        ("sick", {"": "NA"}, ["'sick'", "only missing labels"]),
        ("dose", {"": ""}, ["'dose'", "missing"]),
        (
            "colour",
            {"train": "red,blue", "test": "green"},
            ["'green'", "'colour'", "never in train"],
        ),
        ("x", {"test": "inf"}, ["column 'x'", "line ", "'inf'", "not a finite number"]),
        (
            "x",
            {"train": "wide"},
            ["column 'x'", "line ", "'wide'", "declare the input as category"],
        ),
        ("dose", {"train": "inf"}, ["column 'dose'", "'inf'", "not a finite number"]),
    ],
)
def test_cells_that_cannot_be_learned_from(
    polytask: Call, tmp_path: Path, column: str, cells: dict[str, str], words: list[str]
):
    table = rows()
    for i, row in enumerate(table):
        choices = cells.get(row["part"], cells.get("", row.get(column, "red,blue"))).split(",")
        row[column] = choices[i // 4 % len(choices)]
    declared = DECLARED
    if column == "colour":
        declared = DECLARED.replace("dose: regression", "dose: regression, colour: multiclass")
    path = write(tmp_path, table, declared)
    before = contents(tmp_path)
    refused(polytask, 1, [*words, "people.csv"] if column != "dose" else words, "compare", path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        # declared with other inputs
        ("{x: numeric}", ["all tables must have the same inputs", "'y' only in 'people'"]),
        ("{x: numeric, y: category}", ["'y' is category in 'more' and numeric in 'people'"]),
        # declared alike, but the file lacks the column
        ("{x: numeric, y: numeric}", ["column 'y'", "more.csv"]),
    ],
)
def test_two_tables_whose_columns_disagree(
    polytask: Call, tmp_path: Path, inputs: str, words: list[str]
):
    declared = DECLARED.replace(
        "encoder:",
        f"- {{file: more.csv, split: {{column: part}}, inputs: {inputs}, "
        "targets: {tired: binary}}\nencoder:",
    )
    path = write(tmp_path, rows(), declared)
    lines = [f"{row['x']},{row['sick']},{row['part']}" for row in rows()]
    (tmp_path / "more.csv").write_text("\n".join(["x,tired,part", *lines]) + "\n")
    before = contents(tmp_path)
    said = polytask("compare", path)
    assert said.code == 2
    spoken = said.line.replace(
        "'y' is numeric in 'people' and category in 'more'",
        "'y' is category in 'more' and numeric in 'people'",
    )
    assert [word for word in words if word not in spoken] == [], said.line
    assert contents(tmp_path) == before


def test_a_loss_that_is_not_finite_names_task_and_step(polytask: Call, people: Path):
    refused(
        polytask,
        1,
        ["At step ", "the loss of task ", "'sick' is ", "expected a finite number", "lower"],
        *("fit", people, "--lr", "1e30"),
    )


def test_a_loss_that_is_not_finite_in_a_comparison_names_the_run(
    polytask: Call, people: Path, monkeypatch: pytest.MonkeyPatch
):
    # The package exports the function `compare`, which hides the module of that name.
    module = importlib.import_module("polytask.recipes.compare")
    monkeypatch.setattr(module, "GRID", ((1e30, 0.0),))
    said = polytask("compare", people, "--methods", "equal", "--tune", 1, "--jobs", 1)
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert "Run single--" in said.err
    assert "--lr1e+30-wd0--s0: At step " in said.err


def test_a_method_that_fails_does_not_end_the_others_but_the_exit_code_tells(
    polytask: Call, people: Path
):
    methods = "fixed:weights=1/2/3,equal"
    said = polytask("compare", people, "--methods", methods, "--tune", 1, "--jobs", 1, "--json")
    assert said.code == 1
    result = json.loads(said.out)
    assert list(result["methods"]) == ["single", "equal"]
    assert "3 weights came for 2 tasks" in result["failed"]["fixed:weights=1/2/3"]
    assert said.err.splitlines()[-1] == (
        "polytask: 1 of 2 methods failed and are left out: fixed:weights=1/2/3. The report says "
        "why; the same command tries again."
    )
    assert "Left out, because they stopped" in Path("runs/people/report.html").read_text()


# Run folders


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_a_folder_that_cannot_be_written(polytask: Call, people: Path, command: str):
    (people.parent / "file").write_text("kept")
    before = contents(people.parent)
    refused(
        polytask,
        1,
        ["Cannot write", "Not a directory", "--out"],
        *(command, people, "--out", people.parent / "file" / "run"),
    )
    assert contents(people.parent) == before


def test_the_folder_of_another_run(polytask: Call, people: Path, tmp_path: Path):
    assert polytask("fit", people, "--out", "run", "--json").code == 0
    before = contents(tmp_path / "run")
    refused(
        polytask,
        1,
        ["run holds another run", "settings", "Give another folder, or delete that one"],
        *("fit", people, "--out", "run", "--epochs", 2),
    )
    refused(
        polytask, 1, ["method", "equal", "dwa"], "fit", people, "--out", "run", "--method", "dwa"
    )
    assert contents(tmp_path / "run") == before


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the disk be full after this many files."""
    done = 0
    sync = os.fsync

    def fsync(file: int) -> None:
        nonlocal done
        done += 1
        if done > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(records.os, "fsync", fsync)


def test_a_full_disk_leaves_a_run_that_goes_on(
    polytask: Call, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit = ("fit", people, "--checkpoint-seconds", 0)
    with monkeypatch.context() as patch:
        full_after(patch, 60)
        refused(polytask, 1, ["No space left", "free some space"], *fit, "--out", "full")
    left = contents(tmp_path / "full")
    assert "checkpoint.json" in left
    assert "record.json" not in left
    assert not [name for name in left if "part" in name]
    step = json.loads(left["checkpoint.json"])["step"]
    assert step > 0
    resumed = polytask(*fit, "--out", "full", "--json")
    whole = polytask(*fit, "--out", "whole", "--json")
    assert resumed.code == whole.code == 0
    assert json.loads(resumed.out)["test"] == json.loads(whole.out)["test"]
    one, other = contents(tmp_path / "full"), contents(tmp_path / "whole")
    assert one["best.safetensors"] == other["best.safetensors"]


def test_a_flipped_byte_in_a_checkpoint(
    polytask: Call, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit = ("fit", people, "--checkpoint-seconds", 0, "--out", "run")
    with monkeypatch.context() as patch:
        full_after(patch, 60)
        assert polytask(*fit).code == 1
    file = tmp_path / "run" / json.loads((tmp_path / "run" / "checkpoint.json").read_text())["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    before = contents(tmp_path / "run")
    refused(
        polytask,
        1,
        [file.name, "damaged", "SHA-256", "Delete run/checkpoint.json to begin this run again"],
        *fit,
    )
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "checkpoint.json").unlink()  # what the text says
    assert polytask(*fit).code == 0


# Ctrl-C


def alive(mark: str) -> list[int]:
    """Return the processes whose environment has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(people: Path, tmp_path: Path):
    mark = f"POLYTASK_TEST={tmp_path}"
    options = ["--methods", "equal", "--seeds", "1", "--tune", "1", "--jobs", "1", "--json"]
    options += ["--epochs", "10", "--checkpoint-seconds", "0.05"]
    command = [sys.executable, "-m", "polytask", "compare", str(people), *options]
    env = dict([*os.environ.items(), tuple(mark.split("="))])

    def start(out: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", out],
            cwd=tmp_path,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    stopped = start("stopped")
    until = time.monotonic() + 60
    while not list((tmp_path / "stopped").rglob("checkpoint.json")):
        assert stopped.poll() is None, stopped.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(alive(mark)) > 1
    begun = time.monotonic()
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=30)
    took = time.monotonic() - begun
    assert (stopped.returncode, out) == (130, "")
    assert err.strip().endswith("Give the same command again to go on from the last checkpoint.")
    assert "Traceback" not in err
    assert alive(mark) == []
    assert took < 2
    assert list((tmp_path / "stopped").rglob("checkpoint.json"))

    results = []
    for folder in ("stopped", "whole"):
        out, err = start(folder).communicate(timeout=120)
        results.append(json.loads(out))
    for name, method in results[1]["methods"].items():
        found = results[0]["methods"][name]
        for task, of_task in method["tasks"].items():
            assert found["tasks"][task]["values"] == of_task["values"]
            assert found["tasks"][task]["gain"] == of_task["gain"]
        assert found["all_metrics"] == method["all_metrics"]
