"""Measuring a model against the truth: over all rows, whatever is labelled, mode kept."""

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.evaluate import against_truth
from polytask.fit import predict
from polytask.recipes import measure
from polytask.share import ESMM, HardSharing
from polytask.suites import Stream
from polytask.tasks import Binary, Task, TaskSet, losses


def funnel(rows: int) -> Stream:
    """Clicks and conversions that lean on one number; who did not click has no second label."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=draw)
    q_click = (2 * x[:, 0] - 1.5).sigmoid().double()
    # Not linear in x: what holds among those who click does not hold among the others.
    q_buy = (x[:, 0].relu() * 2 - 1).sigmoid().double()
    click = torch.rand(rows, generator=draw) < q_click
    buy = torch.rand(rows, generator=draw) < q_buy
    label = torch.where(click, buy.float(), torch.nan)
    targets = {"click": click.float(), "buy": label}
    return Stream("s", x, targets, truth={"click": q_click, "buy": q_buy})


def hard() -> HardSharing:
    return HardSharing(nn.Identity(), {"click": nn.Linear(3, 1), "buy": nn.Linear(3, 1)})


def test_it_is_the_sigmoid_of_every_rows_output_against_that_rows_truth():
    torch.manual_seed(0)
    model, stream = hard(), funnel(301)
    model.heads.train()
    model.encoder.eval()
    found = measure(model, stream, batch_size=100)
    assert list(found) == ["click", "buy"]
    for task, against in found.items():
        output = model(stream.inputs)[task].detach().double().sigmoid()[:, 0]
        assert against.rows == 301
        assert against.predicted == pytest.approx(float(output.mean()))
        assert against == against_truth(output, stream.truth[task])
    assert list(measure(model, stream, ["buy"])) == ["buy"]
    assert model.heads.training
    assert not model.encoder.training
    assert all(p.grad is None for p in model.parameters())


def test_predictions_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model, stream = hard(), funnel(50)
    whole, parts = predict(model, stream), predict(model, stream, batch_size=7)
    for task, output in model(stream.inputs).items():
        assert torch.equal(whole[task], output)
        torch.testing.assert_close(parts[task], output)


def test_a_head_trained_on_clicks_alone_promises_too_much_and_esmm_hardly():
    stream = funnel(20_000)
    tasks = TaskSet([Task("click", Binary()), Task("buy", Binary())])
    torch.manual_seed(0)
    separate, joint = hard(), ESMM.build(nn.Identity(), 3, tasks, towers=())
    bought = stream.targets["buy"].nan_to_num()
    labels = {separate: stream.targets, joint: {**stream.targets, "buy": bought}}
    for model, targets in labels.items():
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(200):
            optimiser.zero_grad()
            sum(losses(tasks, model(stream.inputs), targets).values()).backward()
            optimiser.step()
    assert measure(separate, stream)["click"].ratio == pytest.approx(1, abs=0.02)
    of_clicks = measure(separate, stream)["buy"]
    so_far = {**stream.truth, "buy": stream.truth["click"] * stream.truth["buy"]}
    entire = Stream("s", stream.inputs, stream.targets, truth=so_far)
    assert measure(joint, entire)["buy"].ratio == pytest.approx(1, abs=0.03)
    assert abs(of_clicks.ratio - 1) > 0.1


def test_without_a_truth_it_says_so():
    stream = Stream("s", torch.zeros(3, 3), {"click": torch.zeros(3)})
    with pytest.raises(UsageError, match="no true probabilities of click, buy"):
        measure(hard(), stream)
