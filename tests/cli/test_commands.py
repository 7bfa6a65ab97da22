"""Every command: help with examples that work, JSON for machines, exit codes, plain output."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from polytask.catalog import METHODS
from polytask.cli.main import commands
from polytask.suites import SUITES

from .conftest import DECLARED, Call, rows, write

NAMES = list(commands.commands)
COMPARE = ["--methods", "equal", "--seeds", "2", "--tune", "1", "--jobs", "2", "--json"]


def examples(command: click.Command) -> list[str]:
    _, _, text = (command.epilog or "").partition("\n")
    return [line.strip() for line in text.splitlines()[1:]]


def test_the_promised_commands_are_there():
    assert {"suites", "methods", "compare", "fit", "report", "init", "claims"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_examples_on_lines_of_their_own(polytask: Call, name: str):
    said = polytask(name, "--help")
    assert (said.code, said.err) == (0, "")
    given = examples(commands.commands[name])
    assert given
    assert all(f"\n    {line}\n" in said.out for line in given)
    assert any(f"polytask {name}" in line for line in given)
    assert "--json" in said.out


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_accepted(name: str):
    for line in examples(commands.commands[name]):
        words = shlex.split(line)
        words = words[words.index("polytask") + 1 :]
        command = commands.commands[words[0]]
        with command.make_context(words[0], words[1:]) as context:  # parses, runs nothing
            assert context.params


def test_the_overview_is_not_cut_off(polytask: Call):
    said = polytask("--help")
    assert said.code == 0
    assert "..." not in said.out.partition("Commands:")[2]
    assert all(name in said.out for name in NAMES)


def test_no_command_is_wrong_use_and_shows_the_overview(polytask: Call):
    said = polytask()
    assert (said.code, said.out) == (2, "")
    assert "Commands:" in said.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compar"], ["Unknown command 'compar'", "Did you mean 'compare'?", "`polytask --help`"]),
        (["compare", "--epocs", "3"], ["--epocs", "`polytask compare --help`"]),
        (["compare", "--epochs", "few"], ["--epochs", "'few'", "integer"]),
        (["compare", "digits2", "--schedule", "linear"], ["'linear'", "constant", "cosine"]),
        (["compare", "digits2", "--seeds", "0"], ["seeds is 0", "at least 1"]),
        (["compare", "digits2", "--epochs", "0"], ["epochs is 0", ">= 1"]),
        (["compare", "digits2", "--methods", ""], ["No method", "`polytask methods`"]),
        (["compare", "digits2", "--methods", "dwa,dwa"], ["twice", "dwa, dwa"]),
        (["fit"], ["CONFIG", "`polytask fit --help`"]),
        (["fit", "digits2", "--lr", "-1"], ["lr is -1.0", "> 0"]),
        (["report"], ["RUNS"]),
        (["methods", "balanc"], ["Unknown room 'balanc'", "Did you mean 'balance'?"]),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(polytask: Call, args: list[str], words: list[str]):
    said = polytask(*args)
    assert said.code == 2
    assert [word for word in words if word not in said.line] == []


def test_version(polytask: Call):
    said = polytask("--version")
    assert said.code == 0
    assert said.out.startswith("polytask, version ")


def test_suites(polytask: Call):
    listed = json.loads(polytask("suites", "--json").out)
    assert [suite["name"] for suite in listed] == [row.name for row in SUITES]
    digits = listed[0]
    assert digits["tasks"] == ["left", "right", "offset", "overlap"]
    assert digits["available"] is True
    table = polytask("suites").out
    assert all(row.name in table for row in SUITES)
    assert max(map(len, table.splitlines())) <= 100


def test_suites_whose_data_is_absent_say_what_they_lack(polytask: Call, monkeypatch, tmp_path):
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    listed = {suite["name"]: suite for suite in json.loads(polytask("suites", "--json").out)}
    assert listed["digits2"]["available"] is True
    assert listed["sider"]["available"] is False
    assert listed["sider"]["missing"][0] == "file moleculenet/sider.csv.gz"
    assert "absent: file moleculenet/sider.csv.gz" in polytask("suites").out


def test_methods(polytask: Call):
    listed = json.loads(polytask("methods", "--json").out)
    assert [(m["name"], m["room"], m["source"]) for m in listed] == [
        (row.name, row.room, row.source) for row in METHODS
    ]
    rooms = {m["room"] for m in json.loads(polytask("methods", "balance", "--json").out)}
    assert rooms == {"balance"}
    table = polytask("methods").out
    assert all(row.name in table for row in METHODS)
    assert max(map(len, table.splitlines())) <= 100


def test_claims(polytask: Call, tmp_path: Path):
    (tmp_path / "experiments").mkdir()
    said = polytask("claims", "--json", "--experiments", tmp_path / "experiments")
    assert said.code == 0
    assert json.loads(said.out) == []
    assert (tmp_path / "docs" / "claims.md").exists()


def test_init_then_compare(polytask: Call, tmp_path: Path):
    write(tmp_path, rows())
    (tmp_path / "people.yaml").unlink()
    said = polytask("init", "people.csv", "--json")
    assert json.loads(said.out) == {"file": "people.yaml"}
    again = polytask("init", "people.csv")
    assert again.code == 2
    assert "exists and is left as it is" in again.line


def test_fit_by_options_and_by_file(polytask: Call, people: Path, tmp_path: Path):
    said = polytask("fit", people, "--method", "dwa", "--seed", 3, "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert found["folder"] == "runs/people-dwa-s3"
    assert found["record"]["method"] == "dwa"
    assert found["record"]["seed"] == 3
    assert set(found["test"]) == {"sick", "dose"}
    (people.parent / "run.yaml").write_text(
        "suite: people.yaml\nmethod: dwa\ntasks: [dose]\nout: filed\n"
        "settings: {seed: 5, lr: 2e-3}\n"
    )
    filed = json.loads(polytask("fit", people.parent / "run.yaml", "--seed", 3, "--json").out)
    assert filed["folder"] == "filed"
    assert filed["record"]["tasks"] == ["dose"]
    settings = filed["record"]["settings"]
    assert settings["seed"] == 3, "an option wins over the file"
    assert (settings["lr"], settings["batch_size"], settings["epochs"]) == (0.002, 32, 3)
    for_people = polytask("fit", people, "--method", "dwa", "--seed", 3)
    assert "Run: runs/people-dwa-s3" in for_people.out


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A comparison by the real command, in a process of its own; its folder is `runs/people`."""
    folder = tmp_path_factory.mktemp("compared")
    write(folder, rows())
    command = [sys.executable, "-m", "polytask", "compare", "people.yaml", *COMPARE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return folder, done


def test_compare_json_is_one_object_and_the_log_has_a_line_per_phase(compared):
    folder, done = compared
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "runs" / "people" / "result.json").read_text())
    assert result["suite"] == "people"
    assert list(result["methods"]) == ["single", "equal"]
    assert result["command"] == shlex.join(["polytask", "compare", "people.yaml", *COMPARE])
    found = result["methods"]["equal"]["tasks"]["dose"]
    assert {"metric", "values", "gain", "interval", "verdict"} <= set(found)
    assert len(found["values"]) == 2
    lines = done.stderr.splitlines()
    for phase in ("single-task models: tuning: 2 done", "methods: tuning: 1 done",
                  "other seeds: 3 done", "test split: 6 done"):  # fmt: skip
        assert sum(phase in line for line in lines) == 1
    assert (folder / "runs" / "people" / "report.html").exists()


