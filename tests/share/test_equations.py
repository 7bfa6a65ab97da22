"""Every architecture against plain loops over experts and tasks, written from its equations.

Forward and every gradient, in float64 to 1e-10. The loops take single experts' and gates' weights
out of the model and use none of its functions.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from polytask.share import DTRN, Experts, Gates, MMoE, Trace, TrunkModel
from polytask.tasks import Binary, Task

from .conftest import RECIPES, FieldEncoder, binary, make, rows
from .field_loops import apem, dtrn, stem
from .plain import key, mlp, softmax_mix


def mmoe(trunk, x, task):
    outputs = [mlp(trunk.experts, e, x) for e in range(trunk.experts.number)]
    return softmax_mix(x @ trunk.gating.linears[key(task)].weight.T, outputs)


def mmoeex(trunk, x, task):
    gate = trunk.gating.linears[key(task)]
    outputs = [mlp(trunk.shared, e, x) for e in range(trunk.shared.number)]
    for owner in trunk._keepers:
        own = trunk.own[key(owner)]
        outputs += [mlp(own, e, x) for e in range(own.number)]
    for e in range(len(outputs)):
        if gate.closed_E[e]:
            outputs[e] = None
    return softmax_mix(x @ gate.weight.T, outputs)


def level(module, tasks, x_of, x_shared):
    """One level of PLE: -> features of each task, features of the shared part (or None)."""
    shared = [mlp(module.shared, e, x_shared) for e in range(module.shared.number)]
    own = {
        t: [mlp(module.own[key(t)], e, x_of[t]) for e in range(module.own[key(t)].number)]
        for t in tasks
    }
    given = {
        t: softmax_mix(x_of[t] @ module.gates.linears[key(t)].weight.T, shared + own[t])
        for t in tasks
    }
    if module.shared_gate is None:
        return given, None
    every = shared + [h for t in tasks for h in own[t]]
    return given, softmax_mix(x_shared @ module.shared_gate.weight.T, every)


def cgc(trunk, x, task):
    return level(trunk.level, trunk.tasks, dict.fromkeys(trunk.tasks, x), x)[0][task]


def ple(trunk, x, task):
    x_of, x_shared = dict.fromkeys(trunk.tasks, x), x
    for module in trunk.levels:
        x_of, x_shared = level(module, trunk.tasks, x_of, x_shared)
    return x_of[task]


def smooth(t):
    if t <= -0.5:
        return t * 0
    if t >= 0.5:
        return t * 0 + 1
    return -2 * t**3 + 1.5 * t + 0.5


def selectors(trunk, x, task):
    """Per row, per selector: the part of every expert."""
    gate, number = trunk.gating[key(task)], trunk.experts.number
    bits = math.ceil(math.log2(number))
    found = []
    for r in range(len(x)):
        row = []
        for j in range(trunk.k):
            if trunk.per_example:
                z = [gate.steps[j, b] @ x[r] + gate.step_bias[j, b] for b in range(bits)]
            else:
                z = [gate.steps[j, b] for b in range(bits)]
            s = [smooth(value / trunk.gamma) for value in z]
            row.append(
                [
                    math.prod(
                        (s[b] if (e >> b) & 1 else 1 - s[b] for b in range(bits)),
                        start=torch.ones(()).double(),
                    )
                    for e in range(number)
                ]
            )
        found.append(row)
    return found


def dselect_k(trunk, x, task):
    gate, number = trunk.gating[key(task)], trunk.experts.number
    outputs = [mlp(trunk.experts, e, x) for e in range(number)]
    chosen, given = selectors(trunk, x, task), []
    for r in range(len(x)):
        if trunk.per_example:
            logits = torch.stack(
                [gate.mixture[j] @ x[r] + gate.mixture_bias[j] for j in range(trunk.k)]
            )
        else:
            logits = gate.mixture
        part = logits.softmax(0)
        given.append(
            sum(
                part[j] * chosen[r][j][e] * outputs[e][r]
                for j in range(trunk.k)
                for e in range(number)
            )
        )
    return torch.stack(given)


def cross_stitch(trunk, x, task):
    h = dict.fromkeys(trunk.tasks, x)
    for layer, stitch in enumerate(trunk.stitches):
        own = {}
        for t in trunk.tasks:
            network = trunk.networks[key(t)]
            own[t] = torch.relu(h[t] @ network.weights[layer][0] + network.biases[layer][0])
        h = {
            t: sum(stitch[key(t)][j] * own[other] for j, other in enumerate(trunk.tasks))
            for t in trunk.tasks
        }
    return h[task]


def sluice(trunk, x, task):
    h, total = dict.fromkeys(trunk.tasks, x), 0
    half = trunk.width // 2
    for layer, exchange in enumerate(trunk.exchanges):
        own = {}
        for t in trunk.tasks:
            network = trunk.networks[key(t)]
            own[t] = torch.relu(h[t] @ network.weights[layer][0] + network.biases[layer][0])
        h = {}
        for t in trunk.tasks:
            parts = [
                sum(
                    exchange[key(t)][n, i, j] * own[other][:, j * half : (j + 1) * half]
                    for n, other in enumerate(trunk.tasks)
                    for j in range(2)
                )
                for i in range(2)
            ]
            h[t] = torch.cat(parts, 1)
        total = total + trunk.mixtures[key(task)][layer] * h[task]
    return total


def aitm(trunk, x, task):
    before = None
    for t in trunk.tasks:
        own = mlp(trunk.networks[key(t)], 0, x)
        if before is None:
            before = own
        else:
            transfer = trunk.transfers[key(t)]
            query, keys, value = transfer.attention.weight.chunk(3)
            handed = torch.relu(before @ transfer.hand.weight.T + transfer.hand.bias)
            scores = [
                ((u @ query.T) * (u @ keys.T)).sum(1) / math.sqrt(trunk.width)
                for u in (own, handed)
            ]
            before = softmax_mix(torch.stack(scores, 1), [own @ value.T, handed @ value.T])
        if t == task:
            return before
    raise AssertionError


def home_expert(part, e, x):
    gate = 2 / (1 + (-(x @ part.down[e]) @ part.up[e]).exp())
    y = (x * gate) @ part.weight[e] + part.bias[e]
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    y = y * part.gain[e] + part.shift[e]
    return y / (1 + (-y).exp())


def home_self(linear, x, outputs):
    if len(outputs) == 1:
        return outputs[0] / (1 + (-(x @ linear.weight.T)).exp())
    return softmax_mix(x @ linear.weight.T, outputs)


def home(trunk, x, task):
    def outputs(part, rows):
        return [home_expert(part, e, rows) for e in range(len(part.weight))]

    shared = outputs(trunk.shared_first, x)
    first = {name: outputs(trunk.categories[key(name)]["first"], x) for name in trunk._names}
    every = shared + [h for name in trunk._names for h in first[name]]
    z_shared = softmax_mix(x @ trunk.shared_gate.weight.T, every)
    category = trunk.categories[key(trunk._category[task])]
    mine = first[trunk._category[task]]
    z = softmax_mix(x @ category["gate"].weight.T, shared + mine)
    z = z + home_self(category["self_gate"], x, mine)
    own = outputs(trunk.own[key(task)]["experts"], z)
    closer = outputs(trunk.shared_second, z_shared) + outputs(category["second"], z) + own
    given = softmax_mix(z @ trunk.own[key(task)]["gate"].weight.T, closer)
    return given + home_self(trunk.own[key(task)]["self_gate"], z, own)


def feed_forward(experts, e, x):
    """One expert of a stack: linear, ReLU, linear."""
    (w1, w2), (b1, b2) = experts.weights, experts.biases
    return torch.relu(x @ w1[e] + b1[e]) @ w2[e] + b2[e]


def sparse_layer(experts, logits_RE, x, k):
    """Row by row: x + sum of p_e * f_e(x) over the k largest p, p = softmax(logits)."""
    given = []
    for r in range(len(x)):
        p = logits_RE[r].exp() / logits_RE[r].exp().sum()
        chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[:k]
        given.append(x[r] + sum(p[e] * feed_forward(experts, e, x[r]) for e in chosen))
    return torch.stack(given)


def sparse_moe(trunk, x, task):
    for experts, router in zip(trunk.experts, trunk.routers, strict=True):
        (gate,) = router.gate.linears.values()
        x = sparse_layer(experts, x @ gate.weight.T, x, len(trunk.choices_K))
    return x


def task_gating(trunk, x, task):
    for layer, experts in enumerate(trunk.experts):
        if hasattr(trunk, "assigned"):
            x = x + feed_forward(experts, trunk.assigned[task], x)
            continue
        router = trunk.routers[layer]
        if hasattr(router, "embeddings"):
            v = router.embeddings[key(task)].expand(len(x), -1)
            logits = torch.cat([x, v], 1) @ router.linear.weight.T
        else:
            logits = x @ router.gating.linears[key(task)].weight.T
        x = sparse_layer(experts, logits, x, len(trunk.choices_K))
    return x


def skillnet(trunk, x, task):
    for layer in range(trunk.layers):
        skills = ["generic", *trunk.listed[task]]
        given = [feed_forward(trunk.skills[key(s)][layer], 0, x) for s in skills]
        x = x + sum(given) / len(skills)
    return x


def learning_to_branch(trunk, x, task):
    """The likeliest path, from the task down and back up."""
    path, node = [], task
    for alpha in reversed(trunk.alpha):
        node = trunk.tasks[int(alpha[key(node)].argmax())]
        path.insert(0, node)
    for layer, node in enumerate(path):
        network = trunk.networks[key(node)]
        x = torch.relu(x @ network.weights[layer][0] + network.biases[layer][0])
    return x


LOOPS = {
    "stem": stem,
    "apem": apem,
    "dtrn": dtrn,
    "learning-to-branch": learning_to_branch,
    "skillnet": skillnet,
    "task-gating": task_gating,
    "sparse-moe": sparse_moe,
    "home": home,
    "mmoe": mmoe,
    "mmoeex": mmoeex,
    "cgc": cgc,
    "ple": ple,
    "dselect-k": dselect_k,
    "cross-stitch": cross_stitch,
    "sluice": sluice,
    "aitm": aitm,
}


def unsettled(model):
    """Move every parameter: what starts at 0 or even must not hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_every_architecture_has_its_loop():
    assert set(LOOPS) == {recipe.partition(":")[0] for recipe in RECIPES}


