"""Each method against a plain loop over rows, from its equations, in float64 and float32."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.adapt import (
    MAM,
    SSF,
    BitFit,
    Bottleneck,
    DoRA,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    Where,
    adapt,
)
from polytask.errors import UsageError

TASKS = ("a", "b", "c")
INDEX_B = torch.tensor([2, 0, -1, 1, 2])
Parameters = dict[str, Tensor]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(p: Parameters, t: int, scale: float) -> Tensor:
    return scale * (p["up_TRO"][t].T @ p["down_TRI"][t].flatten(1))


def lora(base: nn.Module, p: Parameters, t: int, x: Tensor, settings: LoRA) -> Tensor:
    scale = settings.alpha / (math.sqrt(settings.rank) if settings.stabilised else settings.rank)
    return weighed(base, x, base.weight + low_rank(p, t, scale).view(base.weight.shape))


def dora(base: nn.Module, p: Parameters, t: int, x: Tensor, settings: DoRA) -> Tensor:
    moved = base.weight + low_rank(p, t, settings.alpha / settings.rank).view(base.weight.shape)
    norms_O = moved.flatten(1).norm(dim=1).detach()
    gain = (p["length_TO"][t] / norms_O).view(-1, *[1] * (moved.dim() - 1))
    return weighed(base, x, gain * moved)


def ssf(base: nn.Module, p: Parameters, t: int, x: Tensor, settings: SSF) -> Tensor:
    scale, shift = p["scale_TO"][t], p["shift_TO"][t]
    if isinstance(base, nn.Conv2d):
        scale, shift = scale[:, None, None], shift[:, None, None]
    return scale * base(x[None])[0] + shift


def bitfit(base: nn.Module, p: Parameters, t: int, x: Tensor, settings: BitFit) -> Tensor:
    return weighed(base, x, base.weight, base.bias + p["bias_TO"][t])


def bottleneck(base: nn.Module, p: Parameters, t: int, x: Tensor, settings: Bottleneck) -> Tensor:
    y = base(x[None])[0]
    seen = x if settings.source == "parallel" else y
    small = seen @ p["down_TRI"][t].T + p["down_bias_TR"][t]
    small = {"relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh}[settings.form](small)
    change = small @ p["up_TRO"][t] + p["up_bias_TO"][t]
    if settings.join == "gate":
        return (1 - p["gate_T"][t]) * y + p["gate_T"][t] * change
    return y + settings.scale * change


def weighed(base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = base.bias if bias is None else bias
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x[None], weight, bias, base.stride, base.padding, base.dilation)[0]
    return F.linear(x, weight, bias)


CASES = {
    "LoRA": (LoRA(3, 6.0), lora),
    "rsLoRA": (LoRA(4, 6.0, stabilised=True), lora),
    "DoRA": (DoRA(3, 6.0), dora),
    "SSF": (SSF(), ssf),
    "BitFit": (BitFit(), bitfit),
    "sequential bottleneck": (Bottleneck(3, "gelu"), bottleneck),
    "scaled parallel bottleneck": (Bottleneck(3, source="parallel", scale=4.0), bottleneck),
    "gated bottleneck": (Bottleneck(3, "tanh", join="gate"), bottleneck),
}


def layers(method: Method) -> list[tuple[nn.Module, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        linear = nn.Linear(6, 4).double()
        conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=1).double()
    found = [(linear, drawn(0, 5, 7, 6))]
    if "conv" in method.kinds:
        found.append((conv, drawn(1, 5, 3, 8, 6)))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_a_loop_over_rows(case, dtype):
    method, plain = CASES[case]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for layer, inputs in layers(method):
        model = nn.Sequential(layer.to(dtype))
        base = copy.deepcopy(layer).double()
        adapted = adapt(model, method, TASKS, seed=1)
        p = dict(adapted.parts[0].at("0").named_parameters())
        for at, parameter in enumerate(p.values()):
            parameter.data += 0.5 * drawn(at + 9, *parameter.shape).to(dtype)
        x = inputs.to(dtype).requires_grad_()
        with adapted.tasks(INDEX_B):
            y = model(x)
        y.sin().sum().backward()
        mine = [x.grad, *(v.grad for v in p.values())]

        wide = {name: v.detach().double().requires_grad_() for name, v in p.items()}
        x_wide = inputs.to(dtype).double().requires_grad_()
        rows = [
            base(x_wide[b][None])[0] if t < 0 else plain(base, wide, t, x_wide[b], method)
            for b, t in enumerate(INDEX_B.tolist())
        ]
        wanted = torch.stack(rows)
        wanted.sin().sum().backward()
        for mine_, theirs in zip(
            [y, *mine], [wanted, x_wide.grad, *(v.grad for v in wide.values())], strict=True
        ):
            size = theirs.abs().max().clamp(min=1)
            assert float(((mine_ - theirs).abs().max() / size).detach()) <= tolerance


def test_an_embedding_is_changed_by_a_product_of_its_entries():
    model = nn.Sequential(nn.Embedding(11, 4).double())
    adapted = adapt(model, LoRA(3, 6.0), TASKS)
    adapter = adapted.parts[0].at("0")
    adapter.down_TRI.data += drawn(0, *adapter.down_TRI.shape)
    ids = torch.tensor([[0, 10], [3, 3], [1, 2], [9, 0], [10, 4]])
    with adapted.tasks(INDEX_B):
        y = model(ids)
    for b, t in enumerate(INDEX_B.tolist()):
        table = model[0].weight
        if t >= 0:
            table = table + 2.0 * adapter.down_TRI[t] @ adapter.up_TRO[t]
        assert torch.allclose(y[b], table[ids[b]], atol=1e-12)


def attention_by_hand(
    layer: nn.MultiheadAttention, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """One row of attention: (L, E) with a prefix of keys and values, (P, E)."""
    q, k, v = (
        F.linear(x, w, b)
        for w, b in zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    )
    k, v = torch.cat([key, k]), torch.cat([value, v])
    heads, wide = layer.num_heads, x.shape[1] // layer.num_heads
    made = []
    for h in range(heads):
        at = slice(h * wide, (h + 1) * wide)
        scores = q[:, at] @ k[:, at].T / math.sqrt(wide)
        if mask is not None:
            scores = scores + F.pad(mask, (len(key), 0))
        made.append(scores.softmax(-1) @ v[:, at])
    return layer.out_proj(torch.cat(made, -1))


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_prefix_is_keys_and_values_that_every_query_sees(hidden, need_weights, causal):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = nn.ModuleDict({"attention": layer})
    adapted = adapt(model, PrefixTuning(3, std=1.0, hidden=hidden), TASKS)
    adapter = adapted.parts[0].at("attention")
    x, index_B = drawn(0, 4, 5, 8), torch.tensor([1, 0, 2, 1])
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1) if causal else None
    with adapted.tasks(index_B):
        y, weights = layer(x, x, x, attn_mask=mask, need_weights=need_weights)
    for b, t in enumerate(index_B.tolist()):
        prefix = adapter.prefix_TPC[t]
        if hidden:
            prefix = torch.tanh(prefix @ adapter.first_TEM[t]) @ adapter.second_TMC[t]
        wanted = attention_by_hand(layer, x[b], *prefix.chunk(2, -1), mask)
        assert torch.allclose(y[b], wanted, atol=1e-12)
    assert (weights is None) != need_weights
    if need_weights:
        assert weights.shape == (4, 5, 5)
        assert (weights.sum(-1) < 1).all()


def test_a_prefix_is_the_gate_of_the_unified_view():
    """(1 - g) Attn(x) + g softmax(q P_k) P_v, equation 7 of He et al., with one head."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 1, batch_first=True).double()
    adapted = adapt(nn.ModuleDict({"a": layer}), PrefixTuning(3, std=1.0), ("t",))
    x = drawn(0, 1, 5, 4)
    with adapted.task("t"):
        y = layer(x, x, x)[0]
    q, k, v = F.linear(x[0], layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    key, value = adapted.parts[0].at("a").prefix_TPC[0].chunk(2, -1)
    own, added = (torch.exp(q @ keys.T / 2) for keys in (k, key))
    gate = added.sum(1) / (added.sum(1) + own.sum(1))
    plain, extra = own / own.sum(1, keepdim=True) @ v, added / added.sum(1, keepdim=True) @ value
    joined = (1 - gate)[:, None] * plain + gate[:, None] * extra
    assert torch.allclose(y[0], layer.out_proj(joined), atol=1e-12)


def test_a_prompt_stands_before_the_input():
    model = nn.Sequential(nn.Embedding(11, 4).double())
    adapted = adapt(model, PromptTuning(3), TASKS, seed=5)
    prompt_TPE = adapted.parts[0].at("0").prompt_TPE
    ids, index_B = torch.tensor([[0, 10], [3, 3], [1, 2]]), torch.tensor([2, 0, 0])
    with adapted.tasks(index_B):
        y = model(ids)
    wanted = torch.cat([prompt_TPE[index_B], model[0].weight[ids]], 1)
    assert torch.equal(y, wanted)
    entries = model[0].weight.tolist()
    assert all(position in entries for task in prompt_TPE.tolist() for position in task)


@pytest.mark.parametrize(
    "method",
    [LoRA(), LoRA(stabilised=True), DoRA(), SSF(std=0.0), BitFit(), Bottleneck(),
     Bottleneck(join="gate"), Bottleneck(source="parallel", scale=4.0)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_it_starts_as_the_base_bit_for_bit(method, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)).to(dtype)
    x = torch.randn(5, 3, 6, dtype=dtype)
    before = model(x)
    where = Where(kinds=("linear",))
    if isinstance(method, Bottleneck) and method.source == "parallel":
        where = Where(("2",))
    adapted = adapt(model, method, TASKS, where)
    with adapted.tasks(INDEX_B):
        assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: LoRA(rank=0), "LoRA: rank is 0; give a whole number >= 1"),
        (lambda: LoRA(alpha=math.inf), "LoRA: alpha is inf; give a finite number"),
        (lambda: LoRA(dropout=1.0), r"LoRA: dropout is 1.0; give a number in \[0, 1\)"),
        (lambda: DoRA(rank=-1), "DoRA: rank is -1"),
        (lambda: SSF(std=-1), "SSF: std is -1"),
        (lambda: Bottleneck(width=0), "Bottleneck: width is 0"),
        (lambda: Bottleneck(form="rleu"), "Bottleneck: form is 'rleu'; give relu or gelu"),
        (lambda: Bottleneck(join="gate", scale=2.0), "a gated change has no scale"),
        (lambda: PrefixTuning(0), "PrefixTuning: length is 0"),
        (lambda: PromptTuning(start="vocab"), "PromptTuning: start is 'vocab'"),
    ],
)
def test_wrong_settings_are_answered(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_dropout_is_of_the_adapters_input_alone_and_ends_in_evaluation():
    model = nn.Sequential(nn.Linear(6, 4))
    adapted = adapt(model, LoRA(2, dropout=0.5), ("a",))
    adapted.parts[0].at("0").up_TRO.data.normal_()
    x = torch.randn(3, 6)
    with adapted.task("a"):
        assert not torch.equal(model(x), model(x))
        model.eval()  # the model's own mode, although adapters are no modules of it
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))
        adapted.eval()
        assert torch.equal(model(x), model(x))


