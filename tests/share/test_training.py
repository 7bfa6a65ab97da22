"""Architectures in the loop: penalties reach the losses, parts of an update add up, runs end."""

import pytest
import torch
from torch import Tensor

from polytask.catalog import METHODS
from polytask.fit import Feed, FitConfig, Step, fit, task_losses
from polytask.mix import Proportional, Schedule
from polytask.parsing import parse
from polytask.recipes.train import build, score_for
from polytask.share import Trace
from polytask.suites import About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.tasks import Binary, Task, TaskSet

from .conftest import APART, INPUTS, SETTINGS, WIDTH, Encoder, FieldEncoder
from .pictures import SETTINGS as OF_PICTURES

NAMES = ("t0", "t1", "t2")
PENALISED = ("dselect-k:experts=5,entropy=0.1,per_example=true", "sluice:orthogonality=0.1", "aitm")


def suite(missing: float = 0.0) -> Suite:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(INPUTS, 3, generator=draw)

    def stream(number: int) -> Stream:
        inputs = torch.randn(number, INPUTS, generator=draw)
        target_NT = (inputs @ truth > 0).float()
        target_NT[torch.rand(number, 3, generator=draw) < missing] = torch.nan
        return Stream("s", inputs, {n: target_NT[:, i] for i, n in enumerate(NAMES)})

    return make_suite(
        name="three",
        tasks=TaskSet(Task(n, Binary()) for n in NAMES),
        train=[stream(256)],
        val=[stream(128)],
        test=[stream(64)],
        encoder=Encoder,
        width=WIDTH,
        about=About("", "", "", "", ""),
        fields=FieldEncoder,
        batch_size=32,
        epochs=2,
    )


def fed(made: Suite, accumulate: int) -> Step:
    schedule = Schedule(Proportional(), [256], 30, 0)
    return Feed(made.train, made.tasks, schedule, accumulate).step(0, schedule.start())[0]


def losses_of(model, step: Step) -> dict[str, Tensor]:
    total = dict.fromkeys(NAMES, torch.zeros(()))
    for batches in step.micros:
        tasks, losses_K = task_losses(model, batches, step.counts, "float32")
        for task, loss in zip(tasks, losses_K, strict=True):
            total[task] = total[task] + loss
    return total


@pytest.mark.parametrize("recipe", PENALISED)
def test_penalties_steer_whole_or_in_parts_and_do_not_count(recipe):
    made = suite()
    model, _, _ = build(made, parse(recipe), 0)
    parameters = list(model.parameters())
    whole, parts = fed(made, 1), fed(made, 4)  # of 30 rows; of 8, 8, 7, 7
    (batch,) = whole.micros[0]
    trace = Trace()
    outputs = model(batch.inputs, trace=trace)
    assert any(penalty.item() > 1e-3 for penalty in trace.penalties.values())
    for t, task in enumerate(NAMES):
        plain = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs[task][:, 0], batch.targets[0][:, t]
        )
        penalised = plain + trace.penalties.get(task, 0.0)
        expected = torch.autograd.grad(
            penalised, parameters, retain_graph=True, materialize_grads=True
        )
        for step in (whole, parts):
            loss = losses_of(model, step)[task]
            torch.testing.assert_close(loss, plain)
            gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for a, b in zip(gradient, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_task_without_labels_has_no_penalty_and_no_loss():
    made = suite(missing=0.5)
    gone = made.train[0].targets["t1"].clone()
    gone[64:] = torch.nan
    model, _, _ = build(made, parse("sluice"), 0)
    stream = Stream("s", made.train[0].inputs, {**made.train[0].targets, "t1": gone})
    table = Feed([stream], made.tasks, Schedule(Proportional(), [256], 32, 0)).tables[0]
    rows_B = torch.arange(100, 132)
    tasks, losses_K = task_losses(model, [table.batch(rows_B)], table.counts(rows_B), "float32")
    assert tasks == ("t0", "t2")
    losses_K.sum().backward()
    # It runs, because the others read it; nothing of its own is trained.
    assert all(p.grad is None for p in model.task_parameters("t1"))


@pytest.mark.parametrize("recipe", [*PENALISED, "sparse-moe", "task-gating", "multimodn"])
def test_a_process_that_has_no_row_adds_nothing(recipe):
    made = suite()
    model, _, _ = build(made, parse(recipe), 0)
    table = Feed(made.train, made.tasks, Schedule(Proportional(), [256], 32, 0)).tables[0]
    nobody = table.batch(torch.arange(0))
    tasks, losses_K = task_losses(model, [nobody], dict.fromkeys(NAMES, 5.0), "float32")
    assert tasks == NAMES
    assert losses_K.tolist() == [0.0, 0.0, 0.0]
    losses_K.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("balance", ["equal", "pcgrad"])
@pytest.mark.parametrize("name", [*SETTINGS, *APART])
def test_a_run_learns_and_is_the_same_run_twice(name, balance):
    made, config = suite(missing=0.2), FitConfig(epochs=4, batch_size=32, lr=2e-2, probes=1)
    records = []
    for _ in range(2):
        model, method, mix = build(made, parse(f"{name}+{balance}"), 0)
        score = score_for(made.tasks, None)
        records.append(fit(made, model, method, mix, config, score, method=name))
    first, second = ([point.val for point in record.points] for record in records)
    assert first == second
    means = [sum(values["AUROC"] for values in val.values()) / 3 for val in first]
    # These tasks are no steps of one another, which ESMM takes them for.
    assert max(means) > (0.6 if name == "esmm" else 0.8)
    assert records[0].cost.shared_parameters == sum(p.numel() for p in model.shared_parameters())


def test_every_architecture_is_a_recipe():
    for row in METHODS:
        if row.room == "share" and row.name not in OF_PICTURES:
            model, _, _ = build(suite(), parse(f"{row.name}+pcgrad"), 0)
            assert set(model.tasks) == set(NAMES)