@pytest.mark.parametrize("asked", [("t0", "t1", "t2", "t3"), ("t2",), ("t3", "t1")])
def test_outputs_and_gradients_are_those_of_the_loop(recipe, asked):
    model, inputs = unsettled(make(recipe, 4)), rows(5)
    loop = LOOPS[recipe.partition(":")[0]]
    parameters = list(model.parameters())
    ours = model(inputs, tasks=asked)
    x = model.encoder(inputs)
    plain = {t: model.head(t)(loop(model.trunk, x, t)) for t in asked}
    for t in asked:
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(
            sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values())),
            parameters,
            materialize_grads=True,
        )
        for outputs in (ours, plain)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert any(g.any() for g in gradients[0])


def test_in_single_precision_too(recipe):
    model, inputs = unsettled(make(recipe, 3)).float(), rows(5).float()
    loop = LOOPS[recipe.partition(":")[0]]
    x = model.encoder(inputs)
    for t, output in model(inputs).items():
        plain = model.head(t)(loop(model.trunk, x, t).float())
        torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", [("t0", "t1", "t2", "t3"), ("t2",), ("t3", "t1"), ("t0", "t2")])
def test_home_with_several_categories_is_its_loop(asked):
    from polytask.share import HoME

    from .conftest import Encoder

    torch.manual_seed(0)
    categories = {"watch": ["t3", "t0"], "like": ["t2"], "share": ["t1"]}
    model = HoME.build(Encoder(), 6, binary(4), categories, per_category=2, own=2).double()
    model, inputs = unsettled(model), rows(5)
    x, parameters = model.encoder(inputs), list(model.parameters())
    ours = model(inputs, tasks=asked)
    plain = {t: model.head(t)(home(model.trunk, x, t)) for t in asked}
    assert tuple(ours) == asked
    gradients = [
        torch.autograd.grad(
            sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values())),
            parameters,
            materialize_grads=True,
        )
        for outputs in (ours, plain)
    ]
    for t in asked:
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-10, atol=1e-10)
        assert torch.equal(model.extract(t)(inputs), model(inputs, tasks=[t])[t])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("asked", [("t0", "t1", "t2"), ("t2", "t0")])
