"""`polytask merge` on PEFT adapters: the recipe's words, exact factors, and what stops it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from .conftest import Call, contents

PREFIX = "base_model.model"
SHAPES = {"layers.0.q": (7, 5), "layers.1.q": (6, 5)}


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """Three LoRA adapters of two layers, one of them a DoRA adapter, and the base."""
    base = {f"{layer}.weight": randn(9, *shape) for layer, shape in SHAPES.items()}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    for seed, name in enumerate(("a", "b", "d")):
        tensors = {}
        for layer, (out, inside) in SHAPES.items():
            tensors[f"{PREFIX}.{layer}.lora_A.weight"] = randn(seed, 3, inside)
            tensors[f"{PREFIX}.{layer}.lora_B.weight"] = randn(seed + 20, out, 3)
            if name == "d":
                magnitude = randn(seed + 40, out).abs() + 0.5
                tensors[f"{PREFIX}.{layer}.lora_magnitude_vector"] = magnitude
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": name == "d"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    return tmp_path


def write(
    folder: Path,
    method: str = "linear",
    models: Sequence[str] = "ab",
    weights=(1.0, 3.0),
    **keys: object,
) -> None:
    listed = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in zip(models, weights, strict=True)
    ]
    raw = {"merge_method": method, "models": listed, **keys}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))


def change(folder: Path, layer: str) -> torch.Tensor:
    """Return a LoRA layer's change, as PEFT adds it to the base."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    up, down = (tensors[f"{PREFIX}.{layer}.lora_{x}.weight"].double() for x in "BA")
    rank = config.get("rank_pattern", {}).get(layer, config["r"])
    alpha = config.get("alpha_pattern", {}).get(layer, config["lora_alpha"])
    assert len(down) == rank
    return alpha / rank * (up @ down)


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("linear", {}, (0.25, 0.75)),
        ("linear", {"normalize": True}, (0.25, 0.75)),
        ("task_arithmetic", {}, (1.0, 3.0)),
        ("task_arithmetic", {"lambda": 0.5}, (0.5, 1.5)),
        ("task_arithmetic", {"lambda": 2, "normalize": True}, (0.5, 1.5)),
        ("adapter-merge", {}, (0.25, 0.75)),
    ],
)
def test_a_recipe_of_adapters_becomes_an_adapter(
    polytask: Call, adapters: Path, method, parameters, expected
):
    write(adapters, method, parameters=parameters)
    said = polytask("merge", "recipe.yaml", "--out", "out")
    assert said.code == 0
    assert said.err == "Merging 2 adapters into out, by their factors.\n"
    assert said.out.startswith("Wrote out: 2 layers of rank 6 at most, nothing reduced, in ")
    for layer in SHAPES:
        wanted = sum(
            w * change(adapters / name, layer) for w, name in zip(expected, "ab", strict=True)
        )
        torch.testing.assert_close(change(adapters / "out", layer), wanted, rtol=1e-5, atol=1e-5)
    assert (adapters / "out" / "merge.yaml").read_text() == (adapters / "recipe.yaml").read_text()
    assert sorted(p.name for p in (adapters / "out").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "merge.yaml",
    ]  # fmt: skip


