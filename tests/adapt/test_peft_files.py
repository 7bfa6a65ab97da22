"""PEFT's LoRA folders: written by hand in its format, by PEFT itself where it is installed."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from polytask.adapt import (
    At,
    BitFit,
    Bottleneck,
    DoRA,
    LoRA,
    adapt,
    load_peft,
    save_peft,
)
from polytask.errors import DataError, UsageError

from .rowwise import moved


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False)])
        self.conv = nn.Conv1d(6, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.conv(x.mT)


def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Base().double()


X = torch.tensor([[1, 2, 3], [4, 8, 0]])
LAYERS = {"words": (9, 6), "blocks.0": (6, 6), "blocks.1": (6, 6), "conv": (6, 4)}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def folder(path, layers, seed=0, rank=2, more=None, **changed):
    """Write a folder as PEFT does, by hand."""
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 3, "lora_dropout": 0.0, "bias": "none",
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "target_modules": list(layers), "init_lora_weights": True,
        "fan_in_fan_out": False,
    } | changed  # fmt: skip
    tensors = {}
    for i, layer in enumerate(layers):
        name, own = f"base_model.model.{layer}", config["rank_pattern"].get(layer, rank)
        wide, out = LAYERS[layer]
        seed += 10 * (i + 1)
        if layer == "words":
            tensors[f"{name}.lora_embedding_A"] = drawn(own, wide, seed=seed)
            tensors[f"{name}.lora_embedding_B"] = drawn(out, own, seed=seed + 1)
            continue
        kernel = (3,) if layer == "conv" else ()
        tensors[f"{name}.lora_A.weight"] = drawn(own, wide, *kernel, seed=seed)
        tensors[f"{name}.lora_B.weight"] = drawn(out, own, *[1 for _ in kernel], seed=seed + 1)
        if config["use_dora"]:
            magnitude = drawn(out, seed=seed + 2).abs() + 0.5
            shaped = magnitude.view(1, -1, 1) if kernel else magnitude
            tensors[f"{name}.lora_magnitude_vector"] = shaped
    path.mkdir()
    tensors |= more or {}
    save_file({n: v.contiguous() for n, v in tensors.items()}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return config, tensors


def merged(config, tensors):
    """Return the base with the folder's changes in its weights, by the definitions."""
    model = base()
    for layer, (_, out) in LAYERS.items():
        name, weight = f"base_model.model.{layer}", model.get_submodule(layer).weight
        if f"{name}.lora_embedding_A" in tensors:
            down, up = tensors[f"{name}.lora_embedding_A"], tensors[f"{name}.lora_embedding_B"]
            product = (up @ down).T
        elif f"{name}.lora_A.weight" in tensors:
            down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            product = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        else:
            continue
        rank, alpha = len(down), config["alpha_pattern"].get(layer, config["lora_alpha"])
        whole = weight.data + alpha / (math.sqrt(rank) if config["use_rslora"] else rank) * product
        if config["use_dora"]:
            length = tensors[f"{name}.lora_magnitude_vector"].flatten() / whole.flatten(1).norm(
                dim=1
            )
            whole = length.view(out, *[1] * (whole.dim() - 1)) * whole
        weight.data = whole
        bias = tensors.get(f"{name}.bias", tensors.get(f"{name}.base_layer.bias"))
        if bias is not None:
            model.get_submodule(layer).bias.data = bias
        if f"{name}.lora_B.bias" in tensors:
            model.get_submodule(layer).bias.data += alpha / rank * tensors[f"{name}.lora_B.bias"]
    return model


