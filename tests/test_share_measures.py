"""What the experiments on sharing measure: cases whose answer is known beforehand."""

from types import SimpleNamespace

import pytest
import torch

from polytask.records import GateUse
from polytask.share import ExpertUse, MMoE
from polytask.suites import Stream
from polytask.tasks import Binary, Task, TaskSet

from .experiment import imported
from .test_share_experiments import SHARE


@pytest.fixture(scope="module")
def ailments():
    return imported(SHARE, "ailments")


def test_experts_that_are_alike_have_no_spread_and_a_dead_one_is_collapsed(ailments):
    even_SRW = torch.ones(3, 50, 4)
    assert ailments.collapse([even_SRW]) == pytest.approx(
        {"spread": 0.0, "silent": 0.0, "collapsed": 0.0}
    )
    uneven_SRW = torch.stack([torch.ones(50, 4), 10 * torch.ones(50, 4), 100 * torch.ones(50, 4)])
    assert ailments.collapse([even_SRW, uneven_SRW])["spread"] == pytest.approx(0.5)
    dead_SRW = even_SRW.clone()
    dead_SRW[2] = 0.0
    found = ailments.collapse([dead_SRW])
    assert found["silent"] == pytest.approx(100 / 3)
    assert found["collapsed"] == pytest.approx(100 / 3)
    assert found["spread"] > 3


def test_activations_are_what_the_experts_give(ailments):
    tasks = TaskSet([Task("a", Binary()), Task("b", Binary())])
    model = MMoE.build(torch.nn.Linear(5, 8), 8, tasks, experts=3, widths=(16,))
    rows_RD = torch.randn(7, 5)
    (made_SRW,) = ailments.activations("mmoe", model, rows_RD)
    assert torch.equal(made_SRW, model.trunk.experts(model.encoder(rows_RD)))


def gate(reader, mean, owners, level=0):
    names = tuple(f"e{i}" for i in range(len(mean)))
    return GateUse(level, reader, names, owners, tuple(mean), 0.0, 10)


def test_degradation_is_0_where_all_take_alike_and_1_where_one_alone_takes(ailments):
    def of(*means):
        gates = (gate(f"t{i}", mean, (None, None)) for i, mean in enumerate(means))
        return ailments.gates(ExpertUse(tuple(gates)))["degradation"]

    assert of((0.3, 0.7), (0.3, 0.7), (0.3, 0.7)) == pytest.approx(0)
    assert of((1.0, 0.0), (0.0, 1.0)) == pytest.approx(1)
    # By mass: expert 0 has 1.5 and main task 1, expert 1 has 0.5 and one task alone.
    assert of((1.0, 0.0), (0.5, 0.5)) == pytest.approx((1.5 * (1 / 1.5 - 0.5) / 0.5 + 0.5) / 2)


def test_own_experts_are_those_of_sparse_tasks_against_even_gates(ailments):
    gates = (
        gate("repeat", (0.5, 0.25, 0.25), (None, None, "repeat")),
        gate("click", (0.0, 0.0, 1.0), (None, None, "click")),
        gate(None, (0.5, 0.2, 0.3), (None, "repeat", "click")),
    )
    found = ailments.gates(ExpertUse(gates))
    assert found["own"] == pytest.approx(0.75)
    shared = ailments.gates(ExpertUse((gate("repeat", (1.0, 0.0), (None, None)), gates[1])))
    assert shared["own"] is None


def test_a_modality_is_missing_for_most_rows_with_the_label_and_for_no_other():
    missing = imported(SHARE, "modality_missing")
    degree_N = (torch.arange(4000) % 2).float()
    inputs = {"work": torch.zeros(4000, 1), "work_there": torch.ones(4000, dtype=torch.bool)}
    stream = Stream("people", inputs, {"degree": degree_N})
    for label in (0, 1):
        there_N = missing.without(stream, label, seed=3).inputs["work_there"]
        assert there_N[degree_N != label].all()
        assert 0.15 < float(there_N[degree_N == label].double().mean()) < 0.25
    assert missing.without(stream, None, seed=3) is stream


def test_fusion_reads_nothing_of_what_is_missing():
    missing = imported(SHARE, "modality_missing")
    columns = missing.Columns((0,), (0,), (4,), torch.tensor([[1.0], [3.0]]), torch.tensor([2.0]))
    fusions = [missing.Fusion({"work": columns.encoder()}, impute) for impute in (False, True)]
    there_B = torch.tensor([True, False, False])
    rows_BC = torch.tensor([[1.0, 1.0], [5.0, 3.0], [2.0, 2.0]])  # the last is the typical row
    for fusion in fusions:
        given_BW = fusion.eval()({"work": rows_BC, "work_there": there_B})
        assert torch.equal(given_BW[1], given_BW[2])
    typical_1W = fusions[1]({"work": rows_BC[2:], "work_there": torch.tensor([True])})
    assert torch.allclose(given_BW[2], typical_1W[0], atol=1e-5)


def test_bias_is_of_all_impressions_and_ranking_of_those_that_have_a_label(monkeypatch):
    impressions = imported(SHARE, "impressions")
    click_N = torch.tensor([0.5, 0.5, 0.2, 0.8]).double()
    given_N = torch.tensor([0.1, 0.4, 0.1, 0.2]).double()
    truth = {"click": click_N, "conversion": click_N * given_N, "repeat": click_N * given_N / 2}
    nan = torch.nan
    every = {step: torch.tensor([1.0, 0.0, 0.0, 1.0]) for step in impressions.STEPS}
    of_clicks = every | {"conversion": torch.tensor([1.0, nan, nan, 0.0])}
    streams = {
        "clicks": Stream("impressions", torch.zeros(4, 1), every, truth=truth),
        "clicked": Stream(
            "impressions", torch.zeros(4, 1), of_clicks, truth=truth | {"conversion": given_N}
        ),
    }
    monkeypatch.setattr(
        impressions, "load_suite", lambda name: SimpleNamespace(test=(streams[name],))
    )
    limit = impressions.limit()
    for place in ("given", *impressions.STEPS):
        assert limit[place]["ratio"] == pytest.approx(1)
        assert limit[place]["error"] == pytest.approx(0, abs=1e-12)
    assert limit["given"]["auroc"] == 0  # of rows 0 and 3 alone: 0.1 converts, 0.2 does not
    assert limit["disorder"] == 0
    wrong = truth | {"repeat": torch.tensor([0.9, 0.0, 0.0, 0.0]).double()}
    found = impressions.measured(2 * given_N, wrong)
    assert found["disorder"] == 25
    assert found["given"]["ratio"] == pytest.approx(2)
    assert found["given"]["error"] == pytest.approx(0.2)
