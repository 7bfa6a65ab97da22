"""Blocks: one call for all tasks that stack, the same numbers as one by one, own denominators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import UsageError
from polytask.tasks import (
    IGNORE,
    Binary,
    DenseLabels,
    Multiclass,
    Regression,
    SequenceLabels,
    Task,
    TaskSet,
    blocks,
    losses,
)

TASKS = TaskSet(
    [
        Task("yes", Binary()),
        Task("age", Regression(mean=40.0, scale=12.0)),
        Task("colour", Multiclass(3)),
        Task("sick", Binary()),
        Task("weight", Regression(mean=70.0, scale=15.0)),
        Task("words", SequenceLabels(3)),
        Task("pixels", DenseLabels(3)),
    ]
)
SHAPES = {"words": ((4,), (4, 3)), "pixels": ((2, 3), (3, 2, 3)), "colour": ((), (3,))}


def batch(rows: int, seed: int, missing: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (outputs, raw targets) of all tasks."""
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = {}, {}
    for task in TASKS:
        of_target, of_output = SHAPES.get(task.name, ((), (1,)))
        outputs[task.name] = torch.randn((rows, *of_output), generator=generator)
        shape = (rows, *of_target)
        if isinstance(task.kind, Regression):
            target = 50 + 10 * torch.randn(shape, generator=generator)
        elif isinstance(task.kind, Binary):
            target = (torch.rand(shape, generator=generator) > 0.5).float()
        else:
            target = torch.randint(0, 3, shape, generator=generator)
        gone = torch.rand(shape, generator=generator) < missing
        target[gone] = torch.nan if target.is_floating_point() else IGNORE
        targets[task.name] = target
    return outputs, targets


def test_tasks_of_a_stacking_kind_share_a_block() -> None:
    _, targets = batch(rows=5, seed=0, missing=0.0)
    made = blocks(TASKS, targets)
    assert [block.tasks for block in made] == [
        ("yes", "sick"), ("age", "weight"), ("colour",), ("words",), ("pixels",),
    ]  # fmt: skip
    assert [tuple(block.target.shape) for block in made] == [
        (5, 2), (5, 2), (5,), (5, 4), (5, 2, 3),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), seed=st.integers(0, 2**31), missing=st.sampled_from([0.0, 0.5, 0.9]))
def test_stacked_equals_one_by_one(rows: int, seed: int, missing: float) -> None:
    outputs, targets = batch(rows, seed, missing)
    for block in blocks(TASKS, targets):
        sums_K = block.loss_sums(outputs, block.target)
        assert sums_K.shape == (len(block.tasks),)
        for name, total, count_N in zip(block.tasks, sums_K, block.counts_NK.T, strict=True):
            kind = TASKS.named(name).kind
            alone, count = kind.loss(outputs[name], kind.encode(targets[name]))
            torch.testing.assert_close(total, alone.squeeze())
            assert count_N.sum() == count


def test_a_batch_is_gathered_from_the_prepared_target() -> None:
    """Target rows by index and counts by index give what the batch alone would have given."""
    outputs, targets = batch(rows=20, seed=1, missing=0.4)
    rows = torch.tensor([3, 17, 4, 4, 0])
    here = {name: output[rows] for name, output in outputs.items()}
    direct = losses(TASKS, here, {name: target[rows] for name, target in targets.items()})
    found = {}
    for block in blocks(TASKS, targets):
        means_K = block.loss_sums(here, block.target[rows]) / block.counts_NK[rows].sum(0)
        found.update(zip(block.tasks, means_K.unbind(), strict=True))
    assert set(direct) == set(found)
    for name, value in direct.items():
        torch.testing.assert_close(found[name], value)


def test_139_tasks_cost_one_loss() -> None:
    """The number of operations does not grow with the tasks: it is one call for all of them."""
    counts = []
    for n in (2, 139):
        tasks = TaskSet(Task(f"school {i}", Regression()) for i in range(n))
        outputs = {name: torch.randn(4, 1) for name in tasks.names}
        (block,) = blocks(tasks, {name: torch.randn(4) for name in tasks.names})
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            sums_K = block.loss_sums(outputs, block.target)
        assert sums_K.shape == (n,)
        counts.append(len(profile.events()))
    assert counts[0] == counts[1]


def test_counts_are_small_and_stay_on_the_cpu() -> None:
    _, targets = batch(rows=5, seed=0, missing=0.3)
    for block in (block.to("meta") for block in blocks(TASKS, targets)):
        assert block.target.device.type == "meta"
        assert block.counts_NK.device.type == "cpu"
        one_label = block.tasks[0] not in ("words", "pixels")
        assert block.counts_NK.dtype == (torch.bool if one_label else torch.int32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), kept=st.lists(st.booleans(), min_size=7, max_size=7))
def test_absent_tasks_are_left_out_and_change_nothing(seed: int, kept: list[bool]) -> None:
    """A task whose labels are all missing is absent: not 0, and no part of the others' losses."""
    outputs, targets = batch(rows=6, seed=seed, missing=0.0)
    full = losses(TASKS, outputs, targets)
    for name, keep in zip(TASKS.names, kept, strict=True):
        if not keep:
            missing = torch.nan if targets[name].is_floating_point() else IGNORE
            targets[name] = torch.full_like(targets[name], missing)
    found = losses(TASKS, outputs, targets)
    assert list(found) == [n for n, keep in zip(TASKS.names, kept, strict=True) if keep]
    for name, value in found.items():
        torch.testing.assert_close(value, full[name])


def test_each_task_has_its_own_denominator() -> None:
    """A label less in one task changes that task's mean as a smaller batch would, no other's."""
    outputs, targets = batch(rows=6, seed=4, missing=0.0)
    before = losses(TASKS, outputs, targets)
    targets["age"][2:] = torch.nan
    after = losses(TASKS, outputs, targets)
    of_two = losses(TASKS, {"age": outputs["age"][:2]}, {"age": targets["age"][:2]})
    torch.testing.assert_close(after["age"], of_two["age"])
    assert not torch.isclose(after["age"], before["age"])
    assert all(torch.equal(after[n], before[n]) for n in TASKS.names if n != "age")


def test_tasks_not_asked_for_are_left_out() -> None:
    outputs, targets = batch(rows=3, seed=0, missing=0.0)
    assert list(losses(TASKS, {"sick": outputs["sick"]}, targets)) == ["sick"]
    assert list(losses(TASKS, outputs, {"colour": targets["colour"]})) == ["colour"]


def test_a_row_less_batch_sums_to_zero() -> None:
    """A process without rows of a short last batch still takes part in the sum over processes."""
    outputs, targets = batch(rows=3, seed=0, missing=0.0)
    none = {name: output[:0] for name, output in outputs.items()}
    for block in blocks(TASKS, targets):
        assert torch.equal(block.loss_sums(none, block.target[:0]), torch.zeros(len(block.tasks)))


def test_unknown_names_and_unequal_rows_are_refused() -> None:
    outputs, targets = batch(rows=3, seed=0, missing=0.0)
    with pytest.raises(UsageError, match=r"Unknown task 'yess'\. Did you mean 'yes'\?"):
        losses(TASKS, {"yess": outputs["yes"]}, targets)
    with pytest.raises(UsageError, match="Unknown task 'colours'"):
        blocks(TASKS, {"colours": targets["colour"]})
    with pytest.raises(UsageError, match="same number of rows; got yes 3, age 2"):
        blocks(TASKS, {"yes": targets["yes"], "age": targets["age"][:2]})
