"""Where mergekit, FusionBench and PEFT are at hand: their merges and ours of the same models.

They have requirements of their own, so each lives in an environment of its own, and a variable
names its interpreter; without it they are looked for in this one:

    python -m venv mk && mk/bin/pip install mergekit==0.1.5
    python -m venv fb && fb/bin/pip install fusion-bench==0.2.33 "transformers<5" "datasets<4.5"
    export POLYTASK_MERGEKIT=mk/bin/python POLYTASK_FUSIONBENCH=fb/bin/python
    export POLYTASK_PEFT=mk/bin/python    # mergekit brings it
    pytest tests/merge/test_peers.py tests/merge/test_peers_with_data.py

What differs on purpose is said where it is compared; docs/merge.md lists it.

Shapes: M = tuned models, N = draws, P = elements.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from polytask.merge import (
    SLERP,
    TIES,
    TSVM,
    AdapterMerge,
    Average,
    IsoC,
    IsoCTS,
    Options,
    TallMasks,
    TaskArithmetic,
    dare,
    merge_adapter_folders,
    read_recipe,
)

from .peers import run

DRAWS = 400


# mergekit: whole recipes on files ----------------------------------------------------------------

LAYERS, WIDTH, WORDS, POSITIONS = 4, 48, 640, 64


def gpt2() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (WORDS, WIDTH), "wpe.weight": (POSITIONS, WIDTH),
        "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, outs, ins in (
            ("attn.c_attn", 3 * WIDTH, WIDTH), ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH), ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):  # fmt: skip
            shapes |= {f"h.{layer}.{name}.weight": (ins, outs), f"h.{layer}.{name}.bias": (outs,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.{x}": (WIDTH,) for x in ("weight", "bias")}
    return shapes


CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": LAYERS, "n_embd": WIDTH,
    "n_head": 4, "n_positions": POSITIONS, "n_ctx": POSITIONS, "vocab_size": WORDS,
    "torch_dtype": "float32", "tie_word_embeddings": True,
}  # fmt: skip

CASES = {
    "linear": ({"weight": [1.0, 2.0, 0.5]}, {}),
    "task_arithmetic": ({"weight": [0.5, 0.3, -0.2]}, {"lambda": 0.7}),
    "task_arithmetic, normalised": ({"weight": [0.5, 0.3, 0.4]}, {"normalize": True}),
    "task_arithmetic, over layers": ({"weight": [[0, 0.5, 1], 0.3, [1, 0]]}, {}),
    "task_arithmetic, conditions": (
        {"weight": [[{"filter": "mlp", "value": 0.9}, {"value": 0.1}], 0.3, 0.2]},
        {},
    ),
    "ties": ({"weight": [1.0, 0.5, 2.0]}, {"density": 0.2}),
    "breadcrumbs": ({"weight": [0.3, 0.3, 0.3]}, {"density": 0.5, "gamma": 0.1}),
    "slerp": ({}, {"t": 0.3}),
    "slerp, over layers": ({}, {"t": [{"filter": "attn", "value": [0, 0.5, 1]}, {"value": 0.5}]}),
    "model_stock": ({}, {}),
}
"""Per recipe: what each model has for itself, and what all have."""

BORDER = {"ties": 3, "breadcrumbs": 6}
"""Most elements of a tensor that may differ: one for each model, or two, at the ends of what is
kept, where a share of the elements is rounded."""

MERGEKIT = """
import json, sys, yaml
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, allow_crimes=True)
for recipe in sorted(Path(sys.argv[1]).glob("*.yaml")):
    raw = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    run_merge(raw, str(recipe.with_suffix(".theirs")), options)
"""


def recipe(home: Path, name: str) -> dict[str, object]:
    method = name.split(",")[0]
    each, common = CASES[name]
    paths = [str(home / f"tuned{m}") for m in range(3)]
    raw: dict[str, object] = {"merge_method": method, "dtype": "float32"}
    if method == "slerp":
        return raw | {
            "base_model": paths[0],
            "models": [{"model": path} for path in paths[:2]],
            "parameters": common,
        }
    models = [
        {"model": path, "parameters": {key: values[m] for key, values in each.items()}}
        for m, path in enumerate(paths)
    ]
    if method != "linear":
        raw["base_model"] = str(home / "base")
    return raw | {"models": models, "parameters": common}


@pytest.fixture(scope="module")
def merged_by_mergekit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every recipe and mergekit's result of it."""
    home = tmp_path_factory.mktemp("mergekit")
    draw = torch.Generator().manual_seed(0)
    shapes = gpt2()
    base = {n: 0.02 * torch.randn(s, generator=draw) for n, s in shapes.items()}
    # A part of the change that all share, so that angles are acute: model stock, see there.
    joint = {n: 0.002 * torch.randn(s, generator=draw) for n, s in shapes.items()}
    models = {"base": base}
    for m in range(3):
        own = {n: 0.002 * torch.randn(s, generator=draw) for n, s in shapes.items()}
        models[f"tuned{m}"] = {n: base[n] + joint[n] + own[n] for n in base}
    for name, tensors in models.items():
        (home / name).mkdir()
        (home / name / "config.json").write_text(json.dumps(CONFIG))
        save_file(tensors, home / name / "model.safetensors", metadata={"format": "pt"})
    for name in CASES:
        (home / f"{name}.yaml").write_text(yaml.safe_dump(recipe(home, name)))
    run("MERGEKIT", MERGEKIT, home)
    return home


