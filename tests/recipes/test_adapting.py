"""Methods of adapt by name: each trains on a suite with a pretrained encoder, in its stages."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from polytask.adapt import HalfFineTuning, Held
from polytask.catalog import METHODS
from polytask.errors import RunError, UsageError
from polytask.fit import RECORD, WEIGHTS, FitConfig, load_weights
from polytask.parsing import parse
from polytask.recipes import Plan, compare, train
from polytask.recipes.adapted import AdaptedModel
from polytask.recipes.adapting import OWN_WEIGHTS, STAGES, grid_for
from polytask.recipes.keeping import Keeping
from polytask.recipes.train import Job, Stages, build, load_run, suite_of
from polytask.records import read_json
from polytask.share import HardSharing, SharedModel

from .conftest import Seen
from .pretrained import TASKS, WIDTH, Encoder, stream, suite

CONFIG = FitConfig(
    epochs=2, batch_size=12, min_epoch_steps=1, patience=0, length_groups=2, weight_decay=0.1
)
SETTINGS = {
    "mor1e": "mor1e:experts=4", "mbc": "mbc:clusters=2", "subtuning": "subtuning:most=1",
    "mhr": "mhr:heads=4", "mtlora": "mtlora:rank=4", "scalearn": "scalearn:width=4",
    "sparse-tuning": "sparse-tuning:density=0.1", "bottleneck": "bottleneck:width=4",
    "smora": "smora:rank=8,top=2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made = suite()
    monkeypatch.setattr(module("train"), "load_suite", lambda name: made)


def module(name: str) -> Any:
    """Return a module of the room; its functions bear the names of modules."""
    return importlib.import_module(f"polytask.recipes.{name}")


def job(folder: Path, recipe: str, **settings: Any) -> Job:
    config = FitConfig(**{**CONFIG.__dict__, "lr": 1e-2, **settings})
    return Job("small", None, recipe, config, folder / recipe.replace(":", "-"))


ROWS = [row.name for row in METHODS if row.room == "adapt"]


@pytest.mark.parametrize("name", ROWS)
def test_every_method_trains_by_name_and_its_folder_gives_the_model_back(
    name: str, tmp_path: Path
) -> None:
    run = job(tmp_path, SETTINGS.get(name, name))
    record = train(run)
    inputs = {"tokens": stream("kind", 12, 3).inputs["tokens"], "task": torch.arange(12) % 3}
    outputs = []
    for _ in range(2):  # built anew each time, from what lies in the folder
        model = load_run(run, suite_of(run)).eval()
        with torch.no_grad():
            outputs.append(model(inputs))
    assert all(torch.equal(outputs[0][t], outputs[1][t]) for t in TASKS.names)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if name != "half-fine-tuning":  # whose record tells the last half, and a new model the first
        assert record.cost.trained == sum(
            p.numel() for n, p in model.named_parameters() if n in trained
        )
    assert record.best.score == record.best.score
    stages = sorted(path.parent.name for path in run.folder.glob(f"stages/*/{RECORD}"))
    assert record.cost.steps == 2 * 6 * (1 + len(stages)) - (
        # A stage of one task has that task's rows alone.
        2 * 4 * 3 if name == "incremental-rank" else 0
    )
    if name not in OWN_WEIGHTS:
        kept = load_weights(run.folder)
        assert not any("word_embeddings.weight" in key for key in kept), "the base is left out"
        frozen = Encoder().state_dict()
        inner = model.adapted.base if isinstance(model, AdaptedModel) else model.encoder
        for key, value in inner.state_dict().items():
            assert torch.equal(value, frozen[key]), f"{key} of the base moved"


def test_what_is_held_keeps_its_bits_whatever_the_optimiser_does(tmp_path: Path) -> None:
    run = job(tmp_path, "sparse-tuning:density=0.1")
    train(run)
    model = load_run(run, suite_of(run))
    assert isinstance(model, Keeping)
    moved = total = 0
    before = Encoder().state_dict()
    for name, value in model.model.encoder.state_dict().items():  # type: ignore[union-attr]
        moved += int((value != before[name]).sum())
        total += value.numel()
    assert 0 < moved <= 0.1 * total + 1, "weight decay moved numbers that were not chosen"


def test_subsets_of_blocks_are_held_against_heads_alone(tmp_path: Path) -> None:
    run = job(tmp_path, "subtuning:most=1")
    train(run)
    probe = train(job(tmp_path, "linear-probing")).cost.trained
    block = sum(p.numel() for p in Encoder().get_submodule("model.encoder.layer.0").parameters())
    trained = {
        path.parent.name: read_json(path)["cost"]["trained"]
        for path in run.folder.glob(f"stages/*/{RECORD}")
    }
    assert trained.pop("none") == probe
    assert set(trained.values()) == {probe + block}


def test_halves_are_those_of_the_method_and_change_with_the_stage() -> None:
    model, _, _ = build(suite(), parse("half-fine-tuning:seed=3"), 0)
    assert isinstance(model, Keeping)
    method = HalfFineTuning(seed=3)
    seen = set()
    for stage in range(STAGES):
        model.at((stage + 0.5) / STAGES)
        frozen = {n for n, p in model.model.encoder.named_parameters() if not p.requires_grad}  # type: ignore[union-attr]
        assert frozen == set(method.frozen(Encoder(), stage))
        seen.add(frozenset(frozen))
    assert len(seen) > 1


def test_an_incremental_task_leaves_those_before_it_as_they_were(tmp_path: Path) -> None:
    run = job(tmp_path, "incremental-rank")
    train(run)
    last = [load_weights(run.folder / "stages" / f"{t:02d}") for t in range(3)]
    for name, value in last[2].items():
        if value.dim() and len(value) == 3 and "adapters" in name:
            kept = last[0]["model." + name] if "model." + name in last[0] else last[0][name]
            assert torch.equal(value[0], kept[0]), f"{name}: the first task's row moved"


def test_the_same_run_again_trains_nothing_and_a_killed_stage_goes_on(tmp_path: Path) -> None:
    run = job(tmp_path, "scalearn:width=4")
    first = train(run)
    for path in (run.folder / RECORD, run.folder / WEIGHTS):
        path.unlink()
    stage = run.folder / "stages" / "bottleneck" / WEIGHTS
    before = stage.stat().st_mtime_ns
    second = train(run)
    assert stage.stat().st_mtime_ns == before, "the stage was trained again"
    assert [p.val for p in first.points] == [p.val for p in second.points]


def test_weights_of_another_base_are_refused(tmp_path: Path) -> None:
    model, _, _ = build(suite(), parse("lora"), 0)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    model.load_state_dict(state)
    state["base_fingerprint"][0] ^= 1
    with pytest.raises(RunError, match="another base"):
        model.load_state_dict(state)


def test_where_is_a_setting_and_an_unknown_layer_is_named() -> None:
    made, _, _ = build(suite(), parse("lora:where=query/key"), 0)
    assert isinstance(made, AdaptedModel)
    paths = {layer.path.rpartition(".")[2] for layer in made.adapted.layers()}
    assert paths == {"query", "key"}
    with pytest.raises(UsageError, match="query"):
        build(suite(), parse("lora:where=querry"), 0)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("lora+mmoe", "names a sharing and 'lora'"),
        ("lora+dora", "two methods of the room 'adapt'"),
        ("ties", "a recipe joins methods of share, balance, mix, adapt"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(recipe)


def test_a_suite_without_pretrained_weights_says_so() -> None:
    with pytest.raises(UsageError, match="begins anew"):
        build(suite(pretrained=False), parse("lora"), 0)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("linear-probing:where=query", "goes to no layers"),
        ("half-fine-tuning:where=query", "goes to no layers"),
        ("sparse-tuning:where=query", "goes to no layers"),
        ("arrow:experts=3", "its library says experts"),
        ("sparse-tuning:l1=0.1", "give l1=0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    recipe: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        train(job(tmp_path, recipe))


def test_stages_need_a_run() -> None:
    with pytest.raises(UsageError, match="trains in stages"):
        build(suite(), parse("arrow"), 0)


def test_an_adapted_recipe_takes_a_balance_and_a_mix(tmp_path: Path) -> None:
    run = job(tmp_path, "mtl-lora+pcgrad+temperature")
    assert train(run).engine


def test_a_comparison_gives_each_kind_its_own_learning_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = suite()
    monkeypatch.setattr(module("compare"), "load_suite", lambda name: made)
    assert grid_for(made, "lora") == made.pretrained.grid  # type: ignore[union-attr]
    assert grid_for(made, "equal") == made.pretrained.whole  # type: ignore[union-attr]
    assert grid_for(made, "sparse-tuning") == made.pretrained.whole  # type: ignore[union-attr]
    assert grid_for(made, "hyperformer:plus=true") == made.pretrained.made  # type: ignore[union-attr]
    assert grid_for(suite(pretrained=False), "lora") is None
    with pytest.raises(UsageError, match="has 4 settings"):
        compare(
            Plan("small", ("lora",), seeds=1, tune=5, config=CONFIG, out=tmp_path / "many"), Seen()
        )


def test_keeping_is_the_model_with_its_gradients() -> None:
    torch.manual_seed(0)
    inner = HardSharing.build(Encoder(), WIDTH, TASKS)
    mask = {"encoder.model.embeddings.word_embeddings.weight": False}
    kept = Keeping(inner, Held(inner, mask))
    assert isinstance(kept, SharedModel)
    assert kept.tasks == inner.tasks
    inputs = {"tokens": stream("kind", 4, 3).inputs["tokens"]}  # type: ignore[index]
    for one, other in zip(kept(inputs).values(), inner(inputs).values(), strict=True):
        assert torch.equal(one, other)
    assert kept.shared_parameters() == inner.shared_parameters()
    assert kept.task_parameters("sum") == inner.task_parameters("sum")


def test_stages_are_kept_apart_and_their_cost_counts(tmp_path: Path) -> None:
    run = job(tmp_path, "equal")
    made = suite_of(run)
    stages = Stages(run, made)
    build_model = partial(build, made, parse("equal"))
    record = stages(build_model(0)[0], "one")
    stages(build_model(1)[0], "two", ("kind",))
    assert [len(r.tasks) for r in stages.records] == [3, 1]
    assert stages.records[0] == record