CASES = {
    "lora": (["words", "blocks.0", "blocks.1", "conv"], {}),
    "rslora": (["blocks.0", "conv"], {"use_rslora": True}),
    "dora": (["blocks.0", "blocks.1", "conv"], {"use_dora": True}),
    "patterns": (
        ["words", "blocks.0", "blocks.1"],
        {"rank_pattern": {"blocks.0": 3}, "alpha_pattern": {"blocks.1": 7}},
    ),
    "biases": (["blocks.0", "conv"], {"bias": "all"}),
    "conv1d flag": (["blocks.0"], {"fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_the_change_that_it_defines(tmp_path, case):
    layers, changed = CASES[case]
    written = folder(tmp_path / "a", layers, **changed)
    adapted = load_peft(base(), {"it": tmp_path / "a"})
    wanted = merged(*written)(X)
    with adapted.task("it"):
        torch.testing.assert_close(adapted(X), wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(adapted.extract("it")(X), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_written_again_is_the_same_folder(tmp_path, case):
    layers, changed = CASES[case]
    config, tensors = folder(tmp_path / "a", layers, **changed)
    adapted = load_peft(base(), {"it": tmp_path / "a"})
    save_peft(tmp_path / "b", adapted, "it", base="org/model")
    again = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[n], tensors[n]) for n in tensors)
    back = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert back["base_model_name_or_path"] == "org/model"
    for name in ("use_rslora", "use_dora", "peft_type"):
        assert back[name] == config[name]
    for path in layers:
        ranks = [c["rank_pattern"].get(path, c["r"]) for c in (config, back)]
        alphas = [c["alpha_pattern"].get(path, c["lora_alpha"]) for c in (config, back)]
        assert ranks[0] == ranks[1]
        assert alphas[0] == alphas[1]


@pytest.mark.parametrize("dora", [(False,) * 3, (True,) * 3, (False, True, False)])
def test_folders_of_several_tasks_run_in_one_batch(tmp_path, dora):
    """Of other ranks, scales and layers: each row is its own folder's model."""
    sets = [(["blocks.0", "conv"], {"rank": 2}), (["blocks.0", "blocks.1"], {"rank": 4}),
            (["conv"], {"rank": 1, "use_rslora": True, "lora_alpha": 5})]  # fmt: skip
    written = [
        folder(tmp_path / str(i), layers, seed=i, use_dora=dora[i], **changed)
        for i, (layers, changed) in enumerate(sets)
    ]
    adapted = load_peft(base(), {f"t{i}": tmp_path / str(i) for i in range(3)})
    index_B = torch.tensor([2, 0, -1, 1, 0])
    x = torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), adapted.tasks(index_B):
        came = adapted(x)
    models = [merged(*one) for one in written]
    for row, task, out in zip(x, index_B.tolist(), came, strict=True):
        own = base() if task < 0 else models[task]
        torch.testing.assert_close(out, own(row[None])[0].detach(), rtol=1e-10, atol=1e-11)
    save_peft(tmp_path / "again", adapted, "t1")
    alone = load_peft(base(), {"t1": tmp_path / "again"})
    with torch.no_grad(), alone.task("t1"):
        torch.testing.assert_close(alone(X), models[1](X), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["blocks.0.bias", "blocks.0.base_layer.bias"])
def test_biases_are_read_as_what_they_are_and_written_again(tmp_path, name):
    own = drawn(6, seed=4)
    written = folder(tmp_path / "a", ["blocks.0", "blocks.1"], bias="lora_only",
                     more={f"base_model.model.{name}": own})  # fmt: skip
    adapted = load_peft(base(), {"it": tmp_path / "a"})
    with adapted.task("it"):
        torch.testing.assert_close(adapted(X), merged(*written)(X), rtol=1e-11, atol=1e-11)
    save_peft(tmp_path / "b", adapted, "it")
    again = load_file(tmp_path / "b" / "adapter_model.safetensors")
    torch.testing.assert_close(again["base_model.model.blocks.0.base_layer.bias"], own)
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["bias"] == "lora_only"


def test_the_bias_of_an_up_factor_is_scaled_as_it_is(tmp_path):
    more = {"base_model.model.blocks.0.lora_B.bias": drawn(6, seed=4)}
    written = folder(tmp_path / "a", ["blocks.0"], lora_bias=True, more=more)
    adapted = load_peft(base(), {"it": tmp_path / "a"})
    with adapted.task("it"):
        torch.testing.assert_close(adapted(X), merged(*written)(X), rtol=1e-11, atol=1e-11)


def test_modules_saved_as_a_whole_are_handed_out_and_never_dropped(tmp_path):
    head = {"base_model.model.head.weight": drawn(2, 6), "base_model.model.head.bias": drawn(2)}
    folder(tmp_path / "a", ["blocks.0"], modules_to_save=["head"], bias="all", more=head)
    with pytest.raises(UsageError, match=r"saved as a whole \(head.bias, head.weight\); give"):
        load_peft(base(), {"it": tmp_path / "a"})
    saved = {}
    load_peft(base(), {"it": tmp_path / "a"}, saved=saved)
    assert saved["it"].keys() == {"head.weight", "head.bias"}
    assert torch.equal(saved["it"]["head.weight"], head["base_model.model.head.weight"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, r"peft_type 'IA3'; adapters of type 'LORA' can be loaded"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication', which cannot be loaded"),
        ({"target_parameters": ["w"]}, "'target_parameters'"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base as well"),
        ({"use_dora": True, "layers": ["conv"]}, None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changed, said):
    layers = changed.pop("layers", ["blocks.0"])
    folder(tmp_path / "a", layers, **changed)
    if said is None:
        load_peft(base(), {"it": tmp_path / "a"})
        return
    with pytest.raises(UsageError, match=said):
        load_peft(base(), {"it": tmp_path / "a"})


def test_nothing_is_unpickled(tmp_path):
    folder(tmp_path / "a", ["blocks.0"])
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UsageError, match=r"runs code when it is read.*Write it again with a new"):
        load_peft(base(), {"it": tmp_path / "a"})


def test_what_does_not_fit_is_answered(tmp_path):
    folder(tmp_path / "a", ["blocks.0", "conv"])
    folder(tmp_path / "drops", ["blocks.0"], lora_dropout=0.1)
    other = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(5, 6)]), "conv": nn.Conv1d(6, 4, 3)})
    with pytest.raises(UsageError, match=r"at 'blocks.0' it has a tensor of shape \(2, 6\)"):
        load_peft(other, {"it": tmp_path / "a"})
    assert not any(m._forward_hooks for m in other.modules())
    assert all(p.requires_grad for p in other.parameters())
    with pytest.raises(UsageError, match=r"adapts 'blocks.0', which the model does not have"):
        load_peft(nn.ModuleDict({"block": nn.Linear(6, 6)}), {"it": tmp_path / "a"})
    with pytest.raises(UsageError, match=r"have lora_dropout \[0.0, 0.1\]"):
        load_peft(base(), {"a": tmp_path / "a", "b": tmp_path / "drops"})
    with pytest.raises(UsageError, match="no folder was given"):
        load_peft(base(), {})
    with pytest.raises(UsageError, match="LoRA can be loaded on linear layers, convolutions and"):
        load_peft(nn.ModuleDict({"blocks": nn.ModuleList([nn.LayerNorm(6)])}),
                  {"it": tmp_path / "a"})  # fmt: skip
    with pytest.raises(UsageError, match=r"none has no adapter_config.json"):
        load_peft(base(), {"it": tmp_path / "none"})
    bad = {"base_model.model.blocks.1.lora_A.weight": drawn(2, 6)}
    folder(tmp_path / "half", ["blocks.0"], more=bad)
    with pytest.raises(DataError, match="has only one of lora_A and lora_B"):
        load_peft(base(), {"it": tmp_path / "half"})
    bad = {"base_model.model.blocks.0.lora_A.weight": torch.full((2, 6), torch.nan)}
    folder(tmp_path / "nan", ["blocks.0"], more=bad)
    with pytest.raises(DataError, match="NaN or infinite"):
        load_peft(base(), {"it": tmp_path / "nan"})
    (tmp_path / "nan" / "adapter_model.safetensors").write_bytes(b"xxxx")
    with pytest.raises(DataError, match="is damaged"):
        load_peft(base(), {"it": tmp_path / "nan"})


