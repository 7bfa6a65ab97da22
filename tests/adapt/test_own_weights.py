"""Methods that train the base's own weights: what is held, sparse changes, halves, blocks."""

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import nn

from polytask.adapt import (
    Branched,
    HalfFineTuning,
    Held,
    SparseTuning,
    SubTuning,
    compose,
    load_sparse,
    only,
    save_sparse,
)
from polytask.errors import DataError, RunError, UsageError
from polytask.testing.adapters import Text


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3), nn.Linear(3, 2))


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(model, optimiser, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 5, generator=generator)
        optimiser.zero_grad()
        torch.autograd.backward((model(x) - 1).square().sum())
        optimiser.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.5),
        lambda p: torch.optim.Adam(p, 0.1),
    ],
)
def test_what_is_held_keeps_its_bits_under_any_optimiser(make):
    model = net()
    optimiser = make(model.parameters())
    train(model, optimiser)  # momentum from before
    before = state(model)
    mask = torch.rand(16, 5, generator=torch.Generator().manual_seed(1)) < 0.3
    with Held(model, {"0.weight": mask, "2.weight": False}, optimiser):
        train(model, optimiser)
        after = state(model)
    assert torch.equal(after["0.weight"][~mask], before["0.weight"][~mask])
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert bool((after["0.weight"][mask] != before["0.weight"][mask]).all())
    assert not torch.equal(after["3.weight"], before["3.weight"])  # named by nobody
    train(model, optimiser)  # released
    assert not torch.equal(state(model)["2.weight"], before["2.weight"])
    assert bool((state(model)["0.weight"][~mask] != before["0.weight"][~mask]).any())


def test_held_is_plain_training_of_the_rest():
    """Against one step of gradient descent written out."""
    model = net()
    x = torch.ones(1, 5)
    whole = copy.deepcopy(model)
    torch.autograd.backward(whole(x).square().sum())
    mask = torch.eye(16, 5) > 0
    with Held(model, {"0.weight": mask}):
        torch.autograd.backward(model(x).square().sum())
        torch.testing.assert_close(model[0].weight.grad, whole[0].weight.grad * mask)
        torch.testing.assert_close(model[2].weight.grad, whole[2].weight.grad)


def test_held_refuses_what_is_not_there():
    with pytest.raises(UsageError, match=r"Unknown parameter '0.wight'. Did you mean '0.weight'"):
        Held(net(), {"0.wight": False})
    with pytest.raises(UsageError, match=r"give a bool tensor of shape \(16, 5\)"):
        Held(net(), {"0.weight": torch.ones(16, 5)})


def tuned(method, model, seed):
    """Return what a task changes, by the whole method."""
    model = copy.deepcopy(model)
    start = method.start(model)
    masks = None
    for _ in range(method.iterations):
        optimiser = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
        train(model, optimiser, seed=seed)
        masks = method.select(model, start, masks)
        start.rewind(model)
    optimiser = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    with method.held(model, masks, optimiser):
        train(model, optimiser, seed=seed)
    return model, method.change(model, start, masks)


def test_the_numbers_chosen_are_those_that_moved_farthest():
    base, model = net(), net()
    method = SparseTuning(0.2, dense=("3.*",))
    start = method.start(model)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator)
    masks = method.select(model, start)
    moved, chosen = [], []
    for (name, p), q in zip(model.named_parameters(), base.parameters(), strict=True):
        if name in masks:
            moved += (p - q).detach().abs().flatten().tolist()
            chosen += masks[name].flatten().tolist()
    assert set(masks) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert sum(chosen) == round(0.2 * len(moved))
    least = sorted(moved, reverse=True)[sum(chosen) - 1]
    assert [m >= least for m in moved] == chosen


def test_a_task_changes_only_its_share_and_rewinding_is_exact():
    base = net()
    method = SparseTuning(0.1, dense=("3.*",))
    model, change = tuned(method, base, 3)
    assert change.numbers == round(0.1 * (16 * 5 + 16 + 3 * 16 + 3))
    differ = sum(int((p != q).sum()) for (n, p), q in
                 zip(model.named_parameters(), base.parameters(), strict=True)
                 if not n.startswith("3."))  # fmt: skip
    assert differ == change.numbers
    assert set(change.whole) == {"3.weight", "3.bias"}