def test_what_people_read_after_compare_and_report(polytask: Call, compared, tmp_path: Path):
    folder, _ = compared
    for path in ("runs", "people.csv", "people.yaml"):
        source = folder / path
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / path)
    said = polytask("compare", "people.yaml", *COMPARE[:-1])
    assert said.code == 0
    for words in ("delta-m", "worst task", "± ", "AUROC ↑", "(target units)", "Why, for equal",
                  "Report: runs/people/report.html", "Licence: not stated"):  # fmt: skip
        assert words in said.out
    boxes = [line for line in said.out.splitlines() if not line.startswith(("Data:", "Report:"))]
    assert max(map(len, boxes)) <= 100
    page = json.loads(polytask("report", "runs/people", "--out", "page.html", "--json").out)
    assert page == {"report": "page.html"}
    assert (tmp_path / "page.html").read_text().startswith("<!")
    assert polytask("report", "data").code == 1


def test_torchrun_gives_what_one_process_gives(polytask: Call, tmp_path: Path):
    """As the help of `fit` shows it. Without dropout, whose draws are each process's own."""
    write(tmp_path, rows(), DECLARED.replace("depth: 1", "depth: 1, dropout: 0"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "polytask", "fit", "people.yaml", "--json", "--out", "two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # one object: only one of the processes speaks
    one = json.loads(polytask("fit", "people.yaml", "--json", "--out", "one").out)
    assert two["record"]["best"]["step"] == one["record"]["best"]["step"]
    for task, metrics in one["test"].items():
        assert two["test"][task] == pytest.approx(metrics, rel=1e-4)
