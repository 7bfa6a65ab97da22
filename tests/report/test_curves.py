"""What is embedded in a page: means over seeds, thinned lines, packed cosines."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from polytask.records import Probe, Record
from polytask.report.curves import (
    ABSENT,
    CELLS,
    NUMBERS,
    POINTS,
    digits,
    mean,
    pack_lines,
    pack_probes,
    points_per_line,
    probes_per_method,
    seed_mean,
    spread,
    thin,
)


@pytest.fixture
def two_seeds(make_record: Callable[..., Record]) -> list[Record]:
    rng = random.Random(0)
    return [
        make_record(rng, "dwa", ("a", "b"), seed=0, points=4),
        make_record(rng, "dwa", ("a", "b"), seed=1, points=6),
    ]


def test_seed_mean_averages_the_seeds_that_reached_a_step(two_seeds: list[Record]) -> None:
    lines = seed_mean(two_seeds, {"a": "accuracy", "b": "f1"})
    assert lines.steps == (20, 40, 60, 80, 100, 120)
    first = [record.points[0] for record in two_seeds]
    assert lines.train["a"][0] == pytest.approx(sum(p.train["a"] for p in first) / 2)
    assert lines.val["b"][0] == pytest.approx(sum(p.val["b"]["f1"] for p in first) / 2)
    assert lines.weights["b"][-1] == two_seeds[1].points[-1].weights["b"]


def test_seed_mean_leaves_what_was_not_seen_undefined(two_seeds: list[Record]) -> None:
    short = replace(two_seeds[0], points=(replace(two_seeds[0].points[0], train={}),))
    lines = seed_mean([short], {"a": "accuracy", "b": "no-such-metric"})
    assert lines.train["a"] == [None]
    assert lines.val["b"] == [None]


def test_thin_keeps_both_ends_and_the_order() -> None:
    kept = thin(range(1000), 200)
    assert len(kept) == 200
    assert (kept[0], kept[-1]) == (0, 999)
    assert kept == sorted(set(kept))
    assert thin("abc", 5) == list("abc")


def test_pack_lines_thins_all_columns_alike(make_record: Callable[..., Record]) -> None:
    record = make_record(random.Random(0), "equal", ("a",), points=500)
    packed = pack_lines(seed_mean([record], {"a": "accuracy"}), 50)
    assert len(packed["steps"]) == 50
    by_step = {point.step: point for point in record.points}
    for step, loss in zip(packed["steps"], packed["train"][0], strict=True):
        assert loss == pytest.approx(by_step[step].train["a"], rel=1e-3)


@pytest.mark.parametrize("lines", [1, 100, 139 * 20, 139 * 60])
def test_line_budget(lines: int) -> None:
    most = points_per_line(lines)
    assert 20 <= most <= POINTS
    assert most == 20 or lines * most <= NUMBERS


def test_probe_budget() -> None:
    assert probes_per_method(5, 4) == 40
    most = probes_per_method(6, 139)
    assert 2 <= most < 40
    assert most * 6 * 139 * 138 / 2 <= CELLS


def test_cosines_survive_packing_to_two_digits(make_record: Callable[..., Record]) -> None:
    record = make_record(random.Random(0), "equal", ("a", "b", "c"), probes=5)
    packed = pack_probes(record, ("c", "a", "b"), 3)
    assert packed is not None
    assert packed["steps"] == [probe.step for probe in record.probes]
    assert packed["shown"] == [record.probes[k].step for k in (0, 2, 4)]
    cells = [b - 256 if b > 127 else b for b in base64.b64decode(packed["cells"][1])]
    cosines = record.probes[2].cosines
    # Pairs above the diagonal in the order asked for: c-a, c-b, a-b.
    expected = [cosines[2][0], cosines[2][1], cosines[0][1]]
    assert [cell / 100 for cell in cells] == pytest.approx(expected, abs=0.0051)
    assert packed["norms"][0] == [digits(record.probes[k].norms[2]) for k in (0, 2, 4)]
    assert packed["mean"][2] == pytest.approx(sum(expected) / 3, rel=1e-3)  # type: ignore[arg-type]


def test_undefined_cosines_are_left_out_and_not_zero(make_record: Callable[..., Record]) -> None:
    record = make_record(random.Random(0), "equal", ("a", "b", "c"), probes=1)
    rows = ((1.0, -0.5, None), (-0.5, 1.0, None), (None, None, None))
    record = replace(record, probes=(Probe(1, rows, (1.0, 2.0, None)),))
    packed = pack_probes(record, record.tasks, 2)
    assert packed is not None
    cells = [b - 256 if b > 127 else b for b in base64.b64decode(packed["cells"][0])]
    assert cells == [-50, ABSENT, ABSENT]
    assert (packed["mean"], packed["conflict"]) == ([-0.5], [1])
    assert packed["worst"] == {"tasks": ["a", "b"], "cosine": -0.5}
    assert packed["norms"] == [[1], [2], [None]]


def test_no_cosines_for_one_task_or_without_probes(make_record: Callable[..., Record]) -> None:
    rng = random.Random(0)
    assert pack_probes(make_record(rng, "single", ("a",)), ("a",), 2) is None
    assert pack_probes(make_record(rng, "equal", ("a", "b"), probes=0), ("a", "b"), 2) is None


def test_means_and_digits() -> None:
    assert mean([1.0, None, math.nan, 3.0]) == 2.0
    assert mean([None]) is None
    assert spread([1.0, 3.0, None]) == pytest.approx(math.sqrt(2))
    assert spread([1.0]) is None
    assert digits(0.123456) == 0.1235
    assert digits(None) is None
    assert digits(math.inf) is None
    assert isinstance(digits(30.0), int)
