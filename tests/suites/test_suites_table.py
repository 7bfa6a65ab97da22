"""The table of suites agrees with what it lists, costs nothing to read, knows what is absent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from polytask import suites
from polytask.errors import DataError, UsageError
from polytask.suites import SUITES, SuiteRow, absent, available, load, suite_row, task_names

ROWS = pytest.mark.parametrize("row", SUITES, ids=lambda row: row.name)


def test_reading_the_table_loads_no_suite_and_no_heavy_package() -> None:
    code = (
        "import sys, polytask.suites as s; [(s.available(r), s.task_names(r)) for r in s.SUITES]; "
        "print([m for m in ('polytask.suites.census', 'sklearn', 'scipy', 'pyarrow', 'PIL', "
        "'torchmetrics') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_names_are_unique() -> None:
    assert len({row.name for row in SUITES}) == len(SUITES)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tox21'"):
        load("tox12")


@ROWS
def test_the_row_tells_what_the_suite_is(row: SuiteRow, require_data: Callable[..., Path]) -> None:
    require_data(*map(str, row.files))
    assert available(row), absent(row)
    suite = load(row.name)
    assert suite.name == row.name
    assert suite.tasks.names == task_names(row)


@ROWS
def test_a_suite_without_its_files_is_not_available(
    row: SuiteRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert available(row) == (row.name == "digits2")
    assert len([reason for reason in absent(row) if reason.startswith("file ")]) == len(row.files)


@pytest.mark.parametrize("name", ["tox21", "sider", "clintox"])
def test_loading_without_files_names_the_first_of_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"moleculenet/{name}.csv.gz is missing"):
        load(name)


def test_a_missing_package_names_its_extra() -> None:
    row = replace(suite_row("digits2"), packages=("no_such_package",), extra="images")
    assert not available(row)
    assert absent(row) == ("package no_such_package (pip install 'polytask[images]')",)


def test_every_file_of_every_suite_is_declared_once() -> None:
    # Several suites may be made of one file, but two declarations never speak of one.
    declared = {file for row in SUITES for file in row.files}
    assert len({str(file) for file in declared}) == len(declared)
    assert all(len(set(row.files)) == len(row.files) for row in SUITES)
    assert all(len(file.sha256) == 64 and file.source for file in declared)
    assert all(file.url is None or file.url.startswith("https://") for file in declared)


def test_public_names_exist() -> None:
    assert all(hasattr(suites, name) for name in suites.__all__)