def test_a_bias_that_is_not_there_is_refused(tmp_path):
    more = {"base_model.model.blocks.1.bias": drawn(6)}
    folder(tmp_path / "a", ["blocks.1"], bias="lora_only", more=more)
    with pytest.raises(UsageError, match=r"a trained bias of 'blocks.1', which has none"):
        load_peft(base(), {"it": tmp_path / "a"})


def test_what_peft_has_no_form_for_is_not_written(tmp_path):
    linear = ("blocks.0", "blocks.1")

    def refused(plan, said, **more):
        with pytest.raises(UsageError, match=said):
            save_peft(tmp_path / "out", adapt(base(), plan, ("a",), **more), "a")
        assert not (tmp_path / "out").exists()

    refused([At(Bottleneck(2), linear)], "BottleneckAdapter at 'blocks.0' has no form")
    refused([At(LoRA(2), linear), At(BitFit(), "conv")], "BitFit at 'conv' is no part")
    refused([At(LoRA(2), linear), At(LoRA(3), "blocks.1")], "LoRAAdapter at 'blocks.1', a second")
    refused([At(LoRA(2), "blocks.0"), At(DoRA(2), "blocks.1")], "some have LoRA and some DoRA")
    refused([At(LoRA(2, dropout=0.1), "blocks.0"), At(LoRA(2), "blocks.1")], "differ in their drop")
    refused([At(LoRA(2), linear)], "is no part of a LoRA adapter", train="conv")
    with pytest.raises(UsageError, match="Unknown task"):
        save_peft(tmp_path / "out", adapt(base(), LoRA(), ("a",), linear), "b")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists and is left as it is"):
        save_peft(tmp_path / "out", adapt(base(), LoRA(), ("a",), linear), "a")


