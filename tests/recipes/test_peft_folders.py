"""Folders of PEFT become tasks, and tasks folders, with exactly the changes they had."""

import copy
import json

import pytest
import torch
from torch import nn

from polytask.adapt import SSF, DoRA, LoRA, Where, adapt
from polytask.errors import UsageError
from polytask.merge.adapter_files import load_adapter
from polytask.recipes.peft import from_peft, to_peft


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 4)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x)).sum(-1) + self.conv(picture).sum((1, 2, 3))[:, None]


@pytest.fixture
def model() -> Base:
    torch.manual_seed(0)
    return Base().double()


def moved(adapted):
    generator = torch.Generator().manual_seed(1)
    for p in adapted.parts.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return adapted


def inputs():
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 7, 6), (3, 2, 5, 5))
    )


@pytest.mark.parametrize("turned", [False, True])
def test_tasks_of_several_ranks_and_layers_are_one_model(tmp_path, model, turned):
    """Folders of three adapters: other ranks, other scales, other layers; one may be DoRA."""
    wanted = {}
    made = {
        "low": (LoRA(2, 5.0), ("one", "conv")),
        "high": (DoRA(4, 3.0) if turned else LoRA(4, 3.0), ("one", "two")),
        "stable": (LoRA(3, 2.0, stabilised=True), ("two", "conv")),
    }
    for task, (method, where) in made.items():
        alone = moved(adapt(copy.deepcopy(model), method, ("other", task), where))
        with alone.task(task):
            wanted[task] = alone(*inputs())
        to_peft(alone, task, tmp_path / task)
    adapted = from_peft(model, {task: tmp_path / task for task in made})
    assert adapted.names == tuple(made)
    assert type(adapted.parts[0].method) is (DoRA if turned else LoRA)
    assert adapted.parts[0].method.rank == 4
    with adapted.tasks(torch.tensor([0, 1, 2])):
        mixed = adapted(*inputs())
    for row, task in enumerate(made):
        assert torch.allclose(mixed[row], wanted[task][row], atol=1e-5)  # factors in float32
    change = load_adapter(tmp_path / "low").changes["conv"]
    ours = adapted.change("low")["conv.weight"]
    if not turned:
        assert torch.allclose(ours.flatten(1), change.up_OR @ change.down_RI, atol=1e-12)
        assert not adapted.change("low")["two.weight"].any()


def test_peft_itself_reads_what_is_written_and_we_read_what_it_writes(tmp_path, model):
    peft = pytest.importorskip("peft")
    for name, method in (("lora", LoRA(3, 5.0)), ("dora", DoRA(3, 5.0))):
        ours = moved(adapt(copy.deepcopy(model), method, ("a", "b"), ("one", "conv")))
        with ours.task("b"):
            wanted = ours(*inputs())
        to_peft(ours, "b", tmp_path / name)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / name)
        assert torch.allclose(theirs(*inputs()), wanted, atol=1e-5)
        theirs.save_pretrained(tmp_path / f"{name}-again")
        back = from_peft(copy.deepcopy(model), {"b": tmp_path / f"{name}-again"})
        with back.task("b"):
            assert torch.allclose(back(*inputs()), wanted, atol=1e-5)


def test_what_has_no_place_in_a_folder_is_named(tmp_path, model):
    plain = adapt(copy.deepcopy(model), SSF(), ("a",), "one")
    with pytest.raises(UsageError, match="'one' has a SSFAdapter; LoRA and DoRA can be written"):
        to_peft(plain, "a", tmp_path / "x")
    packed = nn.ModuleDict({"it": nn.MultiheadAttention(8, 2)})
    with pytest.raises(UsageError, match=r"'it\.q_proj' is no plain linear layer or convolution"):
        to_peft(adapt(packed, LoRA(), ("a",), Where(("q_proj",))), "a", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    lora = adapt(copy.deepcopy(model), LoRA(), ("a",), "one")
    to_peft(lora, "a", tmp_path / "x")
    with pytest.raises(UsageError, match="exists; give a new folder"):
        to_peft(lora, "a", tmp_path / "x")
    with pytest.raises(UsageError, match="change 'one', which the model does not have"):
        from_peft(nn.ModuleDict({"two": nn.Linear(5, 4)}), {"a": tmp_path / "x"})
    narrow = Base().double()
    narrow.one = nn.Linear(7, 5)
    with pytest.raises(UsageError, match="changes 'one' as a matrix of 5 x 6, the model's is 5 x"):
        from_peft(narrow, {"a": tmp_path / "x"})
    assert not narrow.one._forward_hooks
    assert narrow.one.weight.requires_grad
    config = tmp_path / "x" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "IA3"}))
    with pytest.raises(UsageError, match="is of peft_type 'IA3'"):
        from_peft(model, {"a": tmp_path / "x"})