@pytest.mark.parametrize("name", CASES)
def test_the_same_recipe_gives_what_mergekit_gives(merged_by_mergekit: Path, name: str) -> None:
    """TIES with `over: tensor`, mergekit's way; the paper trims over the whole model."""
    path = merged_by_mergekit / f"{name}.yaml"
    if name == "ties":
        raw = yaml.safe_load(path.read_text())
        raw["parameters"]["over"] = "tensor"
        path = path.with_suffix(".ours")
        path.write_text(yaml.safe_dump(raw))
    ours, _ = read_recipe(path).job(Options()).tensors()
    written = load_file((merged_by_mergekit / f"{name}.theirs") / "model.safetensors")
    theirs = {n.removeprefix("transformer."): value_P for n, value_P in written.items()}
    assert ours.keys() == theirs.keys()
    for tensor, value_P in ours.items():
        far_P = (value_P - theirs[tensor]).abs() > 1e-6 * theirs[tensor].abs() + 1e-8
        assert int(far_P.sum()) <= BORDER.get(name, 0), tensor


MERGEKIT_DARE = """
import sys, torch
from safetensors.torch import load_file, save_file
from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify
torch.manual_seed(0)
tau = load_file(sys.argv[1])["tau"]
drawn = [sparsify(tau, density=0.3, method=SparsificationMethod.random, rescale_norm=RescaleNorm.l1)
         for _ in range(int(sys.argv[3]))]
save_file({"mean": torch.stack(drawn).mean(0)}, sys.argv[2])
"""


def near_in_expectation(mean_P: torch.Tensor, tau_P: torch.Tensor, density: float) -> bool:
    """Return whether a mean of draws is as far from the change as so many draws should leave it."""
    expected = math.sqrt((1 - density) / density / DRAWS)
    return 0.85 < float((mean_P - tau_P).norm() / tau_P.norm()) / expected < 1.15


def test_dare_drops_as_mergekit_does_on_average(tmp_path: Path) -> None:
    """Draws differ, and mergekit scales by a ratio of norms: the mean and spread are the same."""
    tau_P = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    save_file({"tau": tau_P}, tmp_path / "in")
    run("MERGEKIT", MERGEKIT_DARE, tmp_path / "in", tmp_path / "out", DRAWS)
    assert near_in_expectation(load_file(tmp_path / "out")["mean"], tau_P, 0.3)
    assert near_in_expectation(drawn(tau_P, 0.3), tau_P, 0.3)


def drawn(tau_P: torch.Tensor, density: float) -> torch.Tensor:
    """Return the mean of our draws."""
    zero_P = torch.zeros_like(tau_P)
    made_NP = [dare(zero_P, tau_P[None], drop=1 - density, scale=1.0, seed=n) for n in range(DRAWS)]
    return torch.stack(made_NP).mean(0)


# FusionBench: functions on tensors ---------------------------------------------------------------

FUSIONBENCH = """
import contextlib, io, sys, torch
from safetensors.torch import load_file, save_file
from fusion_bench.method.dare.utils import param_random_drop_
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.slerp.slerp_utils import slerp
from fusion_bench.method.tall_mask.utils import generate_task_masks
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction)
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from fusion_bench.utils.state_dict_arithmetic import state_dict_add, state_dict_mul, state_dict_sub
torch.manual_seed(0)
given = load_file(sys.argv[1])
base, tuned = given["base"], given["tuned"]
tau, flat = tuned - base, (tuned - base).flatten(1)
one = lambda: [{"w": x.clone()} for x in tau]
found = {}
with contextlib.redirect_stdout(io.StringIO()):
    found["average"] = simple_average([{"w": x.clone()} for x in tuned])["w"]
    change = None
    for weight in tuned:  # as its task arithmetic does
        own = state_dict_sub({"w": weight}, {"w": base})
        change = own if change is None else state_dict_add(change, own)
    found["task-arithmetic"] = state_dict_add({"w": base}, state_dict_mul(change, 0.3))["w"]
    found["ties"] = base + ties_merging(flat.clone(), reset_thresh=20, merge_func="mean").reshape(
        base.shape)
    found["slerp"] = slerp(0.3, tuned[0], tuned[1])
    found["iso-c"] = base + iso_c(one(), accelerator="cpu")["w"]
    found["iso-cts"] = base + iso_cts(one(), 0.8, accelerator="cpu")["w"]
    found["tsv-m"] = base + compute_and_sum_svd_mem_reduction(
        one(), accelerator=torch.device("cpu"))["w"]
    found["masks"] = generate_task_masks(
        flat, tuned.flatten(1), base.flatten(), tall_mask_lambda=0.4).to(torch.uint8)
    drops = []
    for _ in range(int(sys.argv[3])):
        parameter = torch.nn.Parameter(given["tau"].clone())
        param_random_drop_(parameter, 0.7, True)
        drops.append(parameter.data)
    found["dare"] = torch.stack(drops).mean(0)
save_file({k: v.detach().contiguous() for k, v in found.items()}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def by_fusionbench(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return a base, tuned models, a change, and what FusionBench makes of them."""
    home = tmp_path_factory.mktemp("fusionbench")
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(64, 48, generator=draw, dtype=torch.float64)
    tuned = base + 0.1 * torch.randn(4, 64, 48, generator=draw, dtype=torch.float64)
    tau_P = torch.randn(4000, generator=draw)
    save_file({"base": base, "tuned": tuned, "tau": tau_P}, home / "in")
    run("FUSIONBENCH", FUSIONBENCH, home / "in", home / "out", DRAWS)
    return base, tuned, tau_P, load_file(home / "out")


