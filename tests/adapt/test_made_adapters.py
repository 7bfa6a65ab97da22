"""Adapters that a network or factors common to all layers make; factors that tasks add up."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.adapt import (
    HyperFormer,
    IncrementalRank,
    Polyhistor,
    Where,
    adapt,
    load_adapted,
    save_adapted,
)
from polytask.errors import UsageError
from polytask.testing import check_adapter

from .rowwise import INDEX_B, TASKS, check_rowwise, model, moved


def hyperformer(plus):
    def loop(adapter, x, y, task):
        net = adapter.common
        block = int(adapter.layer.path.rpartition(".")[2])
        told = [net.task_TZ[task], net.block_KZ[block]]
        if plus:
            told.append(net.position_QZ[0])
        hidden = torch.relu(net.first.weight @ torch.cat(told) + net.first.bias)
        made = net.second.weight @ hidden + net.second.bias
        made = functional.layer_norm(made, made.shape, net.norm.weight, net.norm.bias)
        numbers = net.maps[0].weight @ made + net.maps[0].bias
        wide = y.shape[-1]
        narrow = (len(numbers) - 3 * wide) // (2 * wide + 1)
        down, numbers = numbers[: narrow * wide].view(narrow, wide), numbers[narrow * wide :]
        bias, numbers = numbers[:narrow], numbers[narrow:]
        up, numbers = numbers[: narrow * wide].view(narrow, wide), numbers[narrow * wide :]
        up_bias, scale, shift = numbers[:wide], numbers[wide : 2 * wide], numbers[2 * wide :]
        grown = functional.gelu(y @ down.T + bias) @ up + up_bias
        centred = grown - grown.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return y + normed * scale + shift

    return loop


@pytest.mark.parametrize("plus", [False, True])
def test_hyperformer_is_its_loop(plus):
    method = HyperFormer(plus, reduction=3, embedding=5, hidden=7, made=4)
    check_rowwise(method, hyperformer(plus))


def test_hyperformer_has_one_set_of_maps_per_position_and_its_plus_one_for_all():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.ModuleDict(
            {"blocks": nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})
                                     for _ in range(3))}
        )  # fmt: skip
    net = adapt(base, HyperFormer(reduction=2), TASKS).parts[0].common
    assert len(net.maps) == 2
    assert net.block_KZ.shape == (3, 64)
    assert net.at == {
        f"blocks.{k}.{name}": (q, k) for k in range(3) for q, name in enumerate(("up", "down"))
    }
    assert net.sizes == [(18, 3, 18, 6, 6, 6), (8, 2, 8, 4, 4, 4)]


def test_hyperformer_refuses_layers_of_several_widths_that_share_maps():
    base = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    with pytest.raises(UsageError, match=r"'0' of 6, '1' of 4 channels came"):
        adapt(base, HyperFormer(plus=True), TASKS)


def test_hyperformer_starts_near_the_base():
    base = model()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    before = base(x).detach()
    with adapt(base, HyperFormer(reduction=2), TASKS).task("b"):
        assert 0 < float((base(x).detach() - before).abs().max()) < 0.5


def kernel(factors, task_2KK):
    return [factors.left_2XK[i] @ task_2KK[i] @ factors.right_2KC[i] for i in range(2)]


def polyhistor(lite):
    def loop(adapter, x, y, task):
        task_2KK = adapter.common.task_T2KK[task]
        if lite:
            made = kernel(adapter.common.template, task_2KK)
            down, up = (torch.kron(made[i], adapter.scale_2SV[i]) for i in range(2))
        else:
            down, up = kernel(adapter.factors, task_2KK)
        return y + functional.gelu(y @ down.T + adapter.bias_R) @ up + adapter.bias_O

    return loop


@pytest.mark.parametrize(("lite", "channels"), [(False, 0), (True, 0), (True, 2)])
def test_polyhistor_is_its_loop(lite, channels):
    check_rowwise(Polyhistor(lite, 3, 6, 2, channels), polyhistor(lite))


@pytest.mark.parametrize("lite", [False, True])
def test_polyhistor_starts_as_the_base_bit_for_bit(lite):
    base = model()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    before = base(x).detach()
    with adapt(base, Polyhistor(lite, width=4), TASKS).task("b"):
        assert torch.equal(base(x).detach(), before)


def test_polyhistor_lite_scales_one_template_to_layers_of_several_widths():
    base = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 18))
    adapted = adapt(base, Polyhistor(lite=True, rank=2, width=8, spread=2), TASKS)
    assert adapted.parts[0].common.template.right_2KC.shape == (2, 2, 6)
    assert [a.scale_2SV.shape[1:] for a in adapted.parts[0].adapters.values()] == [(2, 2), (2, 3)]
    adapted.detach()
    with pytest.raises(UsageError, match="cannot be scaled to; give channels that divide"):
        adapt(base, Polyhistor(lite=True, channels=4), TASKS)
    with pytest.raises(UsageError, match="a spread that divides the width"):
        Polyhistor(lite=True, width=7)


def test_polyhistor_lite_has_fewer_parameters_than_polyhistor_and_than_hyperformer():
    def numbers(method):
        return sum(p.numel() for p in adapt(model(wide=64), method, TASKS).trainable_parameters())

    lite = numbers(Polyhistor(True, rank=4, width=2))
    assert lite < numbers(Polyhistor(False, rank=4, width=2)) < numbers(HyperFormer())


@pytest.mark.parametrize(
    "method", [HyperFormer(plus=True, reduction=4), Polyhistor(lite=True, channels=4)]
)
def test_the_other_forms_keep_the_contract(method):
    check_adapter(method, Where(("mlp.2", "attention.out_proj")))


def incremental(adapter, x, y, task):
    out = y + adapter.bias_TO[task]
    for before in range(task + 1):
        down, up = adapter.down_TRI[before], adapter.up_TRO[before]
        if before < task:
            down, up = down.detach(), up.detach()
        out = out + (x @ down.T * adapter.scale_TUR[task, task - before]) @ up
    return out


@pytest.mark.parametrize("rank", [1, 2])
def test_incremental_is_its_loop(rank):
    check_rowwise(IncrementalRank(rank, most=5), incremental)


def test_a_task_trains_its_own_factor_alone_and_starts_without_those_before():
    adapted = moved(adapt(model(), IncrementalRank(most=5), ("a", "b")))
    adapted.add_task("c")
    adapter = adapted.parts[0].at("blocks.0")
    assert torch.equal(adapter.scale_TUR[2].detach()[:, 0], torch.eye(5)[0].double())
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    with adapted.without():
        before = adapted.base(x).detach()
    with adapted.task("c"):
        out = adapted.base(x)
    assert torch.equal(out.detach(), before)
    torch.autograd.backward(out.square().sum())
    for p in (adapter.down_TRI, adapter.up_TRO, adapter.scale_TUR, adapter.bias_TO):
        assert not p.grad[:2].any()
    assert adapter.scale_TUR.grad[2, 1:3].abs().sum() > 0  # it may take what tasks before learned
    assert not adapter.scale_TUR.grad[2, 3:].any()


def test_more_tasks_than_scales_are_refused():
    with pytest.raises(UsageError, match="there are 3 tasks, and scales for 2"):
        adapt(model(), IncrementalRank(most=2), TASKS)
    adapted = adapt(model(), IncrementalRank(most=2), TASKS[:2])
    adapted.add_task("c")
    with pytest.raises(UsageError, match="give a larger `most`"), adapted.task("a"):
        adapted.base(torch.randn(2, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: HyperFormer(reduction=0), "reduction is 0"),
        (lambda: HyperFormer(std=math.nan), "std is nan"),
        (lambda: Polyhistor(rank=0), "rank is 0"),
        (lambda: Polyhistor(width=0), "width is 0"),
        (lambda: IncrementalRank(most=0), "most is 0"),
    ],
)
def test_wrong_settings_are_answered(build, said):
    with pytest.raises(UsageError, match=said):
        build()


@pytest.mark.parametrize(
    "method",
    [
        HyperFormer(reduction=4), HyperFormer(plus=True, reduction=4), Polyhistor(rank=2, width=4),
        Polyhistor(lite=True, rank=2, width=4), IncrementalRank(most=5),
    ],
)  # fmt: skip
def test_one_file_brings_back_all_of_it(tmp_path, method):
    adapted = moved(adapt(model(), method, TASKS))
    save_adapted(tmp_path / "a", adapted)
    loaded = load_adapted(tmp_path / "a", model())
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    with torch.no_grad(), adapted.tasks(INDEX_B), loaded.tasks(INDEX_B):
        assert torch.equal(adapted(x), loaded(x))