def test_dtrn_with_several_sequences_is_its_loop(asked):
    torch.manual_seed(0)
    encoder = FieldEncoder()
    sequences = [[0, 1], [4, 2, 3], [3]]
    model = DTRN.build(encoder, encoder.width, binary(3), sequences, reduction=1).double()
    model, inputs = unsettled(model), rows(5)
    x, parameters = model.encoder(inputs), list(model.parameters())
    ours = model(inputs, tasks=asked)
    plain = {t: model.head(t)(dtrn(model.trunk, x, t)) for t in asked}
    for t in asked:
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-10, atol=1e-10)
        assert torch.equal(model.extract(t)(inputs), model(inputs, tasks=[t])[t])
    gradients = [
        torch.autograd.grad(
            sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values())),
            parameters,
            materialize_grads=True,
        )
        for outputs in (ours, plain)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_stem_takes_what_other_tasks_know_and_teaches_them_nothing():
    """An output depends on the other task's table, which does not learn from it."""
    model, inputs = make("stem:own=2", 3), rows()
    tables, before = model.trunk.tables, model(inputs)
    for weight in (tables["task_t1"].weight, model.trunk._level(0).own["task_t1"].weights[0]):
        (gradient,) = torch.autograd.grad(model(inputs)["t0"].sum(), weight, allow_unused=True)
        assert gradient is None or not gradient.any()
        (gradient,) = torch.autograd.grad(model(inputs)["t1"].sum(), weight)
        assert gradient.any()
    with torch.no_grad():
        tables["task_t1"].weight.add_(0.5)
    assert not torch.allclose(model(inputs)["t0"], before["t0"])
    # what was added later is looked at by nobody else
    model.add_task(Task("new", Binary()))
    outputs = model(inputs, tasks=["t0", "t2"])
    with torch.no_grad():
        tables["task_new"].weight.add_(0.5)
    again = model(inputs, tasks=["t0", "t2"])
    assert all(torch.equal(outputs[t], again[t]) for t in outputs)


