"""Broken data is refused before training, naming split, stream and column; kinds learn on train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import DataError, UsageError
from polytask.suites import About, Stream
from polytask.suites.check import fitted, make_suite
from polytask.tasks import IGNORE, Binary, Regression, SequenceLabels, Task, TaskSet

NAN = float("nan")
TASKS = TaskSet([Task("size", Regression()), Task("old", Binary())])


def stream(name: str = "people", **targets: list[float]) -> Stream:
    targets = targets or {"size": [1.0, 3.0, 5.0], "old": [0.0, 1.0, NAN]}
    tensors = {task: torch.tensor(values) for task, values in targets.items()}
    rows = len(next(iter(tensors.values())))
    return Stream(name, torch.arange(2.0 * rows).reshape(rows, 2), tensors)


def fit(*train: Stream, val: Stream | None = None, test: Stream | None = None) -> TaskSet:
    return fitted(TASKS, train, [val or stream()], [test or stream()])


def test_a_kind_learns_from_the_training_labels_of_every_stream_and_of_no_other_split() -> None:
    first, second = stream("a", size=[1.0, 3.0], old=[0.0, 1.0]), stream("b", size=[NAN, 8.0])
    far_away = stream(size=[1000.0, 2000.0], old=[0.0, 1.0])
    kind = fit(first, second, val=far_away, test=far_away).named("size").kind
    assert isinstance(kind, Regression)
    assert kind.mean == pytest.approx(4.0)  # of 1, 3 and 8
    assert kind.scale == pytest.approx((26 / 3) ** 0.5)


def test_make_suite_keeps_its_parts_and_fits_the_tasks() -> None:
    about = About("t", "s", "l", "c", "p")
    suite = make_suite(
        name="own", tasks=TASKS, train=[stream()], val=[stream()], test=[stream()],
        encoder=nn.Identity, width=2, about=about, batch_size=3, epochs=4, notes=("n",),
    )  # fmt: skip
    assert suite.tasks == fit(stream())
    assert (suite.name, suite.width, suite.batch_size, suite.epochs) == ("own", 2, 3, 4)
    assert suite.about is about
    assert suite.notes == ("n",)


def with_inputs(inputs: Tensor | dict[str, Tensor]) -> Stream:
    return replace(stream(), inputs=inputs)


def holed(value: float) -> Tensor:
    inputs = torch.zeros(3, 2)
    inputs[1, 1] = value
    return inputs


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (with_inputs(holed(NAN)), "'people' of train: 1 values of input 'inputs' are not finite"),
        (with_inputs(holed(float("inf"))), "first in row 1, column 1"),
        (with_inputs({"age": holed(NAN)}), "input 'age'"),
        (with_inputs(torch.zeros(2, 2)), "input inputs 2, target size 3, target old 3"),
        (stream(size=[1.0, 2.0], old=[1.0]), "target size 2, target old 1"),
        (stream(size=[], old=[]), "'people' of train has no rows"),
        (replace(stream(), targets={}), "at least one input and one target"),
        (replace(stream(), ragged=("inputs",)), "pads inputs but has no lengths"),
        (
            replace(stream(), ragged=("words",), lengths=torch.ones(3)),
            "pads 'words', which is neither an input nor a target",
        ),
        (stream(size=[1.0, 2.0]), "Task 'old': no stream of train has targets"),
        (with_inputs(torch.zeros(3, 4)), "inputs: float32 (rows, 2) and float32 (rows, 4)"),
        (with_inputs({"age": torch.zeros(3)}), "age: absent and float32 (rows)"),
        (with_inputs(torch.zeros(3, 2, dtype=torch.int64)), "float32 (rows, 2) and int64"),
    ],
)
def test_broken_training_data_is_refused(broken: Stream, told: str) -> None:
    with pytest.raises(DataError) as caught:
        fit(broken)
    assert told in str(caught.value)


def test_large_finite_inputs_are_taken() -> None:
    fit(with_inputs(torch.full((3, 2), torch.finfo(torch.float32).max)))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_task_without_a_label_in_a_split_is_refused(split: str) -> None:
    unlabelled = stream(size=[1.0, 2.0], old=[NAN, NAN])
    with pytest.raises(DataError, match=f"'old': every label of {split} is missing"):
        fit(stream(), **{split: unlabelled})
    absent = stream(size=[1.0, 2.0])
    with pytest.raises(DataError, match=f"'old': no stream of {split} has targets"):
        fit(stream(), **{split: absent})


def test_what_a_kind_refuses_is_passed_on() -> None:
    with pytest.raises(DataError, match="'old'"):
        fit(stream(size=[1.0, 2.0], old=[1.0, 1.0]))


def test_an_unknown_target_names_the_nearest_task() -> None:
    with pytest.raises(UsageError, match="Did you mean 'size'"):
        fit(stream(sizes=[1.0, 2.0], old=[1.0, 0.0]))


def test_two_streams_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="differing names"):
        fit(stream(), stream())


def test_sequences_of_differing_length_are_joined_as_missing() -> None:
    def words(name: str, labels: list[list[int]]) -> Stream:
        target = torch.tensor(labels)
        tokens = torch.zeros_like(target)
        lengths = torch.full((len(target),), target.shape[1])
        return Stream(
            name, {"tokens": tokens}, {"tags": target}, ragged=("tokens", "tags"), lengths=lengths
        )

    tasks = TaskSet([Task("tags", SequenceLabels(3))])
    short, long = words("short", [[0, 1]]), words("long", [[2, 0, 1, IGNORE]])
    assert fitted(tasks, [short, long], [long], [short]) == tasks
    unknown = words("short", [[1, 3]])
    with pytest.raises(DataError, match="'tags'"):
        fitted(tasks, [short], [short], [unknown])
