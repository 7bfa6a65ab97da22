"""Adapters merged by their factors give the weights that dense merging gives, in PEFT's format.

The dense side is written here from the papers' equations. The same folders were merged and loaded
by PEFT 0.21.2 once (LoRA, rsLoRA, DoRA, biases, saved modules, a convolution): float32 apart.
"""

import json
import math

import pytest
import safetensors.torch
import torch

from polytask.errors import DataError, UsageError
from polytask.merge import AdapterMerge, merge_adapter_folders
from polytask.merge.adapter_files import load_adapter
from polytask.merge.adapters import Change, as_dora, dora, lora, reduced, row_norms, summed
from polytask.merge.peft_adapters import merge_adapters, read_adapter, write_adapter

OUT, IN = 7, 11


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


BASE = {
    "net.a.weight": randn(OUT, IN), "net.a.bias": randn(OUT), "net.b.weight": randn(4, OUT),
    "net.conv.weight": randn(5, 3, 2, 2), "head.weight": randn(2, 4), "head.bias": randn(2),
}  # fmt: skip


def config_of(**settings):
    return {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["a"]} | settings


def tensors_of(seed, rank=3, dora_too=False, layers=("net.a", "net.b", "net.conv")):
    tensors = {}
    for layer in layers:
        out, *others = BASE[f"{layer}.weight"].shape
        name = f"base_model.model.{layer}"
        ones = [1] * (len(others) - 1)
        tensors[f"{name}.lora_A.weight"] = randn(rank, *others, seed=seed)
        tensors[f"{name}.lora_B.weight"] = randn(out, rank, *ones, seed=seed + 50)
        if dora_too:
            shape = (1, out, *ones) if ones else (out,)
            tensors[f"{name}.lora_magnitude_vector"] = randn(*shape, seed=seed + 90).abs() + 0.1
    return tensors


def dense(config, tensors, layer):
    """Return the layer's weight as the papers define it."""
    name, base = f"base_model.model.{layer}", BASE[f"{layer}.weight"]
    if f"{name}.lora_A.weight" not in tensors:
        return base
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    scale = config["lora_alpha"] / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
    weight = base + scale * (b.flatten(1) @ a.flatten(1)).reshape(base.shape)
    magnitude = tensors.get(f"{name}.lora_magnitude_vector")
    if magnitude is None:
        return weight
    norm = weight.flatten(1).norm(dim=1)
    return (magnitude.flatten() / norm).reshape(-1, *[1] * (base.dim() - 1)) * weight


KINDS = {
    "lora": [({}, {}), ({"lora_alpha": 5}, {"rank": 2})],
    "rslora": [({"use_rslora": True}, {"rank": 5}), ({}, {})],
    "dora": [({"use_dora": True}, {"dora_too": True}), ({"use_dora": True}, {"dora_too": True})],
    "dora and lora": [({"use_dora": True}, {"dora_too": True}), ({}, {"rank": 1})],
    "other layers": [({}, {"layers": ("net.a",)}), ({}, {"layers": ("net.b", "net.conv")})],
    "more rank than rows": [({}, {"rank": 9}), ({"use_rslora": True}, {"rank": 9})],
}