def test_the_shared_gate_of_stem_stops_nothing():
    """With two levels a task's output teaches the other's table, by way of the shared part."""
    model, inputs = make("stem:levels=2", 2), rows()
    weight = model.trunk.tables["task_t1"].weight
    (gradient,) = torch.autograd.grad(model(inputs)["t0"].sum(), weight)
    assert gradient.any()
    assert any(p is weight for p in model.shared_parameters())


def test_home_refuses_categories_that_do_not_fit():
    from polytask.errors import UsageError
    from polytask.share import HoME

    with pytest.raises(UsageError, match="every category needs a task; the category 'b' has none"):
        HoME({"a": ["x"], "b": []}, 6)
    with pytest.raises(UsageError, match="x is in two categories"):
        HoME({"a": ["x"], "b": ["x"]}, 6)
    with pytest.raises(UsageError, match=r"Unknown category 'like'. Did you mean 'likes'"):
        HoME({"likes": ["x"]}, 6).add_task("y", "like")


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.startswith("dselect-k")])
def test_the_penalty_of_dselect_k_is_its_selectors_entropy_and_what_leaves_the_codes(recipe):
    model, inputs = unsettled(make(recipe, 3)), rows(5)
    trace = Trace()
    model(inputs, tasks=("t2", "t0"), trace=trace)
    assert list(trace.penalties) == ["t2", "t0"]
    trunk, x = model.trunk, model.encoder(inputs)
    for task, penalty in trace.penalties.items():
        chosen = selectors(trunk, x, task)
        entropy = sum(-r * (r + 1e-6).log() for row in chosen for j in row for r in j) / len(x)
        expected = trunk.entropy * entropy
        if math.log2(trunk.experts.number) % 1:
            expected = expected + sum(1 / sum(j) for row in chosen for j in row) / len(x)
        torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=1e-12)
        assert penalty > 0


