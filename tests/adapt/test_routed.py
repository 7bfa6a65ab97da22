"""Methods that route over experts, each against a plain loop over rows and tokens.

The loops are written from the equations, one row, token, expert and task at a time.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.adapt import (
    MHR,
    Arrow,
    GlobalTask,
    LoRAMoE,
    Method,
    MoR1E,
    MoSLD,
    MTLLoRA,
    Polytropon,
    SharedFactor,
    SMoRA,
    TensorPoly,
    Trace,
    adapt,
    fit_centroids,
    follow_load,
    freeze_skills,
    load_adapted,
    mtlora_at,
    route_evenly,
    save_adapted,
)
from polytask.errors import UsageError

TASKS = ("a", "b", "c")
INDEX_B = torch.tensor([2, 0, -1, 1, 2])
Values = dict[str, Tensor]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores: list[Tensor], temperature: float = 1.0) -> list[Tensor]:
    grown = [torch.exp(s / temperature) for s in scores]
    return [g / sum(grown) for g in grown]


def shares(z_E: Tensor) -> list[Tensor]:
    opened = [1 / (1 + torch.exp(-z)) for z in z_E]
    return [o / sum(opened) for o in opened]


def best(scores: list[Tensor], top: int, by: list[Tensor] | None = None) -> list[Tensor]:
    """The softmax over the best, 0 for the others."""
    order = sorted(range(len(scores)), key=lambda e: -float((by or scores)[e].detach()))[:top]
    weights = softmax([scores[e] for e in order])
    zero = 0 * scores[0]
    return [weights[order.index(e)] if e in order else zero for e in range(len(scores))]


# Changes of a task's weight: down factors are (R, I) or (R, I, k, k); (O, I, ...) comes back.


def times(up_RO: Tensor, down: Tensor) -> Tensor:
    parts = [torch.tensordot(up_RO[r], down[r], dims=0) for r in range(len(down))]
    return torch.stack(parts).sum(0)


def mtl_lora(p: Values, t: int, m: MTLLoRA) -> Tensor:
    core = torch.diag(p["core_TR"][t]) if m.diagonal else p["core_TRR"][t]
    down = torch.stack(
        [sum(core[r, q] * p["down_RI"][q] for q in range(m.rank)) for r in range(m.rank)]
    )
    weights = softmax(list(p["selection.scores.scores_TGE"][t, 0]), m.temperature)
    moved = [w * times(up, down) for w, up in zip(weights, p["up_ERO"], strict=True)]
    return m.alpha / m.rank * sum(moved)


def global_task(p: Values, t: int, m: GlobalTask) -> Tensor:
    moved = torch.zeros(())
    if m.rank:
        moved = moved + m.scale * times(p["up_RO"], p["down_RI"])
    if m.task_rank:
        moved = moved + m.task_scale * times(p["up_TKO"][t], p["down_TKI"][t])
    return moved


def shared_factor(p: Values, t: int, m: SharedFactor) -> Tensor:
    down = p["down_RI"] if m.shared == "down" else p["down_TRI"][t]
    up = p["up_TRO"][t] if m.shared == "down" else p["up_RO"]
    return m.alpha / m.rank * times(up, down)


def skills(p: Values, t: int, m: Polytropon | MHR) -> Tensor:
    """Heads cut the inputs of A and the outputs of B."""
    heads = getattr(m, "heads", 1)
    a_HE = [shares(z) for z in p["own.scores.scores_TGE"][t]]
    downs, ups = [], []
    for h in range(heads):
        downs.append(sum(a_HE[h][k] * d.chunk(heads, 1)[h] for k, d in enumerate(p["down_ERI"])))
        ups.append(sum(a_HE[h][k] * u.chunk(heads, 1)[h] for k, u in enumerate(p["up_ERO"])))
    return m.alpha / m.rank * times(torch.cat(ups, 1), torch.cat(downs, 1))


def tensorpoly(p: Values, t: int, m: TensorPoly) -> Tensor:
    z_GE = p["selection.scores.scores_TGE"][t]

    def norm(pairs: list[Tensor], name: str) -> Tensor:
        """A layer norm over the entries of all ranks."""
        whole = torch.stack(pairs)
        centred = whole - whole.mean()
        normed = centred / torch.sqrt((centred**2).mean() + 1e-5)
        return normed * p[f"{name}.gain_RP"] + p[f"{name}.shift_RP"]

    def grown(leaves_DRL: list[Tensor], name: str) -> Tensor:
        pairs = []
        for o in range(0, m.orders, 2):
            both = [torch.kron(leaves_DRL[o][r], leaves_DRL[o + 1][r]) for r in range(m.rank)]
            pairs.append(norm(both, name))
        rows = []
        for r in range(m.rank):
            product = pairs[0][r]
            for pair in pairs[1:]:
                product = torch.kron(product, pair[r])
            rows.append(product)
        return torch.stack(rows)

    made = []
    for name in ("down", "up"):
        leaves_EDRL = p[f"{name}.leaves_EDRL"]
        if m.mixes == "skills":
            made.append(sum(a * grown(list(own), name) for a, own in zip(
                shares(z_GE[0]), leaves_EDRL, strict=True)))  # fmt: skip
        else:
            mixed = [
                sum(a * leaf for a, leaf in zip(shares(z_GE[o]), leaves_EDRL[:, o], strict=True))
                for o in range(m.orders)
            ]
            made.append(grown(mixed, name))
    down, up = made
    return m.alpha / m.rank * times(up[:, :4], down[:, :6])


# Changes of one token: (x_I) -> (O,). b is the row.


def loramoe(p: Values, x_I: Tensor, b: int, m: LoRAMoE) -> Tensor:
    weights = softmax(list(p["selection.scores.weight_SC"] @ x_I))
    made = [w * (u.T @ (d @ x_I))
            for w, u, d in zip(weights, p["up_ERO"], p["down_ERI"], strict=True)]  # fmt: skip
    return m.alpha / m.rank * sum(made)


def mosld(p: Values, x_I: Tensor, b: int, m: MoSLD) -> Tensor:
    weights = best(list(p["selection.scores.weight_SC"] @ x_I), m.top)
    made = [w * (u.T @ (p["down_RI"] @ x_I)) for w, u in zip(weights, p["up_ERO"], strict=True)]
    return m.alpha / m.rank * sum(made)


def smora(p: Values, x_I: Tensor, b: int, m: SMoRA) -> Tensor:
    scores = list(p["router.weight_SC"] @ x_I)
    by = [s + c for s, c in zip(scores, p["steer_R"], strict=True)]
    g_R = torch.stack(best(scores, m.top, by))
    return m.alpha / m.rank * p["up_RO"].T @ torch.diag(g_R) @ p["down_RI"] @ x_I


def mor1e(p: Values, x_I: Tensor, b: int, m: MoR1E) -> Tensor:
    share = 1 / (1 + torch.exp(-100 * p["theta"]))
    routed = softmax(list(p["router.weight_SC"] @ x_I))
    intuition = [c @ EMBEDDING_BC[b] for c in p["centroids_EC"]]
    w_E = torch.stack([m.experts * share * r + 4 * (1 - share) * s
                       for r, s in zip(routed, intuition, strict=True)])  # fmt: skip
    return p["up_EO"].T @ (w_E * (p["down_EI"] @ x_I)) / (1 + torch.exp(-100 * p["phi"]))


def arrow(p: Values, x_I: Tensor, b: int, m: Arrow) -> Tensor:
    scores = [abs(x_I @ v) / m.temperature for v in p["selection.scores.prototypes_EC"]]
    weights = best(scores, m.top)
    made = [w * (u.T @ (d @ x_I))
            for w, u, d in zip(weights, p["up_ERO"], p["down_ERI"], strict=True)]  # fmt: skip
    return m.scale * sum(made)


EMBEDDING_BC = drawn(17, 5, 3)

BY_TASK: dict[str, tuple[Method, Callable[..., Tensor]]] = {
    "MTL-LoRA": (MTLLoRA(3, 6.0, 4), mtl_lora),
    "MTL-LoRA, diagonal": (MTLLoRA(3, 6.0, diagonal=True, temperature=0.7), mtl_lora),
    "global and task": (GlobalTask(3, 2, 0.7, 1.3), global_task),
    "global alone": (GlobalTask(3, 0, 0.7), global_task),
    "task alone": (GlobalTask(0, 3), global_task),
    "shared A": (SharedFactor(3, 6.0), shared_factor),
    "shared B": (SharedFactor(3, 6.0, "up"), shared_factor),
    "Polytropon": (Polytropon(4, 3), skills),
    "Polytropon, rank 1": (Polytropon(4, 1, 2.0), skills),
    "MHR": (MHR(2, 4, 3), skills),
    "TensorPoly-I": (TensorPoly("skills", 3, 4, 2, 1.4), tensorpoly),
    "TensorPoly-II": (TensorPoly("leaves", 3, 4, 2, 1.4), tensorpoly),
    "TensorPoly-II, pairs": (TensorPoly("leaves", 3, 2, 1), tensorpoly),
    "TensorPoly-I, six": (TensorPoly("skills", 2, 6, 1), tensorpoly),
}

BY_TOKEN: dict[str, tuple[Method, Callable[..., Tensor]]] = {
    "LoRAMoE": (LoRAMoE(4, 2, 6.0, dropout=0.0), loramoe),
    "MoSLD": (MoSLD(5, 2, 3, 6.0, dropout=0.0), mosld),
    "SMoRA": (SMoRA(7, 3, 6.0), smora),
    "MoR1E": (MoR1E(4, 3), mor1e),
    "Arrow": (Arrow(5, 2, 3, 0.5, 1.5), arrow),
}


def layers(method: Method) -> list[tuple[nn.Module, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        linear = nn.Linear(6, 4).double()
        conv = nn.Conv2d(6, 4, 3, stride=2, padding=1).double()
    found = [(linear, drawn(0, 5, 7, 6))]
    if "conv" in method.kinds:
        found.append((conv, drawn(1, 5, 6, 8, 6)))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", [*BY_TASK, *BY_TOKEN])
def test_outputs_and_gradients_are_those_of_a_loop(case, dtype):
    """1e-10 in float64, 1e-5 in float32 of the largest entry, the gradient of the input as well."""
    method, plain = (BY_TASK | BY_TOKEN)[case]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for layer, inputs in layers(method):
        adapted = adapt(nn.Sequential(layer.to(dtype)), method, TASKS, seed=1)
        adapter = adapted.parts[0].at("0")
        p = dict(adapter.named_parameters())
        if adapter.common is not None:
            p |= dict(adapter.common.named_parameters())
        fixed = dict(adapter.named_buffers()) | (
            {} if adapter.common is None else dict(adapter.common.named_buffers())
        )
        for at, value in enumerate([*p.values(), *fixed.values()]):
            by = 0.01 if value.dim() == 0 else 0.5  # what stands inside of sigmoid(100 ...)
            value.data += by * drawn(at + 9, *value.shape).to(dtype)
        x = inputs.to(dtype).requires_grad_()
        given = {"embedding": EMBEDDING_BC.to(dtype)} if isinstance(method, MoR1E) else None
        with adapted.tasks(INDEX_B, given=given):
            y = adapted(x)
        y.sin().sum().backward()
        mine = [x.grad, *(v.grad for v in p.values())]

        wide = {name: v.detach().double().requires_grad_() for name, v in p.items()}
        values = wide | {name: v.detach().double() for name, v in fixed.items()}
        x_wide = inputs.to(dtype).double().requires_grad_()
        base, rows = layer.double(), []
        with adapted.without():  # the layer as it was
            for b, t in enumerate(INDEX_B.tolist()):
                if t < 0:
                    rows.append(base(x_wide[b][None])[0])
                elif case in BY_TOKEN:
                    changes = [plain(values, token, b, method) for token in x_wide[b]]
                    rows.append(base(x_wide[b]) + torch.stack(changes))
                elif isinstance(base, nn.Conv2d):
                    moved = base.weight + plain(values, t, method)
                    padded = x_wide[b][None]
                    rows.append(F.conv2d(padded, moved, base.bias, base.stride, base.padding)[0])
                else:
                    rows.append(
                        F.linear(x_wide[b], base.weight + plain(values, t, method), base.bias)
                    )
        wanted = torch.stack(rows)
        wanted.sin().sum().backward()
        theirs = [wanted, x_wide.grad, *(v.grad for v in wide.values())]
        for own, other in zip([y.detach(), *mine], [v.detach() for v in theirs], strict=True):
            size = other.abs().max().clamp(min=1)
            assert float((own - other).abs().max() / size) <= tolerance


@pytest.mark.parametrize(
    "method",
    [MTLLoRA(), GlobalTask(), SharedFactor(), SharedFactor(shared="up"), Polytropon(), MHR(2),
     LoRAMoE(), MoSLD(), SMoRA(), Arrow(), MoR1E(width=3)],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_it_starts_as_the_base_bit_for_bit(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
    x = torch.randn(5, 3, 6)
    before = model(x)
    adapted = adapt(model, method, TASKS)
    with adapted.tasks(INDEX_B, given={"embedding": EMBEDDING_BC.float()}):
        assert torch.equal(model(x), before)


def test_tensorpoly_does_not_start_as_the_base():
    model = nn.Sequential(nn.Linear(6, 8))
    x = torch.randn(2, 3, 6)
    before = model(x)
    with adapt(model, TensorPoly(), TASKS).task("a"):
        assert not torch.allclose(model(x), before)


@pytest.mark.parametrize(("channels", "leaf"), [(16, 2), (17, 3), (81, 3), (768, 6), (1, 1)])
def test_leaves_are_the_least_whose_product_covers_the_channels(channels, leaf):
    adapted = adapt(nn.Sequential(nn.Linear(channels, 2)), TensorPoly(), TASKS)
    assert adapted.parts[0].at("0").down.leaves_EDRL.shape == (8, 4, 1, leaf)


def test_mtlora_parts_where_it_is_told_to():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)).double()
    adapted = adapt(model, mtlora_at("1", dropout=0.0), TASKS)
    for at, parameter in enumerate(adapted.parts.parameters()):
        parameter.data += drawn(at, *parameter.shape)
    x = drawn(50, 5, 3, 6)
    everywhere, parting = adapted.parts
    with adapted.tasks(INDEX_B):
        y = adapted(x)
        first = model[0](x)
    for b, t in enumerate(INDEX_B.tolist()):
        hidden = F.linear(x[b], model[0].weight, model[0].bias)
        if t < 0:
            wanted = F.linear(hidden, model[1].weight, model[1].bias)
        else:
            one, two, own = everywhere.at("0"), everywhere.at("1"), parting.at("1")
            hidden = hidden + 4.0 * x[b] @ one.down_RI.T @ one.up_RO
            wanted = F.linear(hidden, model[1].weight, model[1].bias)
            wanted = wanted + 4.0 * hidden @ two.down_RI.T @ two.up_RO
            wanted = wanted + 4.0 * hidden @ own.down_TKI[t].T @ own.up_TKO[t]
        assert torch.allclose(y[b], wanted, atol=1e-9)
    assert first.shape == (5, 3, 8)
    assert "down_TKI" not in dict(everywhere.at("0").named_parameters())
    assert parting.at("1").down_TKI.shape == (3, 4, 8)
    assert everywhere.at("0").down_RI.shape == (64, 6)


def test_a_frozen_shared_factor_is_saved_and_not_trained(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4))

    adapted = adapt(build(), SharedFactor(freeze=True), TASKS, seed=4)
    assert [n for n, _ in adapted.parts[0].at("0").named_parameters()] == ["up_TRO"]
    save_adapted(tmp_path / "a.safetensors", adapted)
    again = load_adapted(tmp_path / "a.safetensors", build())
    assert torch.equal(again.parts[0].at("0").down_RI, adapted.parts[0].at("0").down_RI)


def test_one_routing_for_all_layers_is_one_parameter_and_grows(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double()

    adapted = adapt(build(), Polytropon(3, 2, common_routing=True), TASKS)
    names = [n for n, _ in adapted.named_parameters() if "scores" in n]
    assert names == ["parts.0.common.scores.scores_TGE"]
    adapted.add_task("d")
    for at, parameter in enumerate(adapted.parts.parameters()):
        parameter.data += drawn(at, *parameter.shape)
    x, index_B = drawn(9, 2, 3, 6), torch.tensor([3, 1])
    with adapted.tasks(index_B):
        y = adapted(x)
    scores_TGE = adapted.parts[0].common.scores.scores_TGE
    for b, t in enumerate(index_B.tolist()):
        row = x[b]
        for i in range(2):
            own = adapted.parts[0].at(str(i))
            p = {
                "down_ERI": own.down_ERI,
                "up_ERO": own.up_ERO,
                "own.scores.scores_TGE": scores_TGE,
            }
            base = adapted.base[i]
            row = F.linear(row, base.weight + skills(p, t, Polytropon(3, 2)), base.bias)
        assert torch.allclose(y[b], row, atol=1e-10)
    save_adapted(tmp_path / "p.safetensors", adapted)
    again = load_adapted(tmp_path / "p.safetensors", build())
    with again.tasks(index_B):
        assert torch.equal(again(x), y)


def test_shares_are_drawn_in_training_alone():
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), Polytropon(sampled=True), TASKS)
    adapted.parts[0].at("0").up_ERO.data.normal_()
    x = torch.randn(2, 3, 6)
    with adapted.task("b"):
        assert not torch.equal(adapted(x), adapted(x))
        adapted.eval()
        assert torch.equal(adapted(x), adapted(x))


@pytest.mark.parametrize(
    "method", [MHR(2), Polytropon(), TensorPoly(mixes="leaves"), MTLLoRA()], ids=str
)
def test_mhr_z_trains_routing_alone(method):
    adapted = adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), method, TASKS)
    adapted.add_task("new")
    routing = freeze_skills(adapted)
    assert [p.shape[0] for p in routing] == [4, 4]
    assert {id(p) for p in adapted.trainable_parameters()} == {id(p) for p in routing}
    for parameter in adapted.parts.parameters():
        parameter.data += torch.randn(parameter.shape)
    with adapted.task("new"):
        adapted(torch.randn(2, 3, 6)).square().sum().backward()
    for scores in routing:
        assert scores.grad[3].abs().sum() > 0
        assert not scores.grad[:3].any()


def test_mhr_mu_is_the_skills_average_and_a_file_holds_it(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4)).double()

    adapted = adapt(build(), MHR(2, 4, 3, sampled=True), TASKS)
    adapter = adapted.parts[0].at("0")
    for at, parameter in enumerate(adapted.parts.parameters()):
        parameter.data += drawn(at, *parameter.shape)
    x = drawn(9, 1, 3, 6)
    with torch.no_grad():
        adapted.eval()
        with adapted.task("a"):
            before = adapted(x)
        route_evenly(adapted, ("b",))
        adapted.train()
        with adapted.task("b"):
            even = adapted(x)
        adapted.eval()
        with adapted.task("a"):
            assert torch.equal(adapted(x), before)
        moved = adapter.up_ERO.mean(0).T @ adapter.down_ERI.mean(0) / 3
        base = adapted.base[0]
        assert torch.allclose(even, F.linear(x, base.weight + moved, base.bias), atol=1e-12)
        save_adapted(tmp_path / "m.safetensors", adapted)
        again = load_adapted(tmp_path / "m.safetensors", build()).eval()
        with again.task("b"):
            assert torch.allclose(again(x), even, atol=1e-12)
    trained = {n for n, p in adapter.named_parameters() if p.requires_grad}
    assert trained == {"down_ERI", "up_ERO"}


def test_what_has_no_routing_by_task_says_so():
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), SMoRA(8, 2), TASKS)
    for call in (freeze_skills, route_evenly):
        with pytest.raises(UsageError, match=f"{call.__name__}: the adapters have no routing"):
            call(adapted)
    with pytest.raises(UsageError, match="no change of weights"):
        adapted.change("a")


def test_loramoe_balance_against_its_equation():
    method = LoRAMoE(4, 2, beta=0.6, delta=0.3, dropout=0.0)
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)).double(), method, TASKS)
    router = adapted.parts[0].at("0").selection.scores.weight_SC
    x, type_B, trace = drawn(0, 5, 7, 6), torch.tensor([0, 1, 0, 1, 1]), Trace()
    with adapted.tasks(INDEX_B, given={"type": type_B}, trace=trace):
        adapted(x)
    counted = []
    for b in (0, 1, 3, 4):  # row 2 has no task
        for i in range(4):
            q = sum(float(torch.softmax(router.detach() @ token, 0)[i]) for token in x[b])
            counted.append(q * (1.3 if (i >= 2) == bool(type_B[b]) else 0.7))
    mean = sum(counted) / 16
    wanted = 0.6 * sum((c - mean) ** 2 for c in counted) / 15 / mean**2
    assert float(trace.penalties["0"].detach()) == pytest.approx(wanted, rel=1e-5)
    trace.penalties["0"].backward()
    assert router.grad.abs().sum() > 0


def test_loramoe_balance_draws_types_to_halves_of_the_experts():
    """Descending the penalty alone, type 0 comes to take the first half less than type 1 does."""
    torch.manual_seed(0)
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), LoRAMoE(4, delta=0.3, dropout=0.0), TASKS)
    router = adapted.parts[0].at("0").selection.scores.weight_SC
    type_B = torch.arange(16) % 2
    x = torch.randn(16, 5, 6)
    x[..., 0] = type_B[:, None] * 2.0 - 1
    optimiser = torch.optim.Adam([router], 0.05)
    for _ in range(100):
        trace = Trace()
        with adapted.tasks(torch.zeros(16, dtype=torch.int64), given={"type": type_B}, trace=trace):
            adapted(x)
        optimiser.zero_grad()
        trace.penalties["0"].backward()
        optimiser.step()
    first_B = trace.weights["0"][..., :2].sum(-1).mean((1, 2))
    # The penalty is least where 1 + delta times a share is 1 - delta times the other half's.
    assert first_B[type_B == 0].mean() < first_B[type_B == 1].mean()


def test_loramoe_asks_for_types_only_where_it_has_a_penalty():
    x = torch.randn(5, 3, 6)
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), LoRAMoE(), TASKS)
    with (
        pytest.raises(UsageError, match="LoRAMoE's penalty needs 'type' of every row"),
        adapted.tasks(INDEX_B, trace=Trace()),
    ):
        adapted(x)
    with (
        pytest.raises(UsageError, match=r"given\['type'\] has shape \(4,\)"),
        adapted.tasks(INDEX_B, given={"type": torch.zeros(4)}, trace=Trace()),
    ):
        adapted(x)
    adapted.eval()
    trace = Trace()
    with adapted.tasks(INDEX_B, trace=trace):
        adapted(x)
    assert trace.penalties == {}
    assert trace.weights["0"].shape == (5, 3, 1, 8)
    assert adapted.penalises


def test_smora_steers_its_ranks_to_even_use():
    torch.manual_seed(0)
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), SMoRA(8, 2), TASKS)
    adapter = adapted.parts[0].at("0")
    x = torch.randn(64, 5, 6) + 1

    def spread() -> float:
        trace = Trace()
        with torch.no_grad(), adapted.tasks(torch.zeros(64, dtype=torch.int64), trace=trace):
            adapted(x)
        chosen = trace.weights["0"] > 0
        assert (chosen.sum(-1) == 2).all()
        load_R = chosen.flatten(0, -2).float().mean(0)
        before = adapter.steer_R.clone()
        follow_load(adapted, trace, 0.02)
        assert torch.allclose(adapter.steer_R, before + 0.02 * torch.sign(0.25 - load_R))
        return float(load_R.std())

    first = spread()
    for _ in range(100):
        last = spread()
    assert last < 0.25 * first


def test_smora_needs_a_trace_of_itself():
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), SMoRA(8, 2), TASKS)
    with pytest.raises(UsageError, match="the trace has nothing of '0'"):
        follow_load(adapted, Trace())
    other = adapt(nn.Sequential(nn.Linear(6, 4)), MTLLoRA(), TASKS)
    with pytest.raises(UsageError, match="the model has no SMoRA"):
        follow_load(other, Trace())


def test_mosld_drops_entries_of_a_and_no_inputs():
    adapted = adapt(nn.Sequential(nn.Linear(6, 4, bias=False)), MoSLD(dropout=0.5), TASKS)
    adapter = adapted.parts[0].at("0")
    adapter.up_ERO.data.normal_()
    x = torch.randn(1, 1, 6).expand(2, 3, 6)
    with adapted.task("a"):
        first, second = adapted(x), adapted(x)
    assert not torch.allclose(first, second)
    assert torch.allclose(first, first[:1, :1].expand_as(first), atol=1e-6)  # one draw for all


def test_centroids_are_those_of_k_means_and_belong_to_the_file(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))

    adapted = adapt(build(), MoR1E(3, 2), TASKS)
    wanted = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]])
    around = wanted.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 2)
    fit_centroids(adapted, around)
    centroids = adapted.parts[0].common.centroids_EC
    for k in range(3):
        mean = around[20 * k : 20 * k + 20].mean(0)
        assert float((centroids - mean).norm(dim=1).min()) < 1e-5
    save_adapted(tmp_path / "m.safetensors", adapted)
    again = load_adapted(tmp_path / "m.safetensors", build())
    assert torch.equal(again.parts[0].common.centroids_EC, centroids)
    with pytest.raises(UsageError, match=r"give \(at least 3, 2\)"):
        fit_centroids(adapted, around[:2])


def test_mor1e_asks_for_an_embedding_of_every_row():
    adapted = adapt(nn.Sequential(nn.Linear(6, 4)), MoR1E(3, 2), TASKS)
    x = torch.randn(5, 3, 6)
    with pytest.raises(UsageError, match="MoR1E needs 'embedding'"), adapted.tasks(INDEX_B):
        adapted(x)
    with (
        pytest.raises(UsageError, match=r"has shape \(4, 2\); give \(5, 2\)"),
        adapted.tasks(INDEX_B, given={"embedding": torch.zeros(4, 2)}),
    ):
        adapted(x)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MTLLoRA(experts=0), "MTLLoRA: experts is 0; give a whole number >= 1"),
        (lambda: MTLLoRA(temperature=0), "temperature is 0"),
        (lambda: GlobalTask(0, 0), "one part has to be there"),
        (lambda: GlobalTask(task_rank=-1), "GlobalTask: task_rank is -1"),
        (lambda: SharedFactor(shared="both"), "SharedFactor: shared is 'both'"),
        (lambda: SharedFactor(shared="up", freeze=True), "only A can freeze"),
        (lambda: Polytropon(skills=0), "Polytropon: skills is 0"),
        (lambda: MHR(heads=0), "MHR: heads is 0"),
        (lambda: TensorPoly(orders=3), "TensorPoly: orders is 3; give 2, 4, 6"),
        (lambda: TensorPoly(mixes="I"), "TensorPoly: mixes is 'I'; give 'skills' or 'leaves'"),
        (lambda: SMoRA(rank=4, top=5), "SMoRA: top is 5; give a whole number from 1 to rank, 4"),
        (lambda: LoRAMoE(experts=3), "3 experts have no halves"),
        (lambda: LoRAMoE(delta=1.0), "delta in"),
        (lambda: MoSLD(top=0), "MoSLD: top is 0"),
        (lambda: MoR1E(width=0), "MoR1E: width is 0"),
        (lambda: Arrow(top=9), "Arrow: top is 9"),
    ],
)
def test_wrong_settings_are_answered(build, said):
    with pytest.raises(UsageError, match=said):
        build()


def test_heads_that_do_not_divide_are_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    with pytest.raises(UsageError, match="4 heads do not divide its 6 inputs and 8 outputs"):
        adapt(model, MHR(4), TASKS, where=("0", "1"))
    assert [la.path for la in adapt(model, MHR(4), TASKS).layers()] == ["1"]


def test_the_relaxed_bernoulli_of_polytropon_has_its_mean():
    """At temperature 1 the mean of a draw is close to, and its median exactly, sigmoid's side."""
    torch.manual_seed(0)
    method = Polytropon(1, 1, sampled=True)
    selection = adapt(nn.Sequential(nn.Linear(1, 1)), method, ("a",)).at("0").routing()
    scores = torch.full((20000, 1), math.log(3.0))
    u = torch.rand(20000).clamp(1e-6, 1 - 1e-6)
    wanted = torch.sigmoid(math.log(3.0) + torch.log(u) - torch.log1p(-u))
    assert float((wanted > 0.5).float().mean()) == pytest.approx(0.75, abs=0.02)
    assert torch.equal(selection.rule(scores, True), torch.ones(20000, 1))  # one skill, all of it
