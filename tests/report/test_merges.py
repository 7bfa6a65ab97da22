"""What a page says of merges is what the record holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polytask.errors import RunError
from polytask.merge import Maps, Meeting, MergeRecord, MergeResult
from polytask.merge.record import Learned, Measure
from polytask.report import write_merge_report, write_report
from polytask.report.merges import merge_block

MakeMerges = Callable[..., MergeRecord]

RECORD = MergeRecord(
    title="By hand",
    measures={"a": Measure("accuracy", "max", "share"), "b": Measure("accuracy", "max", "share")},
    individual={"a": 0.8, "b": 0.5},
    merges={
        "mean": MergeResult({"a": 0.6, "b": 0.45}),
        "searched": MergeResult(
            {"a": 0.72, "b": 0.5},
            Learned(("x.0.w", "x.0.b", "head"), ((0.1, 0.3), (0.3, 0.5), (1.0, 0.0))),
            (3.0, 2.0),
        ),
    },
    maps=None,
    base={"a": 0.4, "b": 0.25},
    joint={"a": 0.8, "b": 0.55},
)
"""Normalised: mean 75 and 90, searched 90 and 100, base 50 and 50, joint 100 and 110."""


def rows(block: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in block["methods"]}


def test_scores_against_each_task_s_own_model() -> None:
    block = merge_block(RECORD, "run")
    found = rows(block)
    assert list(found) == ["individual", "joint", "base", "searched", "mean"]  # merges: best first
    assert {n: row["kept"] for n, row in found.items()} == {
        "individual": 100, "joint": 105, "base": 50, "searched": 95, "mean": 82.5,
    }  # fmt: skip
    assert [cell["gain"] for cell in found["mean"]["cells"]] == [-25, -10]
    assert found["searched"]["worst"] == {"task": "a", "kept": 90}
    assert {n: row["mean"] for n, row in found.items() if not row["part"]} == {
        "searched": 0.61, "mean": 0.525,
    }  # fmt: skip
    # the mean score is 0.325 at the base and 0.65 at the individual models
    assert [found[n]["way"] for n in ("base", "mean", "individual")] == [0, 61.54, 100]
    assert block["best"] == "searched"
    said = " ".join(block["verdict"]).replace("\u00a0", " ")
    assert "searched keeps 95.0 % of the individual models' scores on average over 2 tasks" in said
    assert "least on a, 90.0 %. For comparison: the base 50.0 % and joint training 105.0 %." in said


def test_lower_is_better_counts_the_other_way_and_zero_has_no_ratio() -> None:
    measures = {"a": Measure("rmse", "min", "mm"), "b": RECORD.measures["b"]}
    individual = {"a": 2.0, "b": 0.0}
    merges = {"m": MergeResult({"a": 2.5, "b": 0.1})}
    made = replace(RECORD, measures=measures, individual=individual, merges=merges)
    (row,) = (r for r in merge_block(made, "x")["methods"] if r["name"] == "m")
    assert [cell["gain"] for cell in row["cells"]] == [-25, None]
    assert (row["kept"], row["left_out"], row["mean"], row["way"]) == (75, ["b"], None, None)


def test_coefficients_are_shown_by_layer_as_means_over_its_tensors() -> None:
    found = merge_block(RECORD, "x")["learned"]
    assert list(found) == ["searched"]
    assert found["searched"]["layers"] == ["x.0", "head"]
    assert found["searched"]["means"] == [[0.2, 0.4], [1, 0]]
    assert found["searched"]["tensors"] == ["x.0.w", "x.0.b", "head"]
    for_all = replace(RECORD.merges["searched"], coefficients=Learned((), ((0.1, 0.2),)))
    made = replace(RECORD, merges={"s": for_all})
    assert merge_block(made, "x")["learned"]["s"]["layers"] == ["all tensors"]


def test_maps_are_packed_in_the_record_s_order() -> None:
    def meeting(name: str, cosines: tuple[float | None, ...]) -> Meeting:
        return Meeting(name, 10, (1.0, 2.0, 3.0), cosines, (0.25, None, 0.5), 0.75)

    made = Maps(("x", "y", "z"), meeting("", (0.5, -0.25, None)), (meeting("l.0", (1, 0, -1)),))
    block = merge_block(replace(RECORD, maps=made), "x")
    whole, layer = block["maps"]["meetings"]
    assert (whole["name"], layer["name"]) == ("whole model", "l.0")
    assert list(base64.b64decode(whole["cosines"])) == [50, 256 - 25, 128]
    assert list(base64.b64decode(layer["conflicts"])) == [25, 128, 50]
    said = " ".join(block["verdict"]).replace("\u00a0", " ")
    assert "Two task vectors have a cosine of 0.12 on average, and opposite signs in 38 %" in said


def test_a_cosine_that_rounds_to_zero_has_no_sign() -> None:
    none = Meeting("", 10, (1.0, 1.0), (-0.004,), (0.5,), 0.5)
    said = merge_block(replace(RECORD, maps=Maps(("x", "y"), none, ())), "x")["verdict"]
    assert "a cosine of 0.00 on average" in said[-1]


def test_a_folder_of_merges_becomes_a_page(tmp_path: Path, make_merges: MakeMerges) -> None:
    made = make_merges()
    made.save(tmp_path / "run")
    out = write_report([tmp_path / "run"], tmp_path / "page.html")
    text = out.read_text()
    assert '"kind":"merge"' in text
    assert len(text) < 250_000
    alone = write_merge_report(made, tmp_path / "alone.html").read_text()
    assert alone == text.replace('"label":"run"', '"label":"Images"')


def test_a_broken_record_is_one_line(tmp_path: Path, make_merges: MakeMerges) -> None:
    path = make_merges().save(tmp_path)
    raw = json.loads(path.read_text())
    del raw["individual"]["mnist"]
    path.write_text(json.dumps(raw))
    with pytest.raises(RunError, match="'individual' has scores of"):
        write_report([tmp_path], tmp_path / "page.html")
