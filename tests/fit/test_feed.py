"""A batch holds the rows the schedule asked for, as if it had been collated row by row."""

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polytask.fit import Batch, Feed
from polytask.fit.data import part_sizes, table
from polytask.mix import Proportional, Schedule, Uniform
from polytask.suites import Stream, Suite
from polytask.tasks import Regression, SequenceLabels, Task, TaskSet


def by_hand(suite: Suite, drawn: list[tuple[int, Tensor]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and encoded targets of the drawn rows as lists, a row and a task at a time."""
    inputs: dict[str, list[Tensor]] = {}
    targets: dict[str, list[Tensor | None]] = {task.name: [] for task in suite.tasks}
    for s, rows in drawn:
        stream = suite.train[s]
        for row in rows.tolist():
            used = None if stream.lengths is None else int(stream.lengths[row])
            parts = (
                {"inputs": stream.inputs} if isinstance(stream.inputs, Tensor) else stream.inputs
            )
            for name, value in parts.items():
                cut = value[row][:used] if name in stream.ragged else value[row]
                inputs.setdefault(name, []).append(cut)
            for task in suite.tasks:
                target = None
                if task.name in stream.targets:
                    target = task.kind.encode(stream.targets[task.name][row : row + 1])[0]
                    target = target[:used] if task.name in stream.ragged else target
                targets[task.name].append(target)
    return inputs, targets


def same(found: Tensor, expected: Tensor | None) -> bool:
    """Whether a row holds what was expected, and behind it, or without it, nothing but missing."""
    missing = found.isnan() if found.is_floating_point() else found == -100
    if expected is None:
        return bool(missing.all())
    if expected.ndim and len(found) > len(expected):
        return bool(missing[len(expected) :].all()) and found[: len(expected)].equal(expected)
    return found.allclose(expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["shared", "apart", "ragged"])
def test_a_batch_is_what_collating_its_rows_one_by_one_gives(tiny: ModuleType, name: str) -> None:
    suite: Suite = {"shared": tiny.shared, "apart": tiny.apart, "ragged": tiny.ragged}[name]()
    mix = Uniform() if len(suite.train) > 1 else Proportional()
    schedule = Schedule(mix, [len(s) for s in suite.train], 9, 3)
    feed = Feed(suite.train, suite.tasks, schedule)
    assert len(feed.tables) == 1, "streams that look alike are one table"
    cursors_S, lengths = schedule.start(), set()
    for step in range(8):
        drawn, after = schedule.rows(step, cursors_S)
        fed, cursors_S = feed.step(step, cursors_S)
        assert cursors_S.equal(after)
        ((batch,),) = fed.micros
        inputs, targets = by_hand(suite, drawn)
        named = {"inputs": batch.inputs} if isinstance(batch.inputs, Tensor) else batch.inputs
        assert named.keys() == inputs.keys()
        for key, rows in inputs.items():
            assert len(named[key]) == len(rows)
            for found, expected in zip(named[key], rows, strict=True):
                used = len(expected) if expected.ndim else None
                assert (found[:used] if expected.ndim else found).equal(expected)
                assert not expected.ndim or not found[used:].any()
        if name == "ragged":
            longest = max(len(row) for row in inputs["words"])
            assert named["words"].shape[1] == longest, "cut to the longest row"
            lengths.add(longest)
        counts: dict[str, float] = {}
        for block, target in zip(batch.blocks, batch.targets, strict=True):
            for k, task in enumerate(block.tasks):
                column = target[:, k] if block.kind.stacks else target
                rows = targets[task]
                assert len(column) == len(rows)
                for found, expected in zip(column, rows, strict=True):
                    assert same(found, expected), task
                labels = [t for t in rows if t is not None]
                n = sum(int(block.kind.present(t).sum()) for t in labels)
                counts |= {task: n} if n else {}
        assert fed.counts == counts
    assert name != "ragged" or len(lengths) > 1


def test_bool_labels_of_one_stream_stay_missing_in_another(tiny: ModuleType) -> None:
    suite = tiny.ragged()
    assert suite.train[0].targets["odd"].dtype == torch.bool
    joined = table(suite.train, suite.tasks)
    (block,) = [b for b in joined.blocks if "odd" in b.tasks]
    odd_N = block.target[:, block.tasks.index("odd")]
    assert odd_N[:20].equal(suite.train[0].targets["odd"].float())
    assert bool(odd_N[20:].isnan().all())


def test_one_stream_is_not_copied(tiny: ModuleType) -> None:
    suite = tiny.shared()
    joined = table(suite.train, suite.tasks)
    assert joined.inputs is suite.train[0].inputs


def test_streams_that_look_unlike_are_batches_of_their_own() -> None:
    wide = Stream("wide", torch.randn(6, 4), {"x": torch.randn(6)})
    flat = Stream("flat", torch.randn(5, 2), {"x": torch.randn(5), "y": torch.randn(5)})
    tasks = TaskSet([Task("x", Regression()), Task("y", Regression())])
    schedule = Schedule(Proportional(), [6, 5], 11, 0)
    fed, _ = Feed([wide, flat], tasks, schedule, 2).step(0, schedule.start())
    assert [len(micro) for micro in fed.micros] == [2, 2]
    assert fed.counts == {"x": 11, "y": 5}
    shapes = [{_rows(batch) for batch in micro} for micro in fed.micros]
    assert shapes == [{(3, 4), (3, 2)}, {(3, 4), (2, 2)}]
    assert [batch.tasks for batch in fed.micros[0]] == [("x",), ("x", "y")]


def _rows(batch: Batch) -> tuple[int, ...]:
    assert isinstance(batch.inputs, Tensor)
    return tuple(batch.inputs.shape)


def test_fewer_rows_than_micro_batches_make_fewer_of_them(tiny: ModuleType) -> None:
    suite = tiny.shared(41)
    schedule = Schedule(Proportional(), [41], 10, 0)
    feed = Feed(suite.train, suite.tasks, schedule, 4)
    cursors_S = schedule.start()
    for step in range(5):
        fed, cursors_S = feed.step(step, cursors_S)
    assert len(fed.micros) == 1
    assert feed.waited > 0


def test_rows_without_words_keep_one_place(tiny: ModuleType) -> None:
    stream = tiny.words(0, "s", 8, 3, ("topic",))
    stream.lengths[:] = 0
    joined = table([stream], tiny.ragged().tasks.only(["topic"]))
    batch = joined.batch(torch.arange(2))
    assert batch.inputs["words"].shape == (2, 1)


def texts(rows: int, longest: int, seed: int) -> Stream:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    there = torch.arange(longest) < lengths[:, None]
    tokens = torch.randint(2, 9, (rows, longest), generator=draw).masked_fill(~there, 0)
    name = f"t{longest}"
    targets = {name: (tokens % 3).masked_fill(~there, -100)}
    return Stream(name, {"tokens": tokens}, targets, ("tokens", name), lengths)


@pytest.mark.parametrize("groups", [1, 2, 3, 20])
def test_rows_in_groups_of_like_length_are_the_same_rows_with_less_padding(groups: int) -> None:
    streams = [texts(20, 4, 0), texts(30, 11, 1)]
    tasks = TaskSet(Task(s.name, SequenceLabels(3)) for s in streams)
    schedule = Schedule(Uniform(), [20, 30], 12, 3)
    feed, whole = (Feed(streams, tasks, schedule, length_groups=g) for g in (groups, 1))
    padded = []
    for found, cursors in (feed.step(2, schedule.start()), whole.step(2, schedule.start())):
        batches = found.micros[0]
        rows = [
            tuple(t.tolist() for t in (tokens[tokens != 0], *labels))
            for batch in batches
            for tokens, *labels in zip(
                batch.inputs["tokens"],
                *(t if t.dim() == 2 else t.flatten(1) for t in batch.targets),
                strict=True,
            )
        ]
        kept = [tuple(tuple(n for n in part if n != -100) for part in row) for row in rows]
        padded.append(
            (sorted(kept), found.counts, sum(b.inputs["tokens"].numel() for b in batches))
        )
        for batch in batches:
            widths = {batch.inputs["tokens"].shape[1], *(t.shape[1] for t in batch.targets)}
            assert len(widths) == 1, "positions and their labels are cut alike"
        assert len(cursors) == 2
    assert padded[0][:2] == padded[1][:2]
    assert padded[0][2] < padded[1][2] if groups > 1 else padded[0][2] == padded[1][2]


@given(st.lists(st.integers(1, 9), min_size=0, max_size=7).map(sorted), st.integers(1, 4))
def test_groups_are_those_of_least_padding(lengths: list[int], groups: int) -> None:
    def cost(sizes: tuple[int, ...] | list[int]) -> int:
        ends = np.cumsum(sizes)
        return sum(n * lengths[end - 1] for n, end in zip(sizes, ends, strict=True) if n)

    found = part_sizes(np.array(lengths, dtype=np.int64), groups)
    every = itertools.product(range(len(lengths) + 1), repeat=groups)
    best = min(cost(sizes) for sizes in every if sum(sizes) == len(lengths))
    assert len(found) == groups
    assert sum(found) == len(lengths)
    assert cost(found) == best
