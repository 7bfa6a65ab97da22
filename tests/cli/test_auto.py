"""`polytask auto`: tables and page for people, JSON for machines, and what it refuses."""

import json
from pathlib import Path

from .conftest import Call, rows, write

QUICK = ("--epochs", 2, "--jobs", 1, "--tune", 1, "--methods", "uncertainty", "--budget", 1.5)


def test_a_suite_is_searched_for_people_and_for_machines(
    polytask: Call, people: Path, tmp_path: Path
):
    said = polytask("auto", people, *QUICK)
    assert said.code == 0, said.err
    assert "2 tasks served by" in said.out
    assert "served by" in said.out
    assert "models of all tasks, and groups: 1 done" in said.err
    assert "of what every task alone takes by time" in said.out.replace("\n", " ")
    assert said.out.rstrip().endswith("Report: runs/people-auto/report.html")
    page = (tmp_path / "runs" / "people-auto" / "report.html").read_text()
    assert '"kind":"auto"' in page
    again = polytask("auto", people, *QUICK, "--json")
    assert again.err == ""  # it was there
    found = json.loads(again.out)
    assert found == json.loads((tmp_path / "runs" / "people-auto" / "auto.json").read_text())
    assert found["work"] <= found["budget"] == 1.5


def test_what_cannot_be_searched_is_said_in_a_line(polytask: Call, people: Path, tmp_path: Path):
    said = polytask("auto", people, "--budget", 0)
    assert said.code == 2
    assert "budget is 0.0; give a number > 0" in said.line
    declared = people.read_text().replace(", dose: regression", "")
    alone = write(tmp_path / "alone", rows(), declared)
    said = polytask("auto", alone)
    assert said.code == 2
    assert "has one task, so there is nothing to share" in said.line
    small = ("--epochs", 1, "--jobs", 1, "--tune", 1, "--budget", 0.01, "--out", "there")
    assert polytask("auto", people, *small).code == 0
    said = polytask("auto", people, *small, "--methods", "equal")
    assert said.code == 1
    assert "holds another search: its methods" in said.line