KEPT = int(0.2 * 64 * 48) + 1
"""FusionBench's TIES keeps one element more than a share of 20 % is."""

SAME = {
    "average": (Average(), 1e-12),
    "task-arithmetic": (TaskArithmetic(0.3), 1e-12),
    "ties": (TIES(KEPT / (64 * 48)), 1e-12),
    "slerp": (SLERP(0.3), 1e-6),  # it goes by way of float32
    "iso-c": (IsoC(), 1e-9),
    "iso-cts": (IsoCTS(), 1e-9),
    "tsv-m": (TSVM(), 1e-9),
}
"""A method, and how far from FusionBench's an element may be."""


@pytest.mark.parametrize("name", SAME)
def test_the_same_tensors_give_what_fusionbench_gives(by_fusionbench, name) -> None:
    base, tuned, _, theirs = by_fusionbench
    method, within = SAME[name]
    ours = method(base, tuned[: method.most])
    assert float((ours - theirs[name]).abs().max()) <= within


def test_tall_masks_are_fusionbench_s_bit_for_bit(by_fusionbench) -> None:
    base, tuned, _, theirs = by_fusionbench
    flat_MP = tuned.flatten(1) - base.flatten()
    for task, mask_P in enumerate(theirs["masks"].bool()):
        ours_P = TallMasks(task, 0.4, 1.0)(base, tuned).flatten()
        joint_P = base.flatten() + flat_MP.sum(0)
        wanted_P = torch.where(mask_P, joint_P, base.flatten())
        torch.testing.assert_close(ours_P, wanted_P, rtol=0, atol=1e-12)


def test_dare_drops_as_fusionbench_does_on_average(by_fusionbench) -> None:
    _, _, tau_P, theirs = by_fusionbench
    assert near_in_expectation(theirs["dare"], tau_P, 0.3)
    assert near_in_expectation(drawn(tau_P, 0.3), tau_P, 0.3)


# PEFT: folders it wrote, and what it loads again

PEFT_MODEL = """
import sys, torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
home, dora = sys.argv[1], sys.argv[2] == "dora"
def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
def dense(model):
    merged = model.merge_and_unload()
    return {n: p.detach().clone() for n, p in merged.named_parameters()}
"""

PEFT_WRITES = (
    PEFT_MODEL
    + """
save_file({n: p.detach() for n, p in base().named_parameters()}, f"{home}/base.safetensors")
for seed, (rank, alpha, rs) in enumerate(((2, 6, False), (3, 4, not dora))):
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rs, use_dora=dora,
                        target_modules=["0", "2"], init_lora_weights=False)
    model = get_peft_model(base(), config)
    torch.manual_seed(10 + seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.rand_like(parameter) * 0.5 + 0.1
    model.save_pretrained(f"{home}/{seed}")
    save_file(dense(model), f"{home}/{seed}.safetensors")
"""
)

PEFT_READS = (
    PEFT_MODEL
    + """
loaded = PeftModel.from_pretrained(base(), f"{home}/out")
save_file(dense(loaded), f"{home}/out.safetensors")
"""
)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_loads_a_merged_adapter_as_the_sum_of_its_own(tmp_path: Path, kind: str) -> None:
    """LoRA beside rsLoRA of another rank, and DoRA: what each does to the weights adds up."""
    run("PEFT", PEFT_WRITES, tmp_path, kind)
    base = load_file(tmp_path / "base.safetensors")
    weights = (0.7, 0.6)
    folders = [tmp_path / "0", tmp_path / "1"]
    merge_adapter_folders(
        folders, tmp_path / "out", AdapterMerge(weights), tmp_path / "base.safetensors"
    )
    run("PEFT", PEFT_READS, tmp_path, kind)
    found = load_file(tmp_path / "out.safetensors")
    own = [load_file(tmp_path / f"{seed}.safetensors") for seed in range(2)]
    for name, start in base.items():
        wanted = start + sum(w * (o[name] - start) for w, o in zip(weights, own, strict=True))
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5)
        assert name.endswith("bias") or float((wanted - start).norm()) > 0.1