def test_the_penalty_of_sluice_is_the_overlap_of_subspaces():
    model, trace = unsettled(make("sluice:orthogonality=0.5", 3)), Trace()
    model(rows(), tasks=("t1",), trace=trace)
    network = model.trunk.networks["task_t1"]
    overlap = sum((w[0][:, :32].T @ w[0][:, 32:]).norm() ** 2 for w in network.weights)
    torch.testing.assert_close(trace.penalties["t1"], 0.5 * overlap)
    assert list(trace.penalties) == ["t1"]


def test_sluice_begins_as_its_source_does():
    """Every subspace takes from all alike; 0.9 of the last layer, 0.1 of the others together."""
    trunk = make("sluice:layers=3", 2).trunk
    for exchange in trunk.exchanges:
        for task in ("t0", "t1"):
            torch.testing.assert_close(exchange[key(task)], torch.full((2, 2, 2), 0.25).double())
    torch.testing.assert_close(trunk.mixtures[key("t0")], torch.tensor([0.05, 0.05, 0.9]).double())
    own = make("sluice:own=0.7", 2).trunk.exchanges[0][key("t1")]
    torch.testing.assert_close(own[1], torch.tensor([[0.7, 0.1], [0.1, 0.7]]).double())
    torch.testing.assert_close(own[0], torch.full((2, 2), 0.1).double())


def test_the_penalty_of_aitm_is_what_a_step_exceeds_the_one_before():
    model, inputs = unsettled(make("aitm", 3)), rows()
    trace = Trace()
    p = {t: o.sigmoid().flatten().tolist() for t, o in model(inputs, trace=trace).items()}
    expected = {
        after: 0.6 * sum(max(0.0, b - a) for a, b in zip(p[before], p[after], strict=True)) / 9
        for before, after in (("t0", "t1"), ("t1", "t2"))
    }
    assert {t: v.item() for t, v in trace.penalties.items()} == pytest.approx(expected)
    trace = Trace()
    model(inputs, tasks=("t0", "t2"), trace=trace)
    assert trace.penalties == {}


def test_models_without_penalties_say_so():
    assert not make("mmoe").penalises
    assert not make("dselect-k:entropy=0").penalises
    assert make("dselect-k:entropy=0,experts=3").penalises  # no power of 2
    assert make("sluice").penalises
    assert not make("aitm:calibrate=0").penalises


@pytest.mark.parametrize("kind", ["exclusivity", "exclusion"])
def test_a_closed_expert_weighs_exactly_0_and_gets_exactly_no_gradient(kind):
    model = make(f"mmoeex:experts=9,restricted=0.9,kind={kind}", 4)
    # Logits of any size must not open it.
    with torch.no_grad():
        for linear in model.trunk.gating.linears.values():
            linear.weight.mul_(1000)
    trace, inputs = Trace(), rows()
    outputs = model(inputs, trace=trace)
    (gate,) = trace.gates
    for a, task in enumerate(gate.readers):
        closed_E = model.trunk.gating.linears[key(task)].closed_E
        assert closed_E.any()
        assert not gate.weights_RGE[:, a, closed_E].any()
        assert gate.weights_RGE[:, a].sum(1).allclose(torch.ones(9).double())
        linear = model.trunk.gating.linears[key(task)]
        (gradient,) = torch.autograd.grad(outputs[task].sum(), linear.weight, retain_graph=True)
        assert not gradient[closed_E].any()
        assert not gradient.isnan().any()


def test_exclusive_experts_of_other_tasks_do_not_run():
    model = make("mmoeex:experts=9,restricted=0.9", 4)
    for task in model.tasks:
        stacked = model.trunk.stack([task])
        own = model.trunk.own[key(task)].number if key(task) in model.trunk.own else 0
        assert len(stacked["experts_0_weight"]) == model.trunk.shared.number + own


def test_settled_selectors_choose_exactly_one_expert_each():
    model = make("dselect-k:experts=6,k=2", 2)
    with torch.no_grad():
        steps = model.trunk.gating["task_t1"].steps
        steps.copy_(torch.tensor([[0.9, -0.5, 0.51], [-2.0, 0.5, -0.6]]))  # 1 + 4 and 2
    trace = Trace()
    model(rows(), trace=trace)
    used_RE = trace.gates[0].weights_RGE[:, 1]
    assert (used_RE[:, [0, 1, 3, 4]] == 0).all()
    torch.testing.assert_close(used_RE.sum(1), torch.ones(9).double())
    part = model.trunk.gating["task_t1"].mixture.softmax(0)
    torch.testing.assert_close(used_RE[0, [5, 2]], part)