def test_a_reduced_rank_says_what_every_layer_lost(polytask: Call, adapters: Path):
    write(adapters, parameters={"rank": 2}, dtype="bfloat16")
    found = json.loads(polytask("merge", "recipe.yaml", "--out", "out", "--json").out)
    assert found["adapters"] == ["a", "b"]
    assert found["tensors"] == 4
    for layer in SHAPES:
        whole = 0.25 * change(adapters / "a", layer) + 0.75 * change(adapters / "b", layer)
        singular = torch.linalg.svdvals(whole)
        lost = float(singular[2:].norm() / singular.norm())
        one = found["layers"][layer]
        assert (one["rank"], one["of"]) == (2, 6)
        assert one["lost"] == pytest.approx(lost, rel=1e-6)
    kinds = {t.dtype for t in load_file(adapters / "out" / "adapter_model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    said = polytask("merge", "recipe.yaml", "--out", "again")
    table = [line.split() for line in said.out.splitlines()]
    assert table[0] == ["layer", "rank", "of", "share", "lost"]
    shown = f"{found['layers']['layers.0.q']['lost']:.2%}"
    assert table[1] == ["layers.0.q", "2", "6", shown]
    assert "layers of rank 2 at most, 2 of them reduced" in said.out.splitlines()[-1]


def test_dora_needs_the_base_and_is_merged_with_it(polytask: Call, adapters: Path):
    write(adapters, models="ad")
    said = polytask("merge", "recipe.yaml")
    assert said.code == 2
    assert "has a DoRA adapter" in said.err
    assert "give the base model" in said.err
    assert not (adapters / "merged").exists()
    write(adapters, models="ad", base_model="base")
    assert polytask("merge", "recipe.yaml").code == 0
    written = json.loads((adapters / "merged" / "recipe" / "adapter_config.json").read_text())
    assert written["use_dora"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "ties"}, "'ties' looks at whole weights"),
        ({"parameters": {"density": 0.2}}, "Unknown key of parameters"),
        ({"parameters": {"rank": 0}}, "rank is 0; give a whole number >= 1"),
        ({"parameters": {"rank": 2.5}}, "rank is 2.5; give a whole number >= 1"),
        ({"parameters": {"rank": [2, 3]}}, "rank is [2, 3]; for adapters it is one number"),
        ({"parameters": {"normalize": False}}, "normalize is false, and only true is supported"),
        ({"weights": (1.0, -1.0)}, "sum to 0, and a mean divides by that"),
        ({"weights": ([0, 1], 1.0)}, "weight is [0, 1]; for adapters it is one number"),
        ({"weights": (float("nan"), 1.0)}, "a weight is nan; give a finite number"),
        ({"tokenizer_source": "base"}, "tokenizer_source has no meaning for adapters"),
        ({"leave_out": ["x"]}, "leave_out has no meaning for adapters"),
        ({"rank": 3}, "Unknown key in recipe.yaml 'rank'"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"base_model": "nowhere"}, "'nowhere' is neither beside the recipe nor in"),
        ({"models": ("a", "zz")}, "'zz' is neither beside the recipe"),
        (
            {"method": "task_arithmetic", "parameters": {"lambda": "x"}},
            "lambda is 'x'; give a number",
        ),
        ({"weights": ("x", 1.0)}, "weight is 'x'; give a number"),
    ],
)
def test_what_a_recipe_cannot_ask_for_is_one_line(polytask: Call, adapters: Path, keys, said):
    write(adapters, **keys)
    before = contents(adapters)
    got = polytask("merge", "recipe.yaml")
    assert got.code == 2
    assert said in got.line
    assert contents(adapters) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "p.html"], "--report has no meaning with adapters"),
        (["--threads", 2], "--threads has no meaning with adapters"),
        (["--shard-size", "1GB"], "--shard-size has no meaning with adapters"),
        (["--nonfinite", "continue"], "--nonfinite has no meaning with adapters"),
        (["--leave-out", "x"], "--leave-out has no meaning with adapters"),
    ],
)
def test_options_of_whole_models_are_refused(polytask: Call, adapters: Path, options, said):
    write(adapters)
    got = polytask("merge", "recipe.yaml", *options)
    assert got.code == 2
    assert said in got.line


def test_an_adapter_beside_a_model_is_refused(polytask: Call, adapters: Path):
    write(adapters, models=["a", "base"])
    got = polytask("merge", "recipe.yaml")
    assert got.code == 2
    assert "a is an adapter and base is none; merge adapters with each other" in got.line


@pytest.mark.parametrize(
    ("out", "said"),
    [("b", "b exists and is left as it is"), ("x.safetensors", "an adapter is a folder")],
)
def test_a_place_that_does_not_do_is_refused(polytask: Call, adapters: Path, out, said):
    write(adapters)
    got = polytask("merge", "recipe.yaml", "--out", out)
    assert got.code == 2
    assert said in got.err


def test_damage_is_named_and_leaves_nothing_behind(polytask: Call, adapters: Path):
    write(adapters)
    path = adapters / "b" / "adapter_model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    tensors[f"{PREFIX}.layers.1.q.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    got = polytask("merge", "recipe.yaml")
    assert got.code == 1
    assert "layers.1.q.lora_A.weight' of b holds values that are NaN or infinite" in got.err
    path.write_bytes(whole)
    path.with_name("SHA256SUMS").write_text(f"{'0' * 64}  adapter_model.safetensors\n")
    got = polytask("merge", "recipe.yaml")
    assert got.code == 1
    assert "is damaged: its SHA-256 is" in got.err
    assert not (adapters / "merged").exists()
    assert polytask("merge", "recipe.yaml", "--no-checksums").code == 0


def test_a_value_out_of_the_dtype_s_range_is_named(polytask: Call, adapters: Path):
    write(adapters, "task_arithmetic", weights=(1e6, 1.0), dtype="float16")
    got = polytask("merge", "recipe.yaml")
    assert got.code == 1
    assert "out of the range of float16" in got.err
    assert not (adapters / "merged").exists()