def test_rounds_choose_the_same_number_each():
    base = net()
    method = SparseTuning(0.2, iterations=2)
    start = method.start(base)
    model = copy.deepcopy(base)
    train(model, torch.optim.Adam(model.parameters(), 0.1), seed=1)
    first = method.select(model, start)
    train(model, torch.optim.Adam(model.parameters(), 0.1), seed=2)
    both = method.select(model, start, first)
    counts = [sum(int(m.sum()) for m in masks.values()) for masks in (first, both)]
    whole = round(0.2 * sum(p.numel() for p in base.parameters()))
    assert counts == [-(-whole // 2), whole]
    assert all(bool(both[n][first[n]].all()) for n in first)
    with pytest.raises(UsageError, match="leaves none to choose"):
        method.select(model, start, both)


def test_changes_of_tasks_add_up():
    base = net()
    method = SparseTuning(0.3)
    (one, a), (_, b) = tuned(method, base, 1), tuned(method, base, 2)
    alone = copy.deepcopy(base)
    compose(alone, [a])
    for p, q in zip(alone.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    both = copy.deepcopy(base)
    compose(both, [a, b], [1.0, -0.5])
    for (name, p), q in zip(both.named_parameters(), base.parameters(), strict=True):
        wanted = q.detach().double().flatten()
        for change, weight in ((a, 1.0), (b, -0.5)):
            for at, by in zip(change.at.get(name, ()), change.by.get(name, ()), strict=True):
                wanted[int(at)] += weight * float(by)
        torch.testing.assert_close(p.detach().double().flatten(), wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(DataError, match="a change is of another base"):
        compose(both, [a])


def test_the_file_holds_the_change_in_few_bytes(tmp_path):
    base = nn.Linear(300, 300)
    method = SparseTuning(0.01)
    start = method.start(base)
    model = copy.deepcopy(base)
    model.weight.data += torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    masks = method.select(model, start)
    for n, p in model.named_parameters():
        p.data = torch.where(masks[n], p.data, start.values[n])
    change = method.change(model, start, masks)
    path = tmp_path / "task.safetensors"
    save_sparse(path, change)
    assert path.stat().st_size < 903 * (2 + 4) + 1000
    back = load_sparse(path)
    assert back.settings == method
    assert (back.base, dict(back.shapes)) == (change.base, dict(change.shapes))
    assert all(torch.equal(back.at[n], change.at[n]) for n in change.at)
    assert all(torch.equal(back.by[n], change.by[n]) for n in change.by)
    compose(base, [back])
    torch.testing.assert_close(base.weight, model.weight)


@pytest.mark.parametrize("most", [3, 255, 256, 65535, 65536, 2**32])
def test_gaps_of_any_size_are_kept(tmp_path, most):
    change = tuned(SparseTuning(0.1), net(), 1)[1]
    at = torch.tensor([0, 1, most + 2, most + 3])
    change.at["0.weight"], change.by["0.weight"] = at, torch.randn(4)
    change.shapes["0.weight"] = (2**33,)
    save_sparse(tmp_path / "a", change)
    assert torch.equal(load_sparse(tmp_path / "a").at["0.weight"], at)


def test_damaged_and_foreign_files_are_answered(tmp_path):
    path = tmp_path / "task.safetensors"
    with pytest.raises(DataError, match="is missing"):
        load_sparse(path)
    path.write_bytes(b"x" * 50)
    with pytest.raises(DataError, match="is damaged or no safetensors"):
        load_sparse(path)
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="holds no change"):
        load_sparse(path)


def test_what_moved_beside_the_masks_is_an_error_and_no_silent_loss():
    model = net()
    method = SparseTuning(0.1)
    start = method.start(model)
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    masks = method.select(model, start)
    with pytest.raises(UsageError, match="changed where it was not chosen; rewind"):
        method.change(model, start, masks)
    model[0].weight.data[0] = math.nan
    with pytest.raises(UsageError, match="training diverged"):
        method.select(model, start)


def test_the_penalty_is_the_mean_absolute_change():
    model = net()
    method = SparseTuning(l1=0.5, dense=("3.*",))
    start = method.start(model)
    assert float(method.penalty(model, start).detach()) == 0
    model[0].bias.data += 2
    model[3].bias.data += 9
    many = 16 * 5 + 16 + 3 * 16 + 3
    assert float(method.penalty(model, start).detach()) == pytest.approx(0.5 * 32 / many)


def test_a_half_of_each_category_is_frozen_and_redrawn_at_each_stage():
    model = Text()
    method = HalfFineTuning(seed=4)
    seen = set()
    for number in range(12):
        frozen = method.frozen(model, number)
        assert frozen == method.frozen(model, number)
        seen.add(frozen)
        for block in range(2):
            mine = {n.removeprefix(f"blocks.{block}.") for n in frozen if f"blocks.{block}." in n}
            # one of in_proj and out_proj, one of two layers, one of two norms, each with its bias
            packed = {"attention.in_proj_weight", "attention.in_proj_bias"}
            out = {"attention.out_proj.weight", "attention.out_proj.bias"}
            assert (mine & packed, mine & out) in ((packed, set()), (set(), out))
            assert len([n for n in mine if n.startswith("mlp.")]) == 2
            assert len([n for n in mine if n.startswith("norm")]) == 2
            assert len(mine) == 6
        assert not any(n.startswith(("embed", "norm.")) for n in frozen)
    assert len(seen) > 6


def test_odd_categories_take_turns():
    """Three layers of a gated feed-forward part: a half of them in all."""
    base = nn.Module()
    base.layers = nn.ModuleList(
        nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("gate", "up", "down")})
        for _ in range(4)
    )
    for number in range(5):
        frozen = HalfFineTuning().frozen(base, number)
        counts = [sum(n.startswith(f"layers.{k}.") for n in frozen) for k in range(4)]
        assert sum(counts) == 6
        assert set(counts) == {1, 2}


def test_a_stage_trains_the_other_half():
    model = Text()
    before = state(model)
    method = HalfFineTuning()
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    with method.stage(model, 0, optimiser):
        torch.autograd.backward(model(torch.tensor([[1, 2, 3]])).square().sum())
        optimiser.step()
    frozen = set(method.frozen(model, 0))
    for name, p in state(model).items():
        assert torch.equal(p, before[name]) == (name in frozen), name
    assert all(p.requires_grad for p in model.parameters())


def test_categories_can_be_named():
    method = HalfFineTuning(categories=(("*.up", "*.down"),))
    base = nn.ModuleList([nn.ModuleDict({n: nn.Linear(2, 2) for n in ("up", "down", "other")})])
    assert len(method.frozen(base, 0)) == 2
    with pytest.raises(UsageError, match="no layers in numbered blocks"):
        HalfFineTuning().frozen(nn.ModuleDict({"a": nn.Linear(2, 2)}), 0)
    with pytest.raises(UsageError, match="give tuples of names"):
        HalfFineTuning(categories=("up",))
    with pytest.raises(UsageError, match="stage is -1"):
        method.frozen(base, -1)


def test_the_greedy_search_is_the_one_by_hand():
    """Block c alone is best, then a; together with b nothing more is gained."""
    worth = {(): 0.5, ("a",): 0.6, ("b",): 0.55, ("c",): 0.7, ("a", "c"): 0.8, ("b", "c"): 0.75,
             ("a", "b", "c"): 0.8}  # fmt: skip
    asked = []

    def score(subset):
        asked.append(subset)
        return worth[subset]

    choice = SubTuning()(["a", "b", "c"], score)
    assert choice.blocks == ("c", "a")
    assert choice.scores == (0.5, 0.7, 0.8)
    assert choice.tried == worth
    assert asked == [(), ("a",), ("b",), ("c",), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert SubTuning(most=1)(["a", "b", "c"], score).blocks == ("c",)
    assert SubTuning(gain=0.15)(["a", "b", "c"], score).blocks == ("c",)
    assert SubTuning(gain=0.3)(["a", "b", "c"], score).blocks == ()
    with pytest.raises(RunError, match="scored nan"):
        SubTuning()(["a"], lambda _: math.nan)
    with pytest.raises(UsageError, match="names of different ones"):
        SubTuning()(["a", "a"], score)


def test_only_the_blocks_named_are_trained():
    model = net()
    before = state(model)
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    with only(model, ("2", "3"), optimiser):
        train(model, optimiser)
    after = state(model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        "2.weight", "2.bias", "3.weight", "3.bias",
    }  # fmt: skip
    with pytest.raises(UsageError, match="Unknown module"):
        only(model, ("nine",))


def test_tasks_share_what_they_left_alone_and_each_gets_its_own_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)]
        heads = {name: nn.Linear(4, 2) for name in ("a", "b", "c", "d")}
        model = Branched.of(blocks, {"a": (2,), "b": (1, 3), "c": (3,), "d": ()}, heads)
        for p in model.own.parameters():
            p.data += torch.randn_like(p)
    assert not any(p.requires_grad for p in model.blocks.parameters())
    runs = []
    for module in (*model.blocks, *(block for own in model.own for block in own.values())):
        module.register_forward_hook(lambda module, args, out: runs.append(module))
    x = torch.randn(3, 4)
    out = model(x)
    # Block 0 once for all; 1 once for a, c and d, and b's; 2 once for c and d, a's, and once for b;
    # 3 for a, for d, and b's and c's.
    assert [sum(m is block for m in runs) for block in model.blocks] == [1, 1, 2, 2]
    assert len(runs) == 1 + 2 + 3 + 4
    for name, own in zip(model.names, model.own, strict=True):
        y = x
        for at, block in enumerate(blocks):
            y = own[str(at)](y) if str(at) in own else block(y)
        torch.testing.assert_close(out[name], heads[name](y))
    runs.clear()
    assert list(model(x, ("d",))) == ["d"]
    assert len(runs) == 4
    with pytest.raises(UsageError, match="Unknown task"):
        model(x, ("e",))
    with pytest.raises(UsageError, match="positions are 0 to 3"):
        Branched(blocks, {"a": {4: blocks[0]}}, {"a": heads["a"]})
    with pytest.raises(UsageError, match="positions are 0 to 3"):
        Branched.of(blocks, {"a": (4,)}, {"a": heads["a"]})
    with pytest.raises(UsageError, match="both of every task"):
        Branched(blocks, {"a": {}}, {})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: SparseTuning(0), "density is 0"),
        (lambda: SparseTuning(iterations=0), "iterations is 0"),
        (lambda: SparseTuning(dense="head"), "give a tuple"),
        (lambda: SparseTuning(l1=-1), "l1 is -1"),
        (lambda: SubTuning(most=-1), "most is -1"),
        (lambda: SubTuning(gain=math.nan), "gain is nan"),
        (lambda: compose(net(), []), "0 changes"),
        (lambda: SparseTuning(dense=("*",)).select(net(), SparseTuning().start(net())), "is dense"),
    ],
)
def test_wrong_use_is_answered(build, said):
    with pytest.raises(UsageError, match=said):
        build()