@pytest.mark.parametrize("weights", [(), (0.7, 0.6), (1.0, -1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_adapter_is_the_weighted_sum_of_the_dense_changes(kind, weights):
    pairs = [
        (config_of(**config), tensors_of(seed, **made))
        for seed, (config, made) in enumerate(KINDS[kind])
    ]
    adapters = [read_adapter(*pair, BASE) for pair in pairs]
    merged, errors = merge_adapters(adapters, AdapterMerge(weights), BASE)
    config, tensors = write_adapter(merged, BASE, torch.float64)
    assert errors == {}
    again = read_adapter(config, tensors, BASE)
    for layer in ("net.a", "net.b", "net.conv"):
        base = BASE[f"{layer}.weight"]
        shares = weights or (0.5, 0.5)
        wanted = base + sum(
            share * (dense(*pair, layer) - base) for share, pair in zip(shares, pairs, strict=True)
        )
        for found in (merged, again):
            got = found.changes[layer].dense(base.flatten(1)).reshape(base.shape)
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
        scale = {"lora_alpha": config["alpha_pattern"].get(layer, config["lora_alpha"])}
        torch.testing.assert_close(dense(scale, tensors, layer), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4, 6, 20])
def test_the_rank_is_reduced_to_the_nearest_and_the_error_is_what_it_says(rank):
    changes = [lora(randn(3, IN, seed=s), randn(OUT, 3, seed=s + 9), 3.0) for s in range(4)]
    method = AdapterMerge((1.0, 0.5, 2.0, -1.0), rank)
    merged, whole = method(changes), AdapterMerge((1.0, 0.5, 2.0, -1.0))(changes)
    exact = whole.change.dense(torch.zeros(OUT, IN))
    got = merged.change.dense(torch.zeros(OUT, IN))
    assert merged.change.rank <= rank
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    nearest = u[:, :rank] * s[:rank] @ vh[:rank]
    torch.testing.assert_close(got, nearest, rtol=1e-9, atol=1e-9)
    lost = float((got - exact).norm() / exact.norm())
    assert abs(merged.error - lost) < 1e-9
    assert (merged.error < 1e-12) == (rank >= OUT)
    assert whole.error == 0


def test_reducing_forms_no_matrix_of_the_layer_s_size():
    """A layer of 10^5 by 10^5 would take 80 GB."""
    change = summed([lora(randn(4, 10**5), randn(10**5, 4, seed=1), 4.0)] * 2, (0.5, 0.5))
    merged = reduced(change, 4)
    assert merged.change.rank == 4
    assert merged.error < 1e-7  # the same adapter twice is of rank 4


def test_nothing_at_all_has_no_error():
    nothing = Change(torch.zeros(5, 3, dtype=torch.float64), randn(3, 4))
    assert reduced(nothing, 1).error == 0
    assert not bool(reduced(nothing, 1).change.dense(torch.zeros(5, 4)).any())


def test_averaging_the_factors_apart_is_something_else():
    """Why this file exists: the error of the usual shortcut, of two adapters of equal size."""
    first, second = (lora(randn(3, IN, seed=s), randn(OUT, 3, seed=s + 9), 3.0) for s in (1, 2))
    exact = AdapterMerge()([first, second]).change.dense(torch.zeros(OUT, IN))
    apart = (first.up_OR + second.up_OR) / 2 @ (first.down_RI + second.down_RI) / 2
    assert float((apart - exact).norm() / exact.norm()) > 0.5


def test_row_norms_and_dora_s_form_are_those_of_the_dense_matrix():
    base = BASE["net.a.weight"]
    change = lora(randn(3, IN, seed=3), randn(OUT, 3, seed=4), 2.0)
    torch.testing.assert_close(row_norms(change, base), change.dense(base).norm(dim=1))
    torch.testing.assert_close(
        dora(change, row_norms(change, base), base).dense(base), change.dense(base)
    )
    inner, magnitude = as_dora(change, base)
    torch.testing.assert_close(magnitude, change.dense(base).norm(dim=1))
    torch.testing.assert_close(inner.up_OR, change.up_OR)
    gone = Change(change.up_OR, change.down_RI, -torch.ones(OUT, dtype=torch.float64))
    with pytest.raises(UsageError, match="leaves nothing of row 0 of the base"):
        as_dora(gone, base)


def save(folder, config, tensors):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_folders_are_merged_with_biases_and_saved_modules(tmp_path):
    saved = [
        {"base_model.model.net.a.base_layer.bias": randn(OUT, seed=s),
         "base_model.model.head.weight": randn(2, 4, seed=s)}
        for s in (1, 2)
    ]  # fmt: skip
    configs = [config_of(bias="lora_only"), config_of(modules_to_save=["head"])]
    folders = [
        save(tmp_path / f"{s}", configs[s], tensors_of(s, layers=("net.a",)) | saved[s])
        for s in (0, 1)
    ]
    weights = (0.3, 0.5)
    errors = merge_adapter_folders(folders, tmp_path / "out", AdapterMerge(weights, 4), BASE)
    assert set(errors) == {"net.a"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert (config["bias"], config["modules_to_save"]) == ("lora_only", ["head"])
    out = load_adapter(tmp_path / "out")
    for name, base in (
        ("base_model.model.net.a.base_layer.bias", BASE["net.a.bias"]),
        ("base_model.model.head.weight", BASE["head.weight"]),
    ):
        wanted = base + sum(w * (s[name] - base) for w, s in zip(weights, saved, strict=True))
        torch.testing.assert_close(out.whole[name], wanted.float())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "out"]
    # With weights that sum to 1 the base cancels, and is not asked for.
    merge_adapter_folders(folders, tmp_path / "mean", AdapterMerge())
    mean = load_adapter(tmp_path / "mean").whole["base_model.model.head.weight"]
    head = "base_model.model.head.weight"
    torch.testing.assert_close(mean, ((saved[0][head] + saved[1][head]) / 2).float())
    with pytest.raises(UsageError, match=r"trained as a whole.*Give the base model, with"):
        merge_adapter_folders(folders, tmp_path / "no base", AdapterMerge(weights))
    with pytest.raises(UsageError, match="exists and is left as it is"):
        merge_adapter_folders(folders, tmp_path / "out", AdapterMerge())
    assert not (tmp_path / "no base").exists()


def test_patterns_say_the_scale_of_each_layer():
    config = config_of(alpha_pattern={"net.b": 12, r"co\w+": 3})
    adapter = read_adapter(config, tensors_of(0))
    for layer, alpha in (("net.a", 6), ("net.b", 12), ("net.conv", 3)):
        wanted = dense({"lora_alpha": alpha}, tensors_of(0), layer)
        base = BASE[f"{layer}.weight"].flatten(1)
        torch.testing.assert_close(adapter.changes[layer].dense(base), wanted.flatten(1))


def test_a_bias_trained_with_b_is_scaled_with_it():
    tensors = tensors_of(0, layers=("net.a",))
    tensors["base_model.model.net.a.lora_B.bias"] = randn(OUT, seed=8)
    adapter = read_adapter(config_of(lora_bias=True), tensors)
    merged, _ = merge_adapters([adapter, adapter], AdapterMerge((0.5, 0.25)))
    config, written = write_adapter(merged, dtype=torch.float64)
    assert config["lora_bias"]
    torch.testing.assert_close(
        written["base_model.model.net.a.lora_B.bias"], 0.75 * 2 * randn(OUT, seed=8)
    )


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"peft_type": "IA3"}, UsageError, "is of peft_type 'IA3'"),
        ({"layer_replication": [[0, 2]]}, UsageError, "uses 'layer_replication'"),
        ({"init_lora_weights": "pissa_niter_4"}, UsageError, "changes the base as well"),
        ({"fan_in_fan_out": True}, UsageError, "has fan_in_fan_out"),
        ({"use_dora": True}, DataError, "'net.a' has no lora_magnitude_vector"),
    ],
)
def test_what_would_be_merged_wrongly_is_refused(change, error, said):
    with pytest.raises(error, match=said):
        read_adapter(config_of(**change), tensors_of(0), BASE)


