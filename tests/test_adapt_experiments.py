"""The experiments on adapters: what they build and count, and that page and claims are tables'."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from polytask.evaluate.claims import load, save
from polytask.suites.swin import Swin
from polytask.tasks import DenseLabels, DenseRegression, Task, TaskSet

from .experiment import together
from .recipes.pretrained import suite as small_texts
from .share.pictures import suite as blobs

ADAPT = Path(__file__).parents[1] / "experiments" / "adapt"
SCRIPTS = ("found", "backbone", "vision", "minilm", "transfer", "page")
SMALL = {"patch": 2, "dim": 4, "depths": (2, 2), "head": 2, "window": 3}


@pytest.fixture(scope="module")
def scripts():
    with together(ADAPT, SCRIPTS) as scripts:
        yield scripts


@pytest.fixture
def vision(scripts, monkeypatch, tmp_path):
    """The experiment on pictures with blobs in camvid's place, and an encoder never trained."""
    vision, backbone = scripts.vision, scripts.backbone
    monkeypatch.setattr(backbone, "SIZES", SMALL)
    torch.manual_seed(0)
    weights = dict(Swin((0.0,), (1.0,), **SMALL, ends="levels").named_parameters())
    kept = {name: value.detach() for name, value in weights.items()}
    monkeypatch.setattr(backbone, "base", lambda: kept)
    monkeypatch.setattr(backbone, "about", lambda: {"accuracy": "0.5", "seconds": "60"})
    small = blobs("pixels")
    suite = replace(small, train=tuple(s.take(torch.arange(16)) for s in small.train))
    for name, value in {
        "camvid": lambda: suite, "EPOCHS": 1, "SEEDS": (0, 1), "RATES": (1e-3, 1e-2), "ROUNDS": 1,
        "WARM": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(vision, name, value)
    monkeypatch.setattr(vision.KEPT, "runs", tmp_path)
    return vision


def test_the_claims_follow_from_the_tables(scripts, tmp_path):
    (tmp_path / "adapt").mkdir()
    save(tmp_path / "adapt", scripts.page.PAGE.claims(scripts.page.PAGE.tables()))
    recorded = tuple(c for c in load(ADAPT.parent) if c.experiment == "adapt")
    assert load(tmp_path) == recorded


def test_the_page_of_results_is_that_of_the_tables(scripts):
    text = scripts.page.PAGE.markdown(scripts.page.PAGE.tables())
    assert (ADAPT / "results.md").read_text() == text
    for section in text.split("## ")[1:]:
        grid = [line for line in section.splitlines() if line.startswith("|")]
        assert len(grid) >= 3
        assert len({line.count("|") for line in grid}) == 1


def test_every_experiment_is_planned_and_named_for_its_command(scripts):
    plan = (ADAPT / "README.md").read_text()
    for one in scripts.page.EXPERIMENTS:
        assert f"### `{one.__name__}.py`" in plan
        table = scripts.page.KEPT.load(one.__name__)
        if table:
            assert table["command"] == f"python experiments/adapt/{one.__name__}.py"


def test_every_row_starts_as_the_pretrained_encoder_and_trains_what_it_says(vision):
    """Adapters that start without a change, and no adapters, give the same first outputs."""
    suite = vision.camvid()
    pictures = suite.val[0].inputs[:2]
    wanted = vision.model(vision.HEADS, suite, 3).eval()(pictures)
    for row in vision.ROWS:
        made = vision.model(row, suite, 3).eval()
        for task, output in made(pictures).items():
            assert output.shape[-2:] == pictures.shape[-2:]
            torch.testing.assert_close(output, wanted[task])
        free = sum(p.numel() for p in made.parameters() if p.requires_grad)
        counted = vision.counted(made)
        assert counted["trained"] == free
        decoders = sum(p.numel() for t in made.tasks for p in made.task_parameters(t))
        assert counted["own"] == free - decoders
        assert counted["bytes"] >= 4 * free
    assert vision.counted(vision.model(vision.HEADS, suite, 0))["own"] == 0


def test_mtlora_parts_in_the_last_block_of_each_stage_and_trains_the_norms(vision):
    made = vision.model("mtlora", vision.camvid(), 0)
    own = {layer.path for layer in made.adapted.parts[1].layers}
    assert own == {
        f"stages.{i}.blocks.1.{name}"
        for i in (0, 1)
        for name in ("attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert len(made.adapted.parts[0].layers) == 4 * 4
    free = {n for n, p in made.adapted.base.named_parameters() if p.requires_grad}
    linear = {
        n
        for name, module in made.adapted.base.named_modules()
        if isinstance(module, nn.Linear)
        for n in (f"{name}.weight", f"{name}.bias")
    }
    assert free == {n for n, _ in made.adapted.base.named_parameters()} - linear
    shared = vision.model("mtlora, shared alone", vision.camvid(), 0)
    less = vision.counted(made)["own"] - vision.counted(shared)["own"]
    widths = (4, 8)
    assert less == 2 * 4 * sum(2 * d + 5 * d + 5 * d for d in widths)


def test_rows_train_and_a_second_call_trains_nothing(vision, monkeypatch):
    monkeypatch.setattr(vision, "ROWS", (vision.FULL, vision.HEADS, "mtlora", "bitfit"))
    table = vision.written((0, 1))
    rows = table["rows"]
    assert set(rows) == {vision.ALONE, *vision.ROWS}
    assert rows[vision.ALONE]["delta_m"] == [0.0, 0.0]
    assert rows[vision.ALONE]["trained"] > 1.9 * rows[vision.FULL]["own"]
    suite = vision.camvid()
    for name in vision.ROWS:
        for s, value in enumerate(rows[name]["delta_m"]):
            by_task = [
                sign * (rows[name][t][s] / rows[vision.ALONE][t][s] - 1)
                for t, sign in zip(suite.tasks.names, (1, -1), strict=True)
            ]
            assert value == pytest.approx(100 * sum(by_task) / 2, abs=1e-6)
        assert rows[name]["step_ms"] > 0
    monkeypatch.setattr(vision, "fit", None)
    assert vision.written((0, 1)) == table


def test_each_claim_has_its_sign(scripts):
    vision = scripts.vision
    row = {"own": 1, "delta_m": [-5.0, -5.1, -5.2]}
    rows = {name: dict(row) for name in (vision.ALONE, *vision.ROWS)}
    rows[vision.ALONE]["delta_m"] = [0.0, 0.0, 0.0]
    rows["mtlora"]["delta_m"] = [1.0, 1.2, 1.4]
    rows["bottleneck"]["delta_m"] = [-1.0, -1.1, -1.3]
    table = {
        "rows": rows, "seeds": [0, 1, 2], "epochs": 1, "encoder": {"weights": 1},
        "command": "python x.py", "versions": {"python": "3", "torch": "2"},
    }  # fmt: skip
    found = list(vision.claims(table))
    assert len(found) == len(vision.CLAIMS)
    outcomes = {(c.system, c.claim): c.outcome for c in found}
    assert outcomes["mtlora", "is ahead of LoRA per task of a similar size"] == "seen"
    assert outcomes["mtlora", "what is each task's own helps"] == "seen"
    assert outcomes["polyhistor", "Lite is as good"] == "seen"
    assert [o for (s, c), o in outcomes.items() if s == "polyhistor" and "bottleneck" in c] == [
        "not seen"
    ]
    reached = {s: o for (s, c), o in outcomes.items() if "for each task alone" in c}
    assert reached["mtlora"] == "seen"
    assert reached["lora"] == reached["polyhistor"] == "not seen"


def test_crops_move_the_picture_and_may_turn_it_round(scripts):
    backbone, random = scripts.backbone, torch.Generator().manual_seed(0)
    pixels = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6).expand(64, 3, 6, 6)
    seen = backbone.moved(pixels, random)
    assert seen.shape == pixels.shape
    whole = nn.functional.pad(pixels[:1], [backbone.MARGIN] * 4)
    cuts = [whole[0, :, i : i + 6, j : j + 6] for i in range(9) for j in range(9)]
    for one in seen:
        assert any(torch.equal(one, cut) or torch.equal(one, cut.flip(2)) for cut in cuts)
    assert len({tuple(one.flatten().tolist()) for one in seen}) > 20


def test_pretraining_is_kept_and_made_again_only_where_settings_differ(
    scripts, monkeypatch, tmp_path
):
    backbone = scripts.backbone
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(20) % 10
    monkeypatch.setattr(backbone, "cifar10", lambda split: (pixels, labels))
    monkeypatch.setattr(backbone, "SIZES", SMALL)
    small = backbone.PRETRAIN | {"side": 12, "epochs": 1, "batch": 10}
    monkeypatch.setattr(backbone, "PRETRAIN", small)
    path = tmp_path / "base.safetensors"
    first = backbone.base(path)
    made = Swin((0.0,) * 3, (1.0,) * 3, **SMALL, ends="levels")
    assert set(first) == {name for name, _ in made.named_parameters()}
    assert 0 <= float(backbone.about(path)["accuracy"]) <= 1
    written = path.stat().st_mtime_ns
    again = backbone.base(path)
    assert path.stat().st_mtime_ns == written
    assert all(torch.equal(first[name], again[name]) for name in first)
    monkeypatch.setattr(backbone, "PRETRAIN", small | {"rate": 1e-4})
    other = backbone.base(path)
    assert not torch.equal(first["patches.weight"], other["patches.weight"])


def test_a_decoder_gives_an_output_for_every_pixel(vision):
    tasks = TaskSet([Task("a", DenseLabels(3)), Task("b", DenseRegression())])
    suite = replace(vision.camvid(), tasks=tasks)
    outputs = vision.model(vision.HEADS, suite, 0)(suite.val[0].inputs[:2])
    assert {t: tuple(o.shape) for t, o in outputs.items()} == {
        "a": (2, 3, 12, 16), "b": (2, 1, 12, 16)
    }  # fmt: skip


@pytest.fixture
def texts(scripts, monkeypatch, tmp_path):
    """The experiments on texts with a small suite in minilm's place."""
    made = small_texts()
    module = importlib.import_module("polytask.recipes.train")
    monkeypatch.setattr(module, "load_suite", lambda name: made)
    monkeypatch.setattr(scripts.transfer, "load_suite", lambda name: made)
    config = replace(scripts.minilm.CONFIG, precision="float32", min_epoch_steps=1)
    monkeypatch.setattr(scripts.transfer, "CONFIG", config)
    monkeypatch.setattr(scripts.transfer, "FEW", replace(config, lr=3e-3))
    monkeypatch.setattr(scripts.transfer, "TARGETS", ("kind",))
    monkeypatch.setattr(scripts.transfer, "ROWS", 8)
    monkeypatch.setattr(scripts.transfer, "RUNS", tmp_path)
    return made


def test_every_way_to_meet_a_target_trains_and_sources_are_trained_once(scripts, texts, tmp_path):
    transfer = scripts.transfer
    trained = {name: transfer.attempt(name, "kind", 0)["trained"] for name in transfer.METHODS}
    assert trained["MHR-z"] < trained["MHR-mu"] < trained["MHR"]
    head = trained["probe of the base"]
    assert trained["Arrow, its head alone"] == head < trained["LoRA of the target"]
    assert trained["all weights"] > trained["LoRA of the target"]
    sources = sorted(path.name for path in tmp_path.iterdir())
    assert len(sources) == 4
    before = [(tmp_path / name / "record.json").stat().st_mtime_ns for name in sources]
    transfer.attempt("MHR", "kind", 0)
    assert before == [(tmp_path / n / "record.json").stat().st_mtime_ns for n in sources]
    first, again, other = (transfer.few(texts, seed).train[0] for seed in (0, 0, 1))
    assert len(first) == 8
    assert torch.equal(first.inputs["tokens"], again.inputs["tokens"])
    assert not torch.equal(first.inputs["tokens"], other.inputs["tokens"])


def test_a_comparison_becomes_a_table_with_what_its_runs_cost(scripts, tmp_path):
    minilm = scripts.minilm

    def method(name, trained, gains):
        folders = {}
        for seed in (0, 1):
            folder = tmp_path / f"{name}--s{seed}"
            folder.mkdir()
            cost = {"trained": trained, "seconds": 2.0 + seed, "steps": 10}
            (folder / "record.json").write_text(json.dumps({"cost": cost}))
            (folder / "best.safetensors").write_bytes(bytes(trained))
            folders[str(seed)] = str(folder)
        tasks = {
            task: {"gain": sum(both) / 2, "gains": both, "values": [0.5, 0.7]}
            for task, both in gains.items()
        }
        return {
            "tasks": tasks,
            "delta_m": sum(t["gain"] for t in tasks.values()) / 2,
            "runs": folders,
        }

    methods = {
        "single": method("single", 900, {"a": [0.0, 0.0], "b": [0.0, 0.0]}),
        "equal": method("equal", 900, {"a": [2.0, 4.0], "b": [-3.0, -3.0]}),
        "linear-probing": method("probe", 10, {"a": [0.0, 2.0], "b": [-9.0, -3.0]}),
        "lora": method("lora", 30, {"a": [3.0, 5.0], "b": [-1.0, 0.0]}),
    }
    tasks = [{"name": "a", "metric": "accuracy"}, {"name": "b", "metric": "RMSE"}]
    tuning = {"picked": {"lora": {"*": {"lr": 1e-3}}, "single": {"a": {"lr": 2e-4}}}}
    found = minilm.table({"tasks": tasks, "methods": methods, "seeds": [0, 1], "tuning": tuning})
    rows = minilm.rows_of(found)
    assert found["heads"] == 10
    assert (rows["lora"]["trained"], rows["lora"]["bytes"]) == (30, 30)
    assert rows["lora"]["step_ms"] == pytest.approx(250)
    assert rows["lora"]["by_seed"] == pytest.approx([1.0, 2.5])
    assert [rows[name]["lost"] for name in methods] == [0, 1, 1, 0]
    whole = found | {"command": "x", "versions": {"python": "3", "torch": "2"}}
    decided = {claim.system: claim.effect.value for claim in minilm.claims(whole)}
    assert decided == {"linear-probing": 2.5, "lora": 1.75}
    text = minilm.section(whole)
    assert text.count("\n| `") == 4
