"""The experiment on eight tasks to merge: its pictures, its signs, and claims from its table."""

import json
from pathlib import Path

import pytest
import torch

from polytask.catalog import METHODS
from polytask.evaluate.claims import load, save

from .experiment import together

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FOLDER = EXPERIMENTS / "merge"
SCRIPTS = ("found", "images", "training", "ends", "methods", "eight", "claims", "page")


@pytest.fixture(scope="module")
def scripts():
    with together(FOLDER, SCRIPTS) as scripts:
        yield scripts


def table_of(scripts, **changed):
    """Return a table of two seeds in which every method has 80 %, but for what is changed."""
    names = {side for row in scripts.claims.GREATER for side in row[2:]}
    names |= {"individual", "joint", "dare", *scripts.claims.POISONED}
    rows = {
        name: {"seeds": [0, 1], "normalised": [80.0, 80.0], "attack_success": [50.0, 50.0]}
        for name in names
    }
    for name, values in changed.items():
        rows[name.replace("_", "-")] |= values
    return {
        "command": "python experiments/merge/eight.py",
        "versions": {"python": "3", "torch": "2"},
        "seeds": [0, 1],
        "backbones": {"cnn": rows, "vit": {}},
    }


def outcomes(scripts, table):
    return {(c.system, c.claim): c.outcome for c in scripts.claims.made(table)}


def test_a_claim_is_seen_where_the_claimed_side_is_ahead(scripts):
    better = table_of(scripts, adamerging={"normalised": [85.0, 85.1]})
    found = outcomes(scripts, better)
    assert found["adamerging", "ahead of task arithmetic (layer-wise), CNN"] == "seen"
    assert found["adamerging", "layer-wise is ahead of task-wise, CNN"] == "seen"
    assert found["concrete-adamerging", "ahead of AdaMerging, CNN"] == "not seen"
    assert found["pcb", "ahead of TIES, CNN"] == "not seen"
    assert found["dare", "half of each task vector can be dropped, CNN"] == "seen"


def test_a_backdoor_that_succeeds_less_is_to_dams_credit(scripts):
    safer = table_of(scripts, poisoned_dam={"attack_success": [10.0, 12.0]})
    found = outcomes(scripts, safer)
    assert found["dam", "lowers a backdoor's success below adamerging, CNN"] == "seen"
    worse = table_of(scripts, poisoned_dam={"attack_success": [90.0, 92.0]})
    found = outcomes(scripts, worse)
    assert found["dam", "lowers a backdoor's success below adamerging, CNN"] == "not seen"
    gone = table_of(scripts, poisoned_task_arithmetic={"attack_success": [3.0, 4.0]})
    reasons = [c.reason for c in scripts.claims.made(gone) if "success" in c.claim]
    assert all("next to no backdoor" in reason for reason in reasons)


def test_rows_that_lack_a_seed_decide_nothing(scripts):
    table = table_of(scripts, pcb={"seeds": [0], "normalised": [99.0]})
    assert ("pcb", "ahead of TIES, CNN") not in outcomes(scripts, table)
    table["backbones"]["cnn"]["individual"]["seeds"] = [0]
    assert outcomes(scripts, table) == {}


def test_every_method_of_the_room_takes_part_or_is_left_out_for_a_reason(scripts):
    left_out = {
        "slerp": "takes two models",
        "adapter-merge": "is for adapters",
        "surgery": "rows with +surgery",
        "cold-fusion": "is ATM with scale 1 where all tasks contribute",
    }
    room = {row.name for row in METHODS if row.room == "merge"} - set(left_out)
    jobs = {
        *scripts.methods.JOBS,
        *(name.removeprefix("poisoned-") for name in scripts.methods.JOBS),
    }
    assert room <= jobs


def test_normalised_accuracy_is_the_mean_of_the_ratios(scripts):
    tasks = scripts.images.TASKS.names
    accuracy = dict.fromkeys(tasks, 0.4) | {tasks[0]: 0.9}
    individual = dict.fromkeys(tasks, 0.8) | {tasks[0]: 0.9}
    found = scripts.eight.summary({"accuracy": accuracy}, individual)
    assert found["normalised"] == pytest.approx(100 * (1 + 7 * 0.5) / 8)
    assert found["accuracy"] == pytest.approx(100 * (0.9 + 7 * 0.4) / 8)


def test_the_claims_and_the_page_follow_from_the_table(scripts, tmp_path):
    if not (FOLDER / "eight.json").exists():
        pytest.skip("the experiment was not run")
    table = json.loads((FOLDER / "eight.json").read_text())
    (tmp_path / "merge").mkdir()
    save(tmp_path / "merge", scripts.claims.made(table))
    assert load(tmp_path) == tuple(c for c in load(EXPERIMENTS) if c.experiment == "merge")
    assert (FOLDER / "results.md").read_text() == scripts.page.page(table)


def test_heads_are_trained_on_fixed_features_and_then_fixed(scripts):
    training, images = scripts.training, scripts.images
    net = training.model(training.backbone("vit", 0), images.TASKS.only(["usps"]), 0)
    before = [p.clone() for p in net.encoder.parameters()]
    x, target = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    head = net.head("usps").weight.clone()
    training.probed(net, {"usps": (x, target)}, images.TASKS, 0)
    assert all(torch.equal(p, b) for p, b in zip(net.encoder.parameters(), before, strict=True))
    fixed = net.head("usps").weight.clone()
    assert not torch.equal(fixed, head)
    training.train(net, {"usps": (x, target)}, images.TASKS, 0, epochs=1, rate=1e-3, batch=20)
    assert torch.equal(net.head("usps").weight, fixed)
    assert not torch.equal(next(iter(net.encoder.parameters())), before[0])


def test_the_usps_file_is_read_as_it_was_written(scripts, require_data):
    """Known of the set: 7,291 and 2,007 pictures, digits by their counts, values in [0, 1]."""
    require_data("usps/usps.h5")
    train, test = scripts.images._usps()
    assert torch.bincount(train.labels).tolist() == [
        1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644,
    ]  # fmt: skip
    assert torch.bincount(test.labels).tolist() == [
        359, 264, 198, 166, 200, 160, 170, 147, 166, 177,
    ]  # fmt: skip
    assert train.pixels.shape == (7291, 3, 32, 32)
    # Digits are recognisable: nearest class means, as any reading of the right rows gives.
    means = torch.stack([train.pixels[train.labels == c].float().mean(0) for c in range(10)])
    near = torch.cdist(test.pixels.flatten(1).float(), means.flatten(1)).argmin(1)
    assert float((near == test.labels).double().mean()) > 0.75


def test_a_job_that_fails_is_told_of_and_the_others_are_done(scripts, capsys):
    done = []

    def work(name):
        if name == "bad":
            raise RuntimeError("no such thing")
        done.append(name)

    with pytest.raises(SystemExit, match="1 of 3 failed"):
        scripts.eight.in_processes([(work, (name,)) for name in ("a", "bad", "b")], 1, 1)
    assert done == ["a", "b"]
    assert "no such thing" in capsys.readouterr().err
    scripts.eight.in_processes([(work, ("c",))], 1, 1)
    assert done[-1] == "c"
