"""The command line called in this process, and a small table of a person's own."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polytask.cli import main
from polytask.recipes import load_suite


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error."""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert self.out == ""
        assert self.err.startswith("polytask: ")
        return self.err.removeprefix("polytask: ").rstrip("\n")


Call = Callable[..., Said]


@pytest.fixture
def polytask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """A function: arguments -> what the command said and its exit code. Runs in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["polytask", *map(str, args)])
        load_suite.cache_clear()  # a fresh process would read the files again
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return Said(left.value.code, out, err)

    yield call
    load_suite.cache_clear()


DECLARED = """
tables:
- file: people.csv
  split: {column: part}
  inputs: {x: numeric, y: numeric}
  targets: {sick: binary, dose: regression}
encoder: {width: 8, depth: 1}
batch_size: 32
epochs: 3
"""


def rows(count: int = 96) -> list[dict[str, str]]:
    """Return the cells of a table that can be learned from; every fourth row is val or test."""
    made = []
    for i in range(count):
        x, y = (i * 7 % 23) / 11 - 1, (i * 5 % 19) / 9 - 1
        part = {2: "val", 3: "test"}.get(i % 4, "train")
        sick = str(int(x + y > 0))
        made.append({"x": f"{x:.3f}", "y": f"{y:.3f}", "sick": sick, "dose": f"{x - 2 * y:.3f}"})
        made[-1]["part"] = part
    return made


def write(folder: Path, table: list[dict[str, str]], declared: str = DECLARED) -> Path:
    """Write the table and its declaration; return the declaration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(table[0]), *(",".join(row.values()) for row in table)]
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    (folder / "people.yaml").write_text(declared)
    return folder / "people.yaml"


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write(tmp_path / "data", rows())


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below `root` with its bytes: what must not change when a command fails."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
