"""`polytask relate`: tables and page for people, JSON for machines, and what it refuses."""

import json
from pathlib import Path

from .conftest import Call, rows, write

QUICK = ("--seeds", 2, "--epochs", 2, "--jobs", 1)


def test_a_suite_is_related_for_people_and_for_machines(
    polytask: Call, people: Path, tmp_path: Path
):
    said = polytask("relate", people, *QUICK)
    assert said.code == 0, said.err
    for method in ("tag", "gradient-cosine"):
        assert method in said.out
    assert "label-correlation: needs three tasks or more" in said.out
    assert "models of all tasks: 2 done" in said.err
    assert "groups to train together" in said.out
    assert "2 tasks, 2 models of all tasks watched" in said.out
    assert said.out.rstrip().endswith("Report: runs/people-relate/report.html")
    page = (tmp_path / "runs" / "people-relate" / "report.html").read_text()
    assert '"kind":"relate"' in page
    again = polytask("relate", people, *QUICK, "--json")
    assert "2 of them before" in again.err
    found = json.loads(again.out)
    assert found == json.loads((tmp_path / "runs" / "people-relate" / "relate.json").read_text())
    assert found["budget"] == 2  # as many models as there are tasks


def test_what_cannot_be_related_is_said_in_a_line(polytask: Call, people: Path, tmp_path: Path):
    said = polytask("relate", people, "--methods", "cka")
    assert said.code == 2
    assert "'cka' of the room relate needs more than a suite" in said.line
    declared = people.read_text().replace(", dose: regression", "")
    alone = write(tmp_path / "alone", rows(), declared)
    said = polytask("relate", alone)
    assert said.code == 2
    assert "has one task; relating takes two or more" in said.line
    polytask("relate", people, *QUICK, "--out", "there")
    said = polytask("relate", people, *QUICK, "--out", "there", "--method", "pcgrad")
    assert said.code == 1
    assert "relation of tasks" in said.line
    broken = tmp_path / "there" / "relate.json"
    broken.write_text(json.dumps({"tasks": ["a"]}))
    said = polytask("report", "there")
    assert said.code == 1
    assert "is not a relation of tasks" in said.line
