"""The same numbers as PEFT, with its weights copied in; skipped where it is not installed."""

import copy

import pytest
import torch
from torch import nn

from polytask.adapt import MHR, DoRA, LoRA, Polytropon, adapt

peft = pytest.importorskip("peft")


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum(-1) + self.conv(picture).sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("form", ["lora", "rslora", "dora"])
def test_outputs_gradients_and_merged_weights_agree(form):
    torch.manual_seed(0)
    model = Base().double()
    method = DoRA(4, 6.0) if form == "dora" else LoRA(4, 6.0, stabilised=form == "rslora")
    ours = adapt(model, method, ("other", "it"))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=form == "rslora", use_dora=form == "dora",
        target_modules=["linear", "conv"],
    )  # fmt: skip
    theirs = peft.get_peft_model(copy.deepcopy(ours).detach(), config).double()
    copied = []
    for path in ("linear", "conv"):
        adapter = ours.parts[0].at(path)
        for p in adapter.parameters():
            p.data += 0.3 * torch.randn_like(p)
        layer = getattr(theirs.base_model.model, path)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.data = adapter.down_TRI.data[1].clone().view(down.shape)
        up.data = adapter.up_TRO.data[1].T.clone().view(up.shape)
        copied += [(adapter.down_TRI, down), (adapter.up_TRO, up)]
        if form == "dora":
            length = layer.lora_magnitude_vector["default"].weight
            length.data = adapter.length_TO.data[1].clone().view(length.shape)
            copied.append((adapter.length_TO, length))
    x, picture = torch.randn(3, 7, 6).double(), torch.randn(3, 2, 5, 5).double()
    with ours.task("it"):
        mine = model(x, picture)
    wanted = theirs(x, picture)
    assert torch.allclose(mine, wanted, atol=1e-10)
    mine.square().sum().backward()
    wanted.square().sum().backward()
    for own, other in copied:
        grad = own.grad[1].T if own.grad[1].shape != other.grad.squeeze().shape else own.grad[1]
        assert torch.allclose(grad.reshape(other.shape), other.grad, atol=1e-8)
    merged = dict(theirs.merge_and_unload().named_parameters())
    for name, p in ours.extract("it").named_parameters():
        assert torch.allclose(p, merged[name], atol=1e-10)


@pytest.mark.parametrize("heads", [1, 2])
def test_polytropon_and_mhr_are_its_poly(heads):
    """PEFT's `n_splits` are heads; logits, skills, outputs and gradients of both are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).double()
    method = Polytropon(3, 2) if heads == 1 else MHR(heads, 3, 2)
    ours = adapt(copy.deepcopy(model), method, ("a", "b", "c")).eval()
    config = peft.PolyConfig(
        target_modules=["0"], r=2, n_tasks=3, n_skills=3, n_splits=heads, init_weights=False
    )
    theirs = peft.get_peft_model(model, config).double().eval()
    layer = theirs.base_model.model[0]
    a_GEIR, b_GERO = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    logits_TS = layer.poly_router["default"].module_logits
    with torch.no_grad():
        logits_TS.normal_()
        adapter = ours.at("0")
        adapter.down_ERI.copy_(a_GEIR.permute(1, 3, 0, 2).flatten(2))
        adapter.up_ERO.copy_(b_GERO.permute(1, 2, 0, 3).flatten(2))
        scores_TGE = adapter.routing().scores.scores_TGE
        scores_TGE.copy_(logits_TS.view_as(scores_TGE))
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    index_B = torch.tensor([2, 0, 1, 1, 2])
    with ours.tasks(index_B):
        mine = ours(x)
    other = theirs.base_model(x, task_ids=index_B)  # PeftModel keeps the tasks to itself
    assert torch.allclose(mine, other, atol=1e-10)
    torch.autograd.backward(mine.sin().sum())
    torch.autograd.backward(other.sin().sum())
    for own, its in (
        (adapter.down_ERI.grad, a_GEIR.grad.permute(1, 3, 0, 2).flatten(2)),
        (adapter.up_ERO.grad, b_GERO.grad.permute(1, 2, 0, 3).flatten(2)),
        (scores_TGE.grad, logits_TS.grad.view_as(scores_TGE)),
    ):
        assert torch.allclose(own, its, atol=1e-10)