def test_tensors_that_do_not_fit_are_refused():
    tensors = tensors_of(0, layers=("net.a",))
    embedding = {"base_model.model.e.lora_embedding_A": randn(3, 4)}
    with pytest.raises(DataError, match="lora_embedding_A' is no factor of a linear"):
        read_adapter(config_of(), tensors | embedding)
    half = {k: v for k, v in tensors.items() if "lora_A" in k}
    with pytest.raises(DataError, match=r"'net\.a' has only one of lora_A and lora_B"):
        read_adapter(config_of(), half)
    with pytest.raises(UsageError, match=r"DoRA adapter.*give the base model"):
        read_adapter(config_of(), tensors_of(0, dora_too=True))
    wrong = BASE | {"net.a.weight": randn(3, 3)}
    with pytest.raises(UsageError, match=r"'net\.a\.weight' is \(3, 3\).*base it was trained on"):
        read_adapter(config_of(), tensors_of(0, dora_too=True), wrong)
    with pytest.raises(UsageError, match=r"A of shape \(R, I\) and B of shape \(O, R\)"):
        lora(randn(3, 4), randn(5, 2), 1.0)
    with pytest.raises(UsageError, match=r"matrices of one shape; these change \(5, 4\), \(6, 4\)"):
        AdapterMerge()([lora(randn(2, 4), randn(o, 2), 1.0) for o in (5, 6)])
    with pytest.raises(UsageError, match="1 weights for 2 adapters"):
        AdapterMerge((1.0,))([lora(randn(2, 4), randn(5, 2), 1.0)] * 2)
    with pytest.raises(UsageError, match="rank is 0; give a whole number >= 1"):
        AdapterMerge(rank=0)


def test_a_folder_that_is_no_adapter_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty has no adapter_config\.json"):
        load_adapter(tmp_path / "empty")
