"""One file holds everything, comes back bit for bit, and says what is wrong with another."""

import json

import pytest
import torch
from torch import Tensor, nn

from polytask.adapt import (
    SSF,
    At,
    LoRA,
    PrefixTuning,
    Where,
    adapt,
    fingerprint,
    load_adapted,
    save_adapted,
)
from polytask.errors import DataError, RunError, UsageError
from polytask.testing.adapters import models

from .catalogued import ROWS, given_for

TASKS = ("a", "b.c/d%", "c")


def base(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5))


def trained(model: nn.Module, *, dtype=None, train=None):
    plans = [At(LoRA(3, 2.0), Where(kinds=("linear",))), At(SSF(), "1")]
    adapted = adapt(model, plans, TASKS, seed=3, dtype=dtype, train=train)
    for p in adapted.trainable_parameters():
        p.data += 0.3
    return adapted


def heads() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    return {"a": nn.Linear(5, 2), "b.c/d%": nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))}


def outputs(adapted, x: Tensor) -> Tensor:
    with torch.no_grad(), adapted.tasks(torch.tensor([0, 1, 2, -1])):
        return adapted(x)


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
@pytest.mark.parametrize("train", [None, "1"])
def test_everything_comes_back_bit_for_bit(tmp_path, dtype, train):
    made, own = trained(base(), dtype=dtype, train=train), heads()
    save_adapted(tmp_path / "all.safetensors", made, own)
    blank = {"a": nn.Linear(5, 2), "b.c/d%": nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))}
    model = base()
    back = load_adapted(tmp_path / "all.safetensors", model, blank)
    assert back.names == made.names
    assert back.base is model
    x = torch.randn(4, 4)
    assert torch.equal(outputs(back, x), outputs(made, x))
    for task, head in own.items():
        for name, value in head.state_dict().items():
            assert torch.equal(blank[task].state_dict()[name], value)
    mine, theirs = back.state_dict(), made.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    free = [n for n, p in back.named_parameters() if p.requires_grad]
    assert free == [n for n, p in made.named_parameters() if p.requires_grad]
    assert [path.name for path in tmp_path.iterdir()] == ["all.safetensors"]
    back.add_task("later")
    assert torch.equal(outputs(back, x), outputs(made, x))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_method_of_the_catalog_comes_back(tmp_path, row):
    for _, model, inputs in models():
        try:
            made = adapt(model, row.load()(), ("a", "b"), seed=3)
        except UsageError:
            continue
        save_adapted(tmp_path / "it", made)
        index_B, given = torch.tensor([1, 1, 0, 1, 1, 1]), given_for(row.name)
        with made.tasks(index_B, given=given):
            wanted = made.base(inputs)
        back = load_adapted(tmp_path / "it", made.detach())
        with back.tasks(index_B, given=given):
            assert torch.equal(back.base(inputs), wanted)


def test_a_method_of_somebodys_own_has_to_be_given(tmp_path):
    class Own(LoRA):
        pass

    save_adapted(tmp_path / "own", adapt(base(), Own(), TASKS, "0"))
    with pytest.raises(UsageError, match="was made with Own, which the catalog does not build"):
        load_adapted(tmp_path / "own", base())
    back = load_adapted(tmp_path / "own", base(), method=Own())
    assert [layer.path for layer in back.layers()] == ["0"]
    with pytest.raises(UsageError, match="holds 1 methods; 2 were given"):
        load_adapted(tmp_path / "own", base(), method=[At(Own()), At(SSF())])


def test_adapters_of_another_base_are_refused(tmp_path):
    path = tmp_path / "all.safetensors"
    save_adapted(path, trained(base()))
    other = base(1)
    with pytest.raises(DataError, match="holds adapters for another base: its fingerprint is"):
        load_adapted(path, other)
    assert all(p.requires_grad for p in other.parameters())
    with pytest.raises(DataError, match="another base"):
        load_adapted(path, nn.Sequential(nn.Linear(4, 6)))
    assert fingerprint(base()) == fingerprint(base().requires_grad_(False))
    assert fingerprint(base()) != fingerprint(base().double())


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "all.safetensors"
    save_adapted(path, trained(base()), heads())
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="is damaged or no safetensors file"):
            load_adapted(path, base())
    with pytest.raises(DataError, match="is missing"):
        load_adapted(tmp_path / "none", base())


def rewritten(path, change):
    """Write the file again with its description and tensors changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["polytask"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about, tensors)
    save_file(tensors, path, {"polytask": json.dumps(about)})


DOWN = "parts.0.adapters./0.down_TRI"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, t: t.update({DOWN: t[DOWN].bfloat16()}), "is torch.bfloat16 of shape"),
        (lambda a, t: t.update({DOWN: t[DOWN][:2].clone()}), r"its method needs torch.float32 of"),
        (lambda a, t: t.pop(DOWN), "lacks the tensor 'parts.0.adapters./0.down_TRI'"),
        (lambda a, t: t.update({"parts.0.x": t[DOWN].clone()}), "holds 'parts.0.x', which none"),
        (lambda a, t: a.update({"format": 2}), "has the format 2; this polytask reads 1"),
        (lambda a, t: a.pop("base"), "holds no adapters that `save_adapted` wrote"),
        (lambda a, t: a["parts"][0]["settings"].update({"ranks": 3}), "another version of polyta"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, said):
    path = tmp_path / "all.safetensors"
    save_adapted(path, trained(base()))
    rewritten(path, change)
    model = base()
    with pytest.raises(DataError, match=said):
        load_adapted(path, model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_head_that_is_another_is_named(tmp_path):
    path = tmp_path / "all.safetensors"
    made = trained(base())
    with pytest.raises(UsageError, match="Unknown task 'z'"):
        save_adapted(path, made, {"z": nn.Linear(5, 2)})
    save_adapted(path, made, heads())
    with pytest.raises(DataError, match="the head of 'c' there and the one given differ in every"):
        load_adapted(path, base(), {"c": nn.Linear(5, 2)})
    with pytest.raises(DataError, match=r"'heads\./a\.weight' is torch.float32 of shape \(2, 5\)"):
        load_adapted(path, base(), {"a": nn.Linear(5, 3)})


def test_a_folded_model_is_not_saved_and_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "all.safetensors"
    made = adapt(base(), LoRA(), TASKS)
    save_adapted(path, made)
    before = path.read_bytes()
    with made.fold("a"), pytest.raises(UsageError, match=r"'a' is folded into the base; unfold\("):
        save_adapted(path, made)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        save_adapted(path, trained(base()))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["all.safetensors"]


def test_prefixes_come_back_too(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=True)})
    made = adapt(model, PrefixTuning(2, hidden=3), TASKS)
    save_adapted(tmp_path / "p", made)
    x = torch.randn(2, 3, 8)
    with made.task("c"):
        wanted = model["a"](x, x, x)[0]
    back = load_adapted(tmp_path / "p", made.detach())
    with back.task("c"):
        assert torch.equal(model["a"](x, x, x)[0], wanted)
