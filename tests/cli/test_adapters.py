"""`polytask adapters`: a library of adapters of one base, composed exactly, clustered, routed."""

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


def test_a_base_that_nothing_is_known_of_is_vouched_for_too(polytask: Call, shelf: Path):
    save_peft(shelf / "silent", trained(("x",)), "x")
    assert on(polytask, "lib", "add", "silent").code == 0
    assert "say so: --same-base" in on(polytask, "lib", "add", "silent", "--name", "y").line
    assert on(polytask, "lib", "add", "silent", "--name", "y", "--same-base").code == 0
    said = on(polytask, "lib", "list", "--json")
    assert [e["vouched"] for e in json.loads(said.out)["adapters"]] == [False, True]


@pytest.fixture
def grouped(polytask: Call, tmp_path: Path) -> Path:
    """A library of two centres, "a" and "b", and a new adapter beside it, made of b's."""
    many = adapt(base(), LoRA(2, 3.0), ("a0", "a1", "b0", "b1"))
    new = adapt(base(), LoRA(2, 3.0), ("new",))
    generator = torch.Generator().manual_seed(5)
    for value, other in zip(many.parts.parameters(), new.parts.parameters(), strict=True):
        centres = torch.randn(2, *value.shape[1:], generator=generator)
        noise = 0.05 * torch.randn(5, *value.shape[1:], generator=generator)
        value.data.copy_(centres.repeat_interleave(2, 0) + noise[:4])
        other.data.copy_(centres[1:] + noise[4:])
    save_adapted(tmp_path / "many", many)
    save_adapted(tmp_path / "new", new)
    assert on(polytask, "lib", "add", "many").code == 0
    return tmp_path


def test_clusters_are_printed_and_merged(polytask: Call, grouped: Path):
    said = on(polytask, "lib", "cluster", "--clusters", 2)
    assert (said.code, said.err) == (0, "")
    title, *rows = [line.split() for line in said.out.splitlines()]
    assert title == ["cluster", "adapters", "within", "next", "to", "it"]
    assert [row[:3] for row in rows] == [["cluster-0", "a0,", "a1"], ["cluster-1", "b0,", "b1"]]
    said = on(polytask, "lib", "cluster", "--clusters", 2, "--out", "fewer", "--json")
    told = json.loads(said.out)
    assert told["out"] == "fewer"
    assert [c["members"] for c in told["clusters"]] == [["a0", "a1"], ["b0", "b1"]]
    assert [c["next"] for c in told["clusters"]] == ["cluster-1", "cluster-0"]
    assert [f"{c['within']:.3f}" for c in told["clusters"]] == [row[3] for row in rows]
    assert [f"{c['beside']:.3f}" for c in told["clusters"]] == [row[5] for row in rows]
    merged = load_peft(base(), {"it": grouped / "fewer" / "cluster-1"}).change("it")
    apart = load_peft(base(), {n: grouped / "lib" / n for n in ("b0", "b1")})
    for name, found in merged.items():
        wanted = (apart.change("b0")[name] + apart.change("b1")[name]) / 2
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    said = on(polytask, "lib", "cluster", "--clusters", 2, "--out", "more")
    assert said.out.endswith("Wrote more: 2 adapters, the exact averages of their clusters.\n")
    assert on(polytask, "lib", "cluster", "--clusters", 2, "--out", "more").code == 2
    assert "fewer than 10 clusters" in on(polytask, "lib", "cluster").line


def test_a_new_task_is_routed_and_served(polytask: Call, grouped: Path):
    said = on(polytask, "lib", "route", "new", "--top", 2)
    assert (said.code, said.err) == (0, "")
    title, *rows = [line.split() for line in said.out.splitlines()]
    assert title == ["adapter", "score", "layers", "weight"]
    assert {row[0] for row in rows[:2]} == {"b0", "b1"}
    assert [len(row) for row in rows] == [6, 6, 5, 5]
    assert rows[0][2:5] == ["2", "of", "2"]
    said = on(
        polytask, "lib", "route", "new", "--top", 1, "--temperature", 0.1, "--out", "it", "--json"
    )
    told = json.loads(said.out)
    assert (told["out"], told["task"], told["layers"]) == ("it", "new", 2)
    assert [m["name"] for m in told["matches"]] == [row[0] for row in rows]
    assert [m["weight"] for m in told["matches"]] == [1, 0, 0, 0]
    served = load_peft(base(), {"it": grouped / "it"}).change("it")
    first = load_peft(base(), {"it": grouped / "lib" / rows[0][0]}).change("it")
    for name, found in served.items():
        torch.testing.assert_close(found, first[name], rtol=1e-6, atol=1e-7)
    said = on(polytask, "lib", "route", "new", "--out", "all", "--top", 0)
    assert said.out.splitlines()[-1].startswith("Wrote all: b")
    assert said.out.endswith(" by these weights, exact.\n")
    assert "holds 4 tasks" in on(polytask, "lib", "route", "many").line
    assert on(polytask, "lib", "route", "many", "--task", "a1").out.splitlines()[1][:2] == "a1"
    assert "is no library of adapters" in on(polytask, "nothing", "route", "new").line
    save_adapted(grouped / "other", trained(("x",), model=base(seed=1)))
    said = on(polytask, "lib", "route", "other", "--same-base")
    assert "other belongs to another base: it has the fingerprint" in said.line


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
