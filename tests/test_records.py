"""Records come back as they were, and no failed write harms what was there before."""

import errno
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from polytask.errors import RunError
from polytask.records import (
    Cost,
    Point,
    Probe,
    Record,
    file_name,
    read_json,
    to_json,
    together,
    write_atomic,
)

POINT = Point(
    step=10,
    epoch=1,
    seconds=0.5,
    train={"left": 0.25},
    val={"left": {"accuracy": 0.9}, "right": {"auroc": 0.8, "f1": 0.1}},
    weights={"left": 1.0},
    score=1.5,
)
RECORD = Record(
    suite="digits2",
    method="pcgrad",
    tasks=("left", "right"),
    seed=3,
    settings={"lr": 0.001, "hidden": [8, 8], "mix": "uniform"},
    points=(POINT, replace(POINT, step=20)),
    probes=(Probe(10, ((1.0, -0.5), (-0.5, None)), (2.0, None)),),
    best=POINT,
    best_per_task={"left": (10, 0.9), "right": (20, 0.8)},
    stopped="patience",
    cost=Cost(1.5, 0.5, 20, 100, 80, None, 0.01),
    engine="rows",
    versions={"torch": "2.13.0"},
)


def test_a_record_comes_back_equal(tmp_path):
    path = tmp_path / "deep" / "record.json"
    RECORD.save(path)
    assert Record.load(path) == RECORD


def test_what_was_nan_or_infinite_comes_back_as_nan_and_stays_a_number(tmp_path):
    point = replace(
        POINT,
        train={"left": math.inf},
        val={"left": {"accuracy": math.nan}},
        weights={"left": -math.inf},
        score=math.nan,
    )
    path = tmp_path / "record.json"
    replace(RECORD, points=(point,), best=point, best_per_task={"left": (10, math.nan)}).save(path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    back = Record.load(path)
    for read in (back.points[0], back.best):
        numbers = [
            read.train["left"],
            read.val["left"]["accuracy"],
            read.weights["left"],
            read.score,
        ]
        assert all(isinstance(number, float) and math.isnan(number) for number in numbers)
    assert back.best_per_task["left"][0] == 10
    assert math.isnan(back.best_per_task["left"][1])
    assert back.cost.peak_memory is None  # null where the field itself may be None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read as JSON"),
        (lambda text: "", "cannot be read as JSON"),
        (lambda text: "[]", "not a record of a run"),
        (lambda text: '{"points": []}', "not a record of a run"),
        (lambda text: text.replace('"stopped"', '"stoped"'), "not a record of a run"),
        (lambda text: text.replace('"score": 1.5', '"score": "high"'), "not a record of a run"),
    ],
)
def test_a_broken_record_is_named(tmp_path, harm, said):
    path = tmp_path / "record.json"
    RECORD.save(path)
    path.write_text(harm(path.read_text()))
    with pytest.raises(RunError, match=said) as caught:
        Record.load(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(RunError, match=r"is missing; is .* the folder of a run"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RunError, match=r"record\.json cannot be read as JSON"):
        read_json(path)


def test_to_json_knows_paths_tuples_and_keys_that_are_numbers():
    assert to_json({1: (Path("a/b"), math.nan)}) == {"1": ["a/b", None]}


def test_a_file_name_is_plain_whatever_the_task_is_called_and_differs_where_names_do():
    assert file_name("SR-p53_v1.0") == "SR-p53_v1.0"
    assert file_name("a/b c:é%") == "a%2Fb%20c%3A%C3%A9%25"
    names = ["a/b", "a%2Fb", "a b", "a_b", "ä", "a"]
    assert len({file_name(name) for name in names}) == len(names)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, call):
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(RunError) as caught:
        write_atomic(path, b"new" * 1000)
    assert str(caught.value) == (
        f"Cannot write {path}: No space left on device. What was there before is untouched; "
        "free some space or choose another folder with --out."
    )
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["record.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_is_really_full_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    open_as_told = Path.open
    monkeypatch.setattr(Path, "open", lambda *_: open_as_told(Path("/dev/full"), "wb"))
    with pytest.raises(RunError, match="No space left on device"):
        write_atomic(path, b"new")
    assert names_in(tmp_path) == []


def test_ctrl_c_while_writing_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["record.json"]


def test_a_folder_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunError, match=r"Cannot write .*record\.json: .*choose another folder"):
        write_atomic(tmp_path / "runs" / "one" / "record.json", b"new")
    assert (tmp_path / "runs").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_reported(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            write_atomic(tmp_path / "record.json", b"new")
    finally:
        tmp_path.chmod(0o700)


def test_readers_among_many_writers_only_ever_see_whole_files(tmp_path):
    path = tmp_path / "record.json"
    contents = [bytes([65 + i]) * 50_000 for i in range(8)]
    write_atomic(path, contents[0])
    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write_atomic, path, content) for content in contents * 5]
        while not all(write.done() for write in writes):
            assert path.read_bytes() in contents
        for write in writes:
            write.result()
    assert path.read_bytes() in contents
    assert names_in(tmp_path) == ["record.json"]


def test_versions_of_runs_made_apart_are_all_named():
    made = [{"torch": "2.13.0", "python": "3.11"}, {"torch": "2.11.0", "python": "3.11"}]
    assert together(made) == {"torch": "2.11.0, 2.13.0", "python": "3.11"}
    assert together([]) == {}
