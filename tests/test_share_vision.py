"""The experiments on pictures: what they count and train, on cases whose answer is known."""

from types import SimpleNamespace

import pytest
import torch

from polytask.parsing import parse
from polytask.recipes import build
from polytask.share.staged import resized
from polytask.suites.vit import ViT
from polytask.tasks import DenseLabels, DenseRegression, Task, TaskSet

from .experiment import imported
from .share.pictures import suite
from .test_share_experiments import SHARE


@pytest.fixture(scope="module")
def compared():
    return imported(SHARE, "vision_compared")


@pytest.fixture
def new_task(monkeypatch, tmp_path):
    """The experiment with blobs in camvid's place: where they are, then how high."""
    loaded = imported(SHARE, "vision_new_task")
    for name, value in {
        **{
            "FIRST": "inside",
            "NEW": "height",
            "EPOCHS": 2,
            "SETTINGS": ((1e-2, 1e-2),),
            "SEEDS": (0, 1),
        },
        "load_suite": lambda name: suite("pixels"),
    }.items():
        monkeypatch.setattr(loaded, name, value)
    monkeypatch.setattr(loaded.KEPT, "runs", tmp_path)
    return loaded


def test_flops_are_those_of_the_products(compared):
    def stand(on):
        assert on == "tokens"
        return ViT((0.0,) * 3, (1.0,) * 3, (96, 128)), 16

    tasks = TaskSet([Task("segments", DenseLabels(11)), Task("edge_distance", DenseRegression())])
    inputs = torch.randint(0, 256, (8, 3, 96, 128), dtype=torch.uint8)
    camvid = SimpleNamespace(tasks=tasks, stand=stand, test=(SimpleNamespace(inputs=inputs),))
    found = compared.counted(camvid, 0)
    dense, wide, sparse = (found[name] for name in (compared.DENSE, compared.WIDE, "m3vit"))
    tokens, width, blocks = 192, 96, 3
    # Sixteen experts of one width against an MLP of four: both products, two operations each.
    more = blocks * 2 * 2 * tokens * width * (16 - 4) * width
    assert wide["one task"] - dense["one task"] == more
    assert dense["one task"] < sparse["one task"] < 1.15 * dense["one task"]
    heads = 2 * 96 * 128 * 16 * (11 + 1)
    assert dense["all tasks"] - dense["one task"] == heads / 2
    saved = compared.saved(found)
    assert saved["a dense transformer as large as all experts"] == pytest.approx(
        100 * (1 - sparse["one task"] / (dense["one task"] + more))
    )
    assert saved["the dense transformer for all tasks"] < 0
    experts = blocks * 16 * 2 * width * width  # their biases are not those of one wide MLP
    assert wide["parameters"] - dense["parameters"] > 0.7 * experts


def test_quality_is_read_of_the_comparison(compared, monkeypatch, tmp_path):
    def of(*gains):
        return {"tasks": {"a": {"gains": gains}, "b": {"gains": [0.0] * len(gains)}}}

    command = "polytask compare camvid --methods hard"
    methods = {name: of(2.0, 4.0, 3.0) for name in compared.QUALITY}
    methods["task-expert"] = of(6.0, 8.4, 7.2)
    known = {"command": command, "seeds": [0, 1, 2], "methods": methods}
    monkeypatch.setattr(compared, "PUBLISHED", tmp_path)
    with pytest.raises(SystemExit, match=r"camvid-sharing\.json is not there"):
        compared.comparison()
    (tmp_path / "camvid-sharing.json").touch()
    monkeypatch.setattr(compared, "published", lambda name: known)
    found = {
        name: {"one task": 40, "all tasks": 50}
        for name in (compared.SPARSE, compared.DENSE, compared.WIDE, compared.MASKS)
    }
    written = {}
    monkeypatch.setattr(compared, "load_suite", lambda name: None)
    monkeypatch.setattr(compared, "counted", lambda suite, seed: found)
    monkeypatch.setattr(compared.KEPT, "write", lambda name, table: written.update(table))
    compared.main()
    table = written | {"command": "python x.py", "versions": {"python": "", "torch": ""}}
    flops, (quality, expert) = list(compared.claims(table))[:-2], list(compared.claims(table))[-2:]
    assert {round(claim.effect.value, 9) for claim in flops} == {20.0, 0.0}
    assert {claim.outcome for claim in flops} == {"not seen"}
    assert (quality.outcome, quality.effect.value, quality.command) == ("seen", 0.0, command)
    assert (expert.outcome, expert.command) == ("seen", command)
    assert expert.effect.value == pytest.approx(2.1)
    del methods["m3vit"]
    with pytest.raises(SystemExit, match="lacks m3vit"):
        compared.comparison()


def test_all_scales_are_added_up_without_masks(new_task):
    model, _, _ = build(suite("pixels"), parse("hard"), 0)
    read = new_task.Scales(model.encoder)
    pictures = suite("pixels").val[0].inputs[:3]
    stages = [stage for _, stage in model.encoder.stages(pictures)]
    by_hand = sum(
        resized(torch.einsum("bchw,oc->bohw", stages[at], of.weight[:, :, 0, 0]), stages[-1])
        + of.bias[:, None, None]
        for at, of in zip(model.encoder.scales, read.maps, strict=True)
    )
    wanted = model.encoder.finish(by_hand, pictures.shape[-2:])["map"]
    torch.testing.assert_close(read(pictures)["map"], wanted, rtol=1e-5, atol=1e-6)


def test_the_new_task_trains_alone_and_a_second_call_trains_nothing(new_task, monkeypatch):
    found = new_task.made("cpu")
    assert set(found) == {"inside", "medusa", *new_task.RIVALS}
    table = {
        "models": found,
        "seeds": [0, 1],
        "command": "python x.py",
        "versions": {"python": "", "torch": ""},
    }
    assert len(list(new_task.claims(table))) == len(new_task.RIVALS)
    for name in new_task.RIVALS:
        ours, theirs = (found[n]["runs"][1]["test"] for n in ("medusa", name))
        assert new_task.gains(table, name)[1] == pytest.approx(100 * (1 - ours / theirs))
    trained = {name: of["runs"][0]["trained"] for name, of in found.items() if name != "inside"}
    assert trained["plain"] == 8 + 1  # a weight per channel, and a bias
    assert trained["plain"] < trained["scales"] < trained["medusa"] < trained["alone"]
    assert "# A new task" in new_task.section(table)
    monkeypatch.setattr(new_task, "fit", None)
    assert new_task.made("cpu") == found


def test_a_run_in_which_the_first_task_changes_ends(new_task, monkeypatch):
    frozen = new_task.on_frozen

    def thawed(kind, of, base, seed):
        model = frozen(kind, of, base, seed)
        base.encoder.requires_grad_(True)
        return model

    monkeypatch.setattr(new_task, "on_frozen", thawed)
    with pytest.raises(AssertionError, match="outputs of inside have changed"):
        new_task.trained("plain", suite("pixels"), (1e-2, 1e-2), "cpu", (1e-2, 1e-2), 0)
