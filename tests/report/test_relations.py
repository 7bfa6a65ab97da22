"""What the page says of a relation of tasks is what its file holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from polytask.errors import RunError
from polytask.report import write_report
from polytask.report.relations import read_related, relations_block

from .conftest import relation


def test_the_block_holds_the_tables_the_groups_and_what_was_left_out(tmp_path: Path) -> None:
    relation(tmp_path, ("a", "b", "c"))
    block = relations_block(read_related(tmp_path), "here")
    assert (block["kind"], block["label"], block["best"]) == ("relate", "here", None)
    tag = block["relations"]["tag"]
    assert tag["values"][0] == [0, 0.5, None]
    assert tag["errors"][0][1] == 0.1
    assert [groups["budget"] for groups in tag["groups"]] == [1, 2]
    assert tag["groups"][1]["groups"] == [["a", "b"], ["b", "c"]]
    assert tag["groups"][1]["served"] == [["a", "b"], ["c"]]
    assert block["verdict"][0] == (
        "By tag, training a helps b most; with up to 2 models: a and b; c."
    )
    assert block["left_out"] == {"label-correlation": "needs two tasks"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw["methods"]["tag"]["together"].pop(),
        lambda raw: raw.pop("tasks"),
        lambda raw: raw["methods"]["tag"]["groups"][0].pop("serve"),
        lambda raw: raw.update(methods=[]),
    ],
)
def test_a_file_that_is_something_else_is_said_to_be(tmp_path: Path, spoil: Any) -> None:
    relation(tmp_path, ("a", "b", "c"))
    path = tmp_path / "relate.json"
    raw = json.loads(path.read_text())
    spoil(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(RunError, match="is not a relation of tasks"):
        write_report([tmp_path], tmp_path / "page.html")
