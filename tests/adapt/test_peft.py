"""The same numbers as PEFT, with its weights copied in; skipped where it is not installed."""

import copy

import pytest
import torch
from torch import nn

from polytask.adapt import DoRA, LoRA, adapt

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
