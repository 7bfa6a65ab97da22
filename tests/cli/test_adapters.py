"""`polytask adapters`: a library of adapters of one base, added, listed, composed exactly."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from polytask.adapt import At, Bottleneck, DoRA, LoRA, adapt, load_peft, save_adapted, save_peft
from polytask.errors import UsageError
from polytask.recipes.adapter_library import Library

from .conftest import Call, Said


def base(seed: int = 0, wide: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, wide), nn.Tanh(), nn.Linear(wide, 3))


def trained(tasks, seed=0, method=None, model=None):
    method = LoRA(2, 3.0) if method is None else method
    adapted = adapt(base() if model is None else model, method, tasks)
    generator = torch.Generator().manual_seed(seed)
    for p in adapted.parts.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return adapted


def on(polytask: Call, library: str, *args: object) -> Said:
    return polytask("adapters", "--library", library, *args)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    save_adapted(tmp_path / "two.safetensors", trained(("mnli", "qnli")), {"mnli": nn.Linear(3, 2)})
    save_peft(tmp_path / "peft", trained(("c",), seed=3), "c", base="org/model")
    return tmp_path


def test_a_file_and_a_folder_are_added_listed_and_composed(polytask: Call, shelf: Path):
    said = on(polytask, "lib", "add", "two.safetensors")
    assert (said.code, said.out) == (0, "Added mnli, qnli to lib.\n")
    assert said.err == "Heads of mnli stay in two.safetensors: a library holds adapters alone.\n"
    said = on(polytask, "lib", "add", "peft")
    assert said.code == 2
    assert said.line == (
        "peft does not say that its base is the library's; if it is, say so: --same-base."
    )
    said = polytask(
        "adapters", "--library", "lib", "add", "peft", "--name", "sum", "--same-base", "--json"
    )
    assert [e["name"] for e in json.loads(said.out)] == ["sum"]
    said = on(polytask, "lib", "list", "--json")
    listed = json.loads(said.out)
    assert [(e["name"], e["layers"], e["rank"], e["vouched"]) for e in listed["adapters"]] == [
        ("mnli", 2, 2, False), ("qnli", 2, 2, False), ("sum", 2, 2, True),
    ]  # fmt: skip
    assert listed["adapters"][0]["numbers"] == 2 * (5 + 4) + 2 * (4 + 3)
    assert listed["base"]["model"] == "org/model"
    assert "your word" in on(polytask, "lib", "list").out
    said = polytask(
        "adapters", "--library", "lib", "compose", "mnli=0.7", "sum=-0.5", "qnli", "--out", "both"
    )
    assert said.out == "Wrote both: 2 layers of rank at most 6, exact.\n"
    composed = load_peft(base(), {"it": shelf / "both"}).change("it")
    two, one = trained(("mnli", "qnli")), trained(("c",), seed=3)
    for name, change in composed.items():
        wanted = 0.7 * two.change("mnli")[name] - 0.5 * one.change("c")[name]
        torch.testing.assert_close(change, wanted + two.change("qnli")[name], rtol=1e-6, atol=1e-7)
    x = torch.randn(2, 5)
    with torch.no_grad():
        whole = load_peft(base(), {"it": shelf / "lib" / "sum"})
        with whole.task("it"), one.task("c"):
            torch.testing.assert_close(whole(x), one(x))


def test_a_lower_rank_is_the_nearest_and_its_loss_is_said(polytask: Call, shelf: Path):
    on(polytask, "lib", "add", "two.safetensors")
    said = polytask(
        "adapters", "--library", "lib", "compose", "mnli", "qnli", "--out", "low", "--rank", 1
    )
    assert "of rank at most 1; at most " in said.out
    assert said.out.rstrip().endswith("of a layer's change lost.")
    two = trained(("mnli", "qnli"))
    for name, change in load_peft(base(), {"it": shelf / "low"}).change("it").items():
        wanted = two.change("mnli")[name] + two.change("qnli")[name]
        left, values, right = torch.linalg.svd(wanted)
        nearest = values[0] * left[:, :1] @ right[:1]
        torch.testing.assert_close(change, nearest, rtol=1e-5, atol=1e-6)


def test_another_base_is_refused_whatever_the_user_says(polytask: Call, shelf: Path):
    on(polytask, "lib", "add", "two.safetensors")
    save_adapted(shelf / "other.safetensors", trained(("x",), model=base(seed=1)))
    said = on(polytask, "lib", "add", "other.safetensors", "--same-base")
    assert said.code == 2
    assert "other.safetensors belongs to another base: it has the fingerprint" in said.line
    save_peft(shelf / "wide", trained(("x",), model=base(wide=6)), "x")
    said = on(polytask, "lib", "add", "wide", "--same-base")
    assert said.code == 2
    assert "(5, 6) there and (5, 4) in 'qnli' of the library; their bases differ" in said.line
    on(polytask, "names", "add", "peft")
    save_peft(shelf / "elsewhere", trained(("x",)), "x", base="org/another")
    said = on(polytask, "names", "add", "elsewhere", "--same-base")
    assert "it has the name 'org/another', and the library's is 'org/model'" in said.line
    save_peft(shelf / "again", trained(("x",)), "x", base="org/model")
    assert on(polytask, "names", "add", "again").code == 0


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (DoRA(2), "holds DoRA; adapters that are LoRA alone"),
        (Bottleneck(2), "holds Bottleneck; adapters that are LoRA alone"),
        ([At(LoRA(2), "0"), At(LoRA(2), ("0", "2"))], "'0' is an embedding or has two adapters"),
    ],
)
def test_what_cannot_be_composed_exactly_is_not_taken(tmp_path, method, said):
    save_adapted(tmp_path / "a", trained(("x",), method=method))
    with pytest.raises(UsageError, match=said):
        Library(tmp_path / "lib").add(tmp_path / "a")
    assert not (tmp_path / "lib").exists()


def test_a_dora_folder_is_not_taken(tmp_path):
    save_peft(tmp_path / "a", trained(("x",), method=DoRA(2)), "x")
    with pytest.raises(UsageError, match="or is a DoRA adapter; what such an"):
        Library(tmp_path / "lib").add(tmp_path / "a")


def test_wrong_use_is_answered_in_one_line(polytask: Call, shelf: Path):
    assert "is no library of adapters" in on(polytask, "nothing", "list").line
    on(polytask, "lib", "add", "two.safetensors")
    assert "adapter 'mnli' already" in on(polytask, "lib", "add", "two.safetensors").line
    said = on(polytask, "lib", "add", "two.safetensors", "--name", "x")
    assert "holds 2 tasks (mnli, qnli), which keep their names" in said.line
    said = on(polytask, "lib", "add", "peft", "--name", "../x", "--same-base")
    assert "'../x' cannot be an adapter's name" in said.line
    said = on(polytask, "lib", "compose", "mnl=1", "--out", "o")
    assert said.line.startswith("Unknown adapter 'mnl'. Did you mean 'mnli'?")
    said = on(polytask, "lib", "compose", "mnli=much", "--out", "o")
    assert said.line == "'mnli=much': 'much' is no weight; give a number, mnli=0.5."
    assert "given twice" in on(polytask, "lib", "compose", "mnli", "mnli=2", "--out", "o").line
    assert on(polytask, "lib", "compose", "mnli", "--out", "lib").code == 2
    assert on(polytask, "lib", "compose", "mnli", "--out", "o", "--rank", 0).code == 2
    (shelf / "lib" / "library.json").write_text("{}")
    assert "is damaged" in on(polytask, "lib", "list").line
    assert not (shelf / "o").exists()