def test_packed_attention_has_no_form_there(tmp_path):
    model = nn.Module()
    model.attention = nn.MultiheadAttention(6, 2)
    with pytest.raises(UsageError, match=r"at 'attention.q_proj' in packed attention has no form"):
        save_peft(tmp_path / "out", adapt(model, LoRA(2), ("a",), "q_proj"), "a")


@pytest.mark.parametrize("case", ["lora", "rslora", "dora", "patterns", "biases"])
def test_peft_reads_what_is_written_and_is_read(tmp_path, case):
    peft = pytest.importorskip("peft")
    layers, changed = CASES[case]
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=list(layers), init_lora_weights=False, **changed
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base(), config).double()
    for name, p in theirs.named_parameters():
        if p.requires_grad and ("magnitude" in name or name.endswith("bias")):
            p.data += 0.1 * torch.rand_like(p)
    theirs.save_pretrained(tmp_path / "a")
    ours = load_peft(base(), {"it": tmp_path / "a"})
    with ours.task("it"):
        torch.testing.assert_close(ours(X), theirs(X), rtol=1e-6, atol=1e-6)
    moved(ours)
    save_peft(tmp_path / "b", ours, "it")
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "b")).double()
    with ours.task("it"):
        torch.testing.assert_close(again(X), ours(X), rtol=1e-6, atol=1e-6)


def test_layers_of_hugging_face_that_store_their_weight_turned(tmp_path):
    transformers = pytest.importorskip("transformers.pytorch_utils")
    layer = transformers.Conv1D(5, 6)
    model = nn.ModuleDict({"c": layer}).double()
    path = tmp_path / "a"
    LAYERS["c"] = (6, 5)
    _, tensors = folder(path, ["c"], fan_in_fan_out=True)
    del LAYERS["c"]
    adapted = load_peft(model, {"it": path})
    x = drawn(2, 6)
    down, up = (tensors[f"base_model.model.c.lora_{factor}.weight"] for factor in "AB")
    with adapted.task("it"):
        came = layer(x)
    wanted = functional.linear(x, layer.weight.T + 1.5 * up @ down, layer.bias)
    torch.testing.assert_close(came, wanted, rtol=1e-11, atol=1e-11)
    save_peft(tmp_path / "b", adapted, "it")
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["fan_in_fan_out"]


def test_loading_leaves_the_generator_and_the_base_alone(tmp_path):
    folder(tmp_path / "a", ["blocks.0"])
    model, before = base(), torch.get_rng_state()
    kept = copy.deepcopy(model.state_dict())
    load_peft(model, {"it": tmp_path / "a"})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())
