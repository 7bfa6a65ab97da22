"""Learning to Branch: draws by a loop, the warm-up, the tree that is found and the plain model."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.share import Branched, Trace, TrunkModel, expert_use
from polytask.tasks import Binary, Task

from .conftest import make, rows


def searching(tasks=3, part=0.5, widths="8/7"):
    model = make(f"learning-to-branch:widths={widths}", tasks).train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.at(part)
    return model


def by_hand(trunk, x, choices):
    """choices: of each layer (readers, nodes), the parts every reader takes."""
    h = dict.fromkeys(trunk.tasks, x)
    for layer, choice in enumerate(choices):
        own = []
        for t in trunk.tasks:
            network = trunk.networks[f"task_{t}"]
            own.append(torch.relu(h[t] @ network.weights[layer][0] + network.biases[layer][0]))
        h = {t: sum(choice[i, j] * own[j] for j in range(len(own))) for i, t in enumerate(h)}
    return h


def alphas(trunk, layer):
    return torch.stack([trunk.alpha[layer][f"task_{t}"] for t in trunk.tasks])


def test_a_pass_draws_one_parent_for_each_node_and_softmaxes_carry_the_gradient():
    model, inputs = searching(), rows(5)
    trunk, temperature = model.trunk, 5 / (1 + 99 * 0.5) ** 0.5
    torch.manual_seed(7)
    ours = model(inputs)
    torch.manual_seed(7)
    choices = []
    for layer in range(2):
        alpha = alphas(trunk, layer)
        noise = -torch.empty_like(alpha).exponential_().log()
        soft = ((alpha + noise) / temperature).softmax(1)
        hard = torch.zeros_like(soft)
        for i in range(3):
            hard[i, int((alpha + noise)[i].argmax())] = 1
        choices.append(hard + soft - soft.detach())
    h = by_hand(trunk, model.encoder(inputs), choices)
    plain = {t: model.head(t)(h[t]) for t in trunk.tasks}
    gradients = []
    for outputs in (ours, plain):
        loss = sum((o + 0.3).square().sum() * (i + 1) for i, o in enumerate(outputs.values()))
        parameters = list(model.parameters())
        gradients.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
    for t in plain:
        torch.testing.assert_close(ours[t], plain[t], rtol=1e-10, atol=1e-12)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    places = {id(p): i for i, p in enumerate(model.parameters())}
    assert all(gradients[0][places[id(p)]].any() for p in trunk.alpha[-1].parameters())


def test_the_warm_up_reads_the_mean_of_all_parents_and_leaves_the_choices_alone():
    model, inputs = searching(part=0.005), rows(5)
    even = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    h = by_hand(model.trunk, model.encoder(inputs), [even, even])
    outputs = model(inputs)
    for t, output in outputs.items():
        torch.testing.assert_close(output, model.head(t)(h[t]), rtol=1e-12, atol=1e-12)
    sum(o.sum() for o in outputs.values()).backward()
    assert all(p.grad is None for p in model.trunk.alpha.parameters())
    model.at(0.01)
    assert not torch.equal(model(inputs)["t0"], outputs["t0"])


def test_it_cools_to_a_tenth_and_must_be_told_how_far_the_training_is():
    model = searching()
    found = []
    for part in (0.0, 0.24, 1.0):
        model.at(part)
        found.append(model.trunk._cooling.temperature)
    assert found == pytest.approx([5.0, 5 / (1 + 99 * 0.24) ** 0.5, 0.5])
    fresh = make("learning-to-branch").train()
    with pytest.raises(UsageError, match=r"call model.at\(step / steps\) before every update"):
        fresh(rows())
    fresh.eval()(rows())


def test_draws_follow_the_probabilities():
    model = searching(2, part=1.0, widths="4")
    counts, trunk = torch.zeros(2, 2, dtype=torch.float64), model.trunk
    torch.manual_seed(0)
    for _ in range(2000):
        counts += trunk.stack(["t0", "t1"])["choice_0"].detach()
    torch.testing.assert_close(counts / 2000, alphas(trunk, 0).softmax(1), atol=0.04, rtol=0)


def test_the_plain_model_computes_the_tree_that_was_found_and_nothing_else():
    model, inputs = searching(4), rows()
    with torch.no_grad():  # t0 and t1 part on the last layer, t2 and t3 never
        for layer, parents in enumerate(((0, 0, 2, 2), (0, 1, 2, 2))):
            for t, parent in enumerate(parents):
                model.trunk.alpha[layer][f"task_t{t}"][parent] = 9.0
    assert model.trunk.paths() == {
        "t0": ("t0", "t0"), "t1": ("t0", "t1"), "t2": ("t2", "t2"), "t3": ("t2", "t2")
    }  # fmt: skip
    plain = TrunkModel(
        model.encoder, model.trunk.branched(), {t: model.head(t) for t in model.tasks}
    )
    model.eval()
    for one in (inputs, rows(40)):
        assert all(torch.equal(model(one)[t], o) for t, o in plain(one).items())
    assert plain.trunk.paths() == model.trunk.paths()
    assert sum(p.numel() for p in plain.trunk.parameters()) == 2 * (6 * 8 + 8) + 3 * (8 * 7 + 7)
    shared = {id(p) for p in plain.trunk.shared_parameters()}
    for t in model.tasks:
        reached = torch.autograd.grad(
            plain(inputs)[t].sum(), list(plain.trunk.parameters()), allow_unused=True
        )
        mine = {id(p) for p in plain.trunk.task_parameters(t)}
        for p, g in zip(plain.trunk.parameters(), reached, strict=True):
            used = g is not None and bool(g.any())
            assert not (id(p) in mine and not used)
            assert used <= (id(p) in mine | shared)
    assert [len(plain.trunk.task_parameters(t)) for t in model.tasks] == [2, 2, 0, 0]
    assert torch.equal(plain.extract("t1")(inputs), plain(inputs, tasks=["t1"])["t1"])
    before = plain(inputs)
    plain.add_task(Task("t0'", Binary()))
    assert all(torch.equal(before[t], o) for t, o in plain(inputs, tasks=tuple(before)).items())
    assert len(plain.trunk.task_parameters("t0'")) == 4


def test_one_task_runs_its_path_alone():
    model = searching(5).eval()
    stacked = model.trunk.stack(["t3"])
    assert [len(stacked[f"tree_{layer}_weight"]) for layer in range(2)] == [1, 1]


def test_the_use_of_nodes_is_the_path():
    model = searching(4).eval()
    paths = model.trunk.paths()
    for gate in expert_use(model, [rows()]).gates:
        node = paths[gate.reader][gate.level]
        expected = {f"node of {t}": float(t == node) for t in model.tasks}
        assert dict(zip(gate.experts, gate.mean, strict=True)) == expected
    trace = Trace()
    model.train()
    model(rows(), trace=trace)
    assert all(set(g.weights_RGE.unique().tolist()) == {0.0, 1.0} for g in trace.gates)


def test_what_is_no_tree_is_answered():
    with pytest.raises(UsageError, match="on layer 1 the node 'b' has two parents, 'a' and 'b'"):
        Branched({"x": ("a", "b"), "y": ("b", "b")}, 6, (4, 4))
    with pytest.raises(UsageError, match="a path of 2 nodes"):
        Branched({"x": ("a",)}, 6, (4, 4))
    with pytest.raises(UsageError, match=r"temperature is 0\.0; give a number > 0"):
        make("learning-to-branch:temperature=0")
    with pytest.raises(UsageError, match=r"warmup in \[0, 1\]; got 3 tasks and warmup 2.0"):
        make("learning-to-branch:warmup=2")