def test_mam_is_a_prefix_in_attention_and_a_scaled_bottleneck_around_the_feed_forward_block():
    torch.manual_seed(0)
    model = Block().double()
    base = copy.deepcopy(model)
    adapted = adapt(model, MAM("mlp", length=3, width=4, scale=2.0), TASKS)
    assert [layer.path for layer in adapted.layers()] == ["attention", "mlp"]
    for at, p in enumerate(adapted.parts.parameters()):
        p.data += 0.3 * drawn(at + 3, *p.shape)
    prefix, side = adapted.at("attention"), adapted.at("mlp")
    x, index_B = drawn(0, 3, 5, 8), torch.tensor([2, 0, 1])
    with adapted.tasks(index_B):
        y = model(x)
    for b, t in enumerate(index_B.tolist()):
        key, value = prefix.prefix_TPC[t].chunk(2, -1)
        h = x[b] + attention_by_hand(base.attention, x[b], key, value, None)
        small = torch.relu(h @ side.down_TRI[t].T + side.down_bias_TR[t])
        change = small @ side.up_TRO[t] + side.up_bias_TO[t]
        assert torch.allclose(y[b], h + base.mlp(h) + 2.0 * change, atol=1e-10)
    with pytest.raises(UsageError, match="PrefixAdapter at 'attention' is no change of weights"):
        adapted.fold("a")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)
