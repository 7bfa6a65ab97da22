"""The written file: complete, small, safe whatever names it holds; bad input is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polytask.errors import RunError, UsageError
from polytask.records import GateUse
from polytask.report import write_report
from polytask.report.experts import pack_experts
from polytask.report.page import embed

from .conftest import TASKS, WITH_EXPERTS, record

Make = Callable[..., Path]
Edit = Callable[[Path, Callable[[dict[str, Any]], None]], Path]

HOSTILE = "</script><b onclick=alert(1)>&{{data}}<!--\u2028"


class Page(HTMLParser):
    """The elements of a page, its scripts, its style and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in self.inside:
            self.inside[self.open][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.inside["script"][0])

    @property
    def policy(self) -> str:
        for tag, attributes in self.elements:
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy":
                return attributes["content"] or ""
        raise AssertionError("no policy")


def page(folders: list[Path], out: Path) -> Page:
    return Page(write_report(folders, out).read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, make_comparison: Make) -> Path:
    return make_comparison(tmp_path / "run", methods=("equal", "dwa"), points=3, probes=2)


def test_the_page_holds_the_result(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    assert write_report([folder], out) == out
    found = page([folder], out)
    raw = json.loads((folder / "result.json").read_text())
    (run,) = found.data["runs"]
    assert run["command"] == raw["command"]
    assert run["methods"][0]["name"] == "single"
    deltas = [method["delta_m"] for method in run["methods"][1:]]
    assert deltas == sorted(deltas, reverse=True)
    for method in run["methods"]:
        for task, cell in zip(run["tasks"], method["cells"], strict=True):
            outcome = raw["methods"][method["name"]]["tasks"][task["name"]]
            assert cell["mean"] == pytest.approx(sum(outcome["values"]) / 3, rel=1e-3)
            assert cell["verdict"] == outcome["verdict"]
    assert set(run["curves"]) == {"single", "equal", "dwa"}
    assert len(run["curves"]["single"]) == 4  # own steps per task
    assert set(run["probes"]) == {"equal", "dwa"}


def test_nothing_points_outside_and_only_the_own_code_may_run(folder: Path, tmp_path: Path) -> None:
    found = page([folder], tmp_path / "report.html")
    addresses = [
        value
        for _, attributes in found.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert addresses == ["data:,", "#main"]
    style, script = found.inside["style"][0], found.inside["script"][1]
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(", script)
    policy = found.policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for text, kind in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_hostile_names_stay_text(tmp_path: Path, make_comparison: Make, edit_result: Edit) -> None:
    folder = make_comparison(tmp_path / "run", tasks=(HOSTILE, "b"), methods=("equal",), points=3)
    edit_result(folder, lambda raw: raw.update(title=HOSTILE))
    plain = page(
        [make_comparison(tmp_path / "plain", tasks=("a", "b"), methods=("equal",), points=3)],
        tmp_path / "plain.html",
    )
    found = page([folder], tmp_path / "report.html")
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert found.data["runs"][0]["tasks"][0]["name"] == HOSTILE
    assert found.inside["title"][0].startswith(HOSTILE)


def test_embedded_json_cannot_end_its_element() -> None:
    text = embed({"a": HOSTILE, "b": [float("nan"), 1.5]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE, "b": [None, 1.5]}


def test_numbers_may_be_null(folder: Path, tmp_path: Path, edit_result: Edit) -> None:
    def blank(raw: dict[str, Any]) -> None:
        method = raw["methods"]["equal"]
        method |= {"delta_m": None, "delta_m_interval": None, "worst": None}
        method["cost"] = dict.fromkeys(method["cost"])
        for outcome in method["tasks"].values():
            outcome |= {"values": [None] * 3, "gains": [None] * 3, "gain": None, "interval": None}

    found = page([edit_result(folder, blank)], tmp_path / "report.html")
    last = found.data["runs"][0]["methods"][-1]
    assert last["name"] == "equal"  # undefined ones come last
    assert last["cells"][0]["mean"] is None
    assert set(last["cost"].values()) == {None}


def test_one_seed_has_no_intervals(tmp_path: Path, make_comparison: Make) -> None:
    folder = make_comparison(tmp_path / "run", seeds=(7,), methods=("equal",), points=3)
    (run,) = page([folder], tmp_path / "report.html").data["runs"]
    assert {cell["interval"] for cell in run["methods"][1]["cells"]} == {None}
    assert {cell["spread"] for cell in run["methods"][1]["cells"]} == {None}


def test_139_tasks_and_6_methods_stay_below_3_mb(tmp_path: Path, make_comparison: Make) -> None:
    folder = make_comparison(
        tmp_path / "run",
        tasks=[f"school {k:03d}" for k in range(139)],
        methods=("equal", "uncertainty", "dwa", "pcgrad", "aligned-mtl", "pcgrad+uniform"),
        seeds=(0,),
        points=100,
        probes=12,
    )
    out = write_report([folder], tmp_path / "report.html")
    assert out.stat().st_size < 3_000_000
    (run,) = Page(out.read_text(encoding="utf-8")).data["runs"]
    assert len(run["curves"]["equal"]["steps"]) >= 20
    assert run["curves"]["equal"]["steps"][-1] == 100 * 20  # thinned, not cut off


def test_a_single_training_has_its_own_page(folder: Path, tmp_path: Path) -> None:
    (run,) = page([folder / "runs" / "dwa-1"], tmp_path / "report.html").data["runs"]
    assert run["kind"] == "fit"
    assert "stopped early" in " ".join(run["verdict"])
    assert [row["task"] for row in run["kept"]] == ["left", "right", "sum", "ink"]
    assert {row["metric"] for row in run["kept"]} == {"accuracy"}
    assert "dwa" in run["curves"]


def test_experts_stand_in_a_grid_per_level(tmp_path: Path, make_comparison: Make) -> None:
    """Shared experts first, then each task's own; what a reader cannot see is no number."""
    folder = make_comparison(tmp_path / "run", methods=("equal", WITH_EXPERTS), points=3, probes=2)
    block = page([folder], tmp_path / "page.html").data["runs"][0]
    assert set(block["experts"]) == {WITH_EXPERTS}
    used = block["experts"][WITH_EXPERTS]
    first, second = used["levels"]
    own = [f"{task}: own 0" for task in TASKS]
    assert first["experts"] == second["experts"] == ["shared 0", "shared 1", *own]
    assert first["readers"] == [*TASKS, "the shared part"]
    assert second["readers"] == list(TASKS)
    for i, row in enumerate(second["mean"]):
        assert [j for j, weight in enumerate(row) if weight is not None] == [0, 1, 2 + i]
        assert sum(weight or 0 for weight in row) == pytest.approx(1, abs=1e-3)
        assert second["own"][i] == row[2 + i]
    assert None not in first["mean"][-1]
    assert used["warnings"] == [{"text": "'left' ignores its own experts.", "seeds": 3}]


def test_an_expert_closed_to_a_task_is_no_number() -> None:
    experts, owners = ("shared", "own", "own"), (None, "a", "b")
    gates = (
        GateUse(0, "a", experts, owners, (0.4, 0.6, 0.0), 0.6, 9),
        GateUse(0, "b", experts, owners, (1.0, 0.0, 0.0), 0.0, 9),
    )
    made = record(random.Random(0), "equal", ("a", "b"))
    packed = pack_experts([replace(made, experts=gates)])
    assert packed is not None
    # b's own is open to it, and it takes nothing of it
    assert packed["levels"][0]["mean"] == [[0.4, 0.6, None], [1, None, 0]]
    assert pack_experts([made]) is None


def test_several_runs_get_names_that_differ(
    folder: Path, tmp_path: Path, make_comparison: Make
) -> None:
    other = make_comparison(tmp_path / "other" / "run", methods=("dwa",), points=3, probes=2)
    third = make_comparison(tmp_path / "third", methods=("dwa",), points=3, probes=2)
    runs = page([folder, other, third], tmp_path / "report.html").data["runs"]
    assert [run["label"] for run in runs] == [str(folder), str(other), "third"]


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, as WCAG 2.2 defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_can_be_read_in_both_themes(folder: Path, tmp_path: Path) -> None:
    style = page([folder], tmp_path / "report.html").inside["style"][0]
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    themes = [{name: shades[k] for name, *shades in found} for k in (0, 1)]
    inks = [f"m{k}" for k in range(8)] + ["ink", "soft", "good", "bad", "link"]
    for theme in themes:
        grounds = dict.fromkeys(inks, ("card",))
        grounds |= {"ink": ("card", "bg", "tint", "mid"), "soft": ("card", "bg", "tint")}
        grounds |= {"good": ("card", "good-tint"), "bad": ("card", "bad-tint")}
        for ink, behind in grounds.items():
            for ground in behind:
                low, high = sorted((luminance(theme[ink]), luminance(theme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# Bad input ----------------------------------------------------------------------------------------


def refused(folder: Path, tmp_path: Path, match: str) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(RunError, match=match) as caught:
        write_report([folder], out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_no_folder_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one run folder"):
        write_report([], tmp_path / "report.html")


def test_a_missing_or_foreign_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        tmp_path,
        "none of result.json .*, record.json .*, merge.json .* and relate.json",
    )


def test_a_truncated_result(folder: Path, tmp_path: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text()[:500])
    refused(folder, tmp_path, "result.json cannot be read as JSON")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw.pop("methods"), "no 'methods'"),
        (lambda raw: raw.update(tasks=[]), "no task"),
        (lambda raw: raw.update(title=5), "expected text, found 5"),
        (lambda raw: raw["tasks"][0].update(direction="up"), "neither max nor min"),
        (lambda raw: raw["methods"]["dwa"]["tasks"].pop("sum"), "'dwa' lacks the task 'sum'"),
        (lambda raw: raw["methods"]["dwa"].update(delta_m="1"), "expected a number, found '1'"),
        (lambda raw: raw["methods"]["dwa"]["tasks"]["sum"].update(verdict="won"), "'won' is none"),
        (lambda raw: raw["methods"]["dwa"]["runs"].update({"0": "../x"}), "outside the folder"),
        (lambda raw: raw.update(methods=[1]), "not the result of a comparison"),
    ],
)
def test_a_result_of_another_shape(
    folder: Path,
    tmp_path: Path,
    edit_result: Edit,
    change: Callable[[dict[str, Any]], None],
    match: str,
) -> None:
    refused(edit_result(folder, change), tmp_path, match)


def test_a_missing_broken_or_foreign_record(folder: Path, tmp_path: Path) -> None:
    record = folder / "runs" / "dwa-1" / "record.json"
    text = record.read_text()
    record.unlink()
    refused(folder, tmp_path, "dwa-1/record.json is missing")
    record.write_text(text[:-200])
    refused(folder, tmp_path, "cannot be read as JSON")
    record.write_text("{}")
    refused(folder, tmp_path, "is not a record of a run")
    record.write_text((folder / "runs" / "single-0-0" / "record.json").read_text())
    refused(folder, tmp_path, "belongs to another comparison")


def test_an_unwritable_place(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="Cannot write"):
        write_report([folder], tmp_path / "report.html")