def test_dselect_k_reaches_a_choice_by_descent():
    """Only expert 2 has the answer: the gate settles on it, exactly."""
    torch.manual_seed(0)
    model = make("dselect-k:experts=4,k=1,entropy=0.05", 1)
    trunk = model.trunk
    with torch.no_grad():
        for e in range(4):
            trunk.experts.weights[0][e].fill_(0)
            trunk.experts.biases[0][e].fill_(1.0 if e == 2 else 0.0)
    steps = trunk.gating["task_t0"].steps
    optimiser = torch.optim.Adam([steps], lr=0.02)
    x = rows(4) @ torch.zeros(5, 6).double()
    for _ in range(300):
        seen = {}
        given = trunk.mix(trunk.stack(["t0"]), x, seen).rows()[0]
        loss = (given - 1).square().mean() + trunk.penalties(["t0"], seen, {})["t0"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    trace_RE = seen["weights_RAE"][0, 0]
    assert trace_RE.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_nothing_shared_nothing_changed():
    """A task's own experts and gate get the same gradient, whether others have labels or not."""
    model, inputs = make("cgc:own=2", 3), rows()
    own = model.task_parameters("t1")
    outputs = model(inputs)
    alone = torch.autograd.grad(outputs["t1"].square().sum(), own, retain_graph=True)
    among = torch.autograd.grad(sum(o.square().sum() for o in outputs.values()), own)
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))


def test_heads_that_are_alike_run_as_one_and_others_as_themselves():
    torch.manual_seed(0)

    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    heads = {
        "a": nn.Linear(4, 1),
        "b": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        "c": nn.Linear(4, 1),
        "d": Doubled(4, 1),
        "e": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        "f": nn.Linear(4, 1, bias=False),
        "g": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        "h": nn.Linear(4, 1),
        "i": nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)),
    }
    heads["h"].register_forward_hook(lambda module, args, output: output + 1)
    trunk = MMoE(Experts(2, 6, (4,)), Gates(tuple(heads), 6, 2))
    model = TrunkModel(nn.Linear(5, 6), trunk, heads)
    inputs = torch.randn(7, 5)
    features_ARW = trunk(model.encoder(inputs))
    for (task, output), head, given in zip(
        model(inputs).items(), heads.values(), features_ARW, strict=True
    ):
        torch.testing.assert_close(output, head(given))
        torch.testing.assert_close(model(inputs, tasks=[task])[task], head(given))


def test_a_task_asked_alone_sees_what_was_changed_hooked_and_replaced():
    """Its pass looks parameters and modules up by a short way, and keeps none of them."""
    trunk = MMoE(Experts(2, 6, (4,)), Gates(("a", "b"), 6, 2))
    model = TrunkModel(nn.Linear(5, 6), trunk, {t: nn.Linear(4, 1) for t in "ab"}).eval()
    inputs, called = torch.randn(7, 5), []

    def agrees():
        with torch.no_grad():
            alone = model(inputs, tasks=["a"])["a"]
            wanted = model.head("a")(trunk(model.encoder(inputs), ["a"])[0])
        torch.testing.assert_close(alone, wanted)
        return alone

    seen = [agrees()]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    seen.append(agrees())
    for p in model.parameters():
        p.data = p.data * 1.1  # where it lies, too
    seen.append(agrees())
    trunk.gating.linears[key("a")].weight = nn.Parameter(torch.randn(2, 6))
    seen.append(agrees())
    nn.utils.parametrizations.weight_norm(model.head("a"))
    model.head("a").parametrizations.weight.original0.data.mul_(2)
    seen.append(agrees())
    model.heads[key("a")] = nn.Linear(4, 1)
    model.encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    seen.append(agrees())
    model.head("a").register_forward_hook(lambda module, args, output: output + 1)
    model.encoder.register_forward_hook(lambda *_: called.append(1))
    seen.append(agrees())
    assert called == [1, 1]
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))
