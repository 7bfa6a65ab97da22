"""All losses' gradients at a cut from one pass through linear heads, against a pass per loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polytask.balance import MGDA, Balancer, FeatureLevel, GradDrop
from polytask.balance.at_cut import ByHeads, Formed, at_cut
from polytask.balance.graph import read
from polytask.errors import UsageError
from polytask.share import HardSharing

TASKS, ROWS, WIDTH = 4, 24, 16


def encoder(dtype=torch.float64) -> nn.Module:
    layers = (nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, WIDTH), nn.Tanh())
    return nn.Sequential(*layers).to(dtype)


def squares(outputs) -> list[torch.Tensor]:
    """Return unlike losses of outputs in which every number matters."""
    return [(out - 0.3 * k).square().mean() * 10.0**k for k, out in enumerate(outputs)]


def linear(outs: int, bias=True) -> nn.Linear:
    return nn.Linear(WIDTH, outs, bias).double()


def one_by_one(features):
    return squares(linear(1 + k)(features) for k in range(TASKS))


def stacked(features):
    heads = {f"task {k}": linear(1 + k) for k in range(TASKS)}
    return squares(HardSharing(nn.Identity(), heads)(features).values())


def without_bias(features):
    heads = {f"task {k}": linear(2, bias=False) for k in range(TASKS)}
    return squares(HardSharing(nn.Identity(), heads)(features).values())


def parts_of_sequences(features):
    """Eight rows of three tokens."""
    return squares(linear(7)(features.view(8, 3, WIDTH)).split([1, 3, 2, 1], -1))


def columns(features):
    return squares(linear(TASKS)(features)[:, k] for k in (2, 0, -1, 1))


def unbound(features):
    return squares(linear(TASKS)(features).unbind(-1))


def halves(features):
    return squares(linear(2 * TASKS)(features).chunk(TASKS, dim=1))


def slices(features):
    """The fourth number is nobody's, the losses' outputs are not side by side."""
    out = linear(9)(features)
    two = torch.cat([out[:, 2:3], out[:, 4:5]], 1)
    return squares([out[:, 7:], out[:, :2], out[..., 5:7], two])


def two_heads_each(features):
    heads = [linear(2) for _ in range(2 * TASKS)]
    return squares(heads[k](features) * heads[-1 - k](features) for k in range(TASKS))


ALL_READ = (one_by_one, stacked, without_bias, columns, unbound, halves, two_heads_each)
KNOWN = [*ALL_READ, parts_of_sequences]


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(3)
    return encoder()(torch.randn(ROWS, 5, dtype=torch.float64))


def at_features(features, losses, kind):
    """Return the losses' gradients there by the engine and by a pass per loss."""
    found = at_cut(features.grad_fn, read(losses, []).order, losses)
    assert type(found) is kind
    rows_KX = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses]
    return found, torch.stack([row.flatten() for row in rows_KX])


@pytest.mark.parametrize("heads", KNOWN)
def test_everything_asked_of_the_gradients_is_that_of_a_pass_per_loss(features, heads):
    losses = heads(features)
    if heads is parts_of_sequences:  # the layer reads a view of them
        features = next(f for f in read(losses, []).order if f.name() == "AddmmBackward0")
        features = features.next_functions[1][0]
        found = at_cut(features, read(losses, []).order, losses)
        rows_KX = Formed(features, losses).rows()
        assert type(found) is ByHeads
    else:
        found, rows_KX = at_features(features, losses, ByHeads)
    expected_KK = rows_KX @ rows_KX.T
    assert torch.equal(found.gram(), found.gram().T)
    norms_K = expected_KK.diagonal().sqrt()
    error_KK = (found.gram() - expected_KK).abs() / (norms_K[:, None] * norms_K)
    assert float(error_KK.max()) < 1e-12
    torch.testing.assert_close(found.rows(), rows_KX, rtol=1e-12, atol=1e-14)
    weights_K = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
    torch.testing.assert_close(found.weighted(weights_K).flatten(), weights_K @ rows_KX)
    torch.testing.assert_close(found.only().flatten(), rows_KX.sum(0))
    where_KN = torch.rand(TASKS, ROWS) < 0.4
    chosen_KX = rows_KX * where_KN.repeat_interleave(WIDTH, dim=1)
    torch.testing.assert_close(found.only(where_KN).flatten(), chosen_KX.sum(0))
    assert bool(found.there().all())


def test_numbers_that_no_loss_reads_are_left_out(features):
    found, rows_KX = at_features(features, slices(features), ByHeads)
    torch.testing.assert_close(found.rows(), rows_KX, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.gram(), rows_KX @ rows_KX.T, rtol=1e-12, atol=1e-14)


def test_rows_without_a_label_have_no_gradient(features):
    labelled_KN = torch.arange(ROWS) % TASKS == torch.arange(TASKS)[:, None]
    losses = [
        out[rows].square().sum()
        for out, rows in zip(linear(TASKS)(features).unbind(1), labelled_KN, strict=True)
    ]
    found, rows_KX = at_features(features, losses, ByHeads)
    assert torch.equal(found.there(), labelled_KN)
    torch.testing.assert_close(found.only(labelled_KN).flatten(), rows_KX.sum(0))


def read_by_two_losses(features):
    out = linear(TASKS)(features)
    return squares([out[:, 0], out[:, 0] * out[:, 1], out[:, 2], out[:, 3]])


def one_tensor_of_losses(features):
    return list((linear(TASKS)(features) - 1).square().mean(0).unbind())


def along_the_rows(features):
    """Each loss has rows of its own, not numbers."""
    return squares(linear(2)(features).split(ROWS // TASKS, dim=0))


def a_reader_that_is_no_layer(features):
    return [*one_by_one(features)[:-1], features.square().mean()]


def a_head_in_between(features):
    return squares(linear(1)(features.relu()) for _ in range(TASKS))


@pytest.mark.parametrize(
    "heads",
    [
        read_by_two_losses,
        one_tensor_of_losses,
        along_the_rows,
        a_reader_that_is_no_layer,
        a_head_in_between,
    ],
)
def test_other_heads_take_a_pass_per_loss(features, heads):
    losses = heads(features)
    found, rows_KX = at_features(features, losses, Formed)
    torch.testing.assert_close(found.rows(), rows_KX)
    torch.testing.assert_close(found.gram(), rows_KX @ rows_KX.T)
    weights_K = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
    torch.testing.assert_close(found.weighted(weights_K).flatten(), weights_K @ rows_KX)
    where_KN = torch.rand(TASKS, ROWS) < 0.4
    chosen_KX = rows_KX * where_KN.repeat_interleave(WIDTH, dim=1)
    torch.testing.assert_close(found.only(where_KN).flatten(), chosen_KX.sum(0))


def test_outputs_that_cancel_do_not_cost_the_digits(features):
    """A softmax's output gradients sum to 0 in each row; its classes' weights are nearly alike."""
    heads = [linear(3) for _ in range(TASKS)]
    for head in heads:
        head.weight.data.mul_(1e-3).add_(1000 * torch.randn(WIDTH, dtype=torch.float64))
    small = features / 1000
    losses = [
        F.cross_entropy(head(small), (torch.arange(ROWS) + k) % 3) for k, head in enumerate(heads)
    ]
    found, rows_KX = at_features(small, losses, ByHeads)
    torch.testing.assert_close(found.gram(), rows_KX @ rows_KX.T, rtol=1e-7, atol=0)


def model_of(tasks, body):
    heads = {f"task {k}": nn.Linear(WIDTH, 1 + k % 2).double() for k in range(tasks)}
    return HardSharing(body, heads)


@pytest.mark.parametrize("labels", ["of one task", "of two tasks", "of all"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "batch norm"])
def test_the_exact_update_of_a_shared_model(labels, norm, monkeypatch):
    """Rows packed where they stay apart; batch norm mixes them. Heads get their own gradient."""
    torch.manual_seed(1)
    body = encoder()
    if norm:
        body.insert(1, nn.BatchNorm1d(9).double())
    model = model_of(6, body)
    few = {"of one task": 1, "of two tasks": 2, "of all": 6}[labels]
    monkeypatch.setattr("polytask.balance.looks.SMALL", 0)  # looks at every step
    balancer = Balancer(MGDA(), model.shared_parameters(), model.tasks)
    for _ in range(3):
        x, losses = torch.randn(ROWS, 5, dtype=torch.float64), []
        for k, out in enumerate(model(x).values()):
            rows = [b for b in range(ROWS) if (b - k) % 6 < few]
            losses.append((out[rows] - k).square().mean())
        shared = model.shared_parameters()
        grads = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        rows_KP = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        own = torch.autograd.grad(sum(losses), list(model.heads.parameters()), retain_graph=True)
        model.zero_grad()
        weights = balancer.backward(losses)
        update_P = torch.cat([p.grad.flatten() for p in shared])
        expected_P = weights.weights_K @ rows_KP
        torch.testing.assert_close(update_P, expected_P, rtol=1e-9, atol=1e-12)
        gram_KK = balancer._said.gram_KK
        torch.testing.assert_close(gram_KK, rows_KP @ rows_KP.T, rtol=1e-10, atol=1e-12)
        for parameter, grad in zip(model.heads.parameters(), own, strict=True):
            torch.testing.assert_close(parameter.grad, grad)
        assert ("label-sparse" in balancer.engine) == (few < 6 and not norm)


def passes_of(model, method, losses, monkeypatch) -> int:
    """Return how many backward passes of autograd an update takes."""
    run, calls = torch.autograd.graph.Variable._execution_engine.run_backward, []

    class Counting:
        def run_backward(self, *args, **kwargs):
            calls.append(1)
            return run(*args, **kwargs)

    monkeypatch.setattr(torch.autograd.graph.Variable, "_execution_engine", Counting())
    Balancer(method, model.shared_parameters(), model.tasks).backward(losses)
    return len(calls)


@pytest.mark.parametrize("method", [FeatureLevel(MGDA()), FeatureLevel(GradDrop())], ids=repr)
def test_feature_level_passes_the_heads_as_often_with_two_tasks_as_with_forty(method, monkeypatch):
    counts = []
    for tasks in (2, 40):
        torch.manual_seed(1)
        model = model_of(tasks, encoder())
        x = torch.randn(ROWS, 5, dtype=torch.float64)
        losses = [out.square().mean() for out in model(x).values()]
        counts.append(passes_of(model, method, losses, monkeypatch))
    assert counts == [3, 3]  # to the heads, to their own parameters, through the encoder


def test_a_hook_that_changes_the_features_gradient_is_refused_at_feature_level():
    """It would be passed twice where the gradients are formed there; one that only looks is not."""
    body = encoder()
    for hook, refused in ((lambda d: d / 2, True), (lambda d: None, False)):
        features = body(torch.randn(ROWS, 5).double())
        features.register_hook(hook)
        losses = [(linear(1)(features.exp()) - k).square().mean() for k in range(TASKS)]
        balancer = Balancer(FeatureLevel(MGDA()), body.parameters())
        if refused:
            with pytest.raises(UsageError, match="hook on the features"):
                balancer.backward(losses)
        else:
            balancer.backward(losses)
            assert all(p.grad is not None for p in body.parameters())


def test_losses_from_elsewhere_than_the_graph_read_are_never_nobodys():
    """Unbinding once more makes other nodes: what reads the heads then is unknown, not nothing."""
    body = encoder()
    together_K = torch.stack(one_by_one(body(torch.randn(ROWS, 5).double())))
    graph = read(together_K.unbind(), list(body.parameters()))
    cut = graph.parts[0].cuts[-1]
    found = at_cut(cut, graph.order, together_K.unbind())
    assert isinstance(found, Formed)
    assert bool((found.gram().diagonal() > 0).all())


def test_feature_level_of_losses_as_one_tensor_is_that_of_losses_one_by_one():
    grams = []
    for as_one in (True, False):
        torch.manual_seed(0)
        body = encoder()
        losses = one_by_one(body(torch.randn(ROWS, 5).double()))
        balancer = Balancer(FeatureLevel(MGDA()), body.parameters(), [f"{k}" for k in range(TASKS)])
        if as_one:
            balancer.backward(torch.stack(losses), tasks=balancer.tasks)
        else:
            balancer.backward(dict(zip(balancer.tasks, losses, strict=True)))
        grams.append(nn.utils.parameters_to_vector([p.grad for p in body.parameters()]))
    assert bool(grams[0].any())
    torch.testing.assert_close(*grams, rtol=1e-10, atol=1e-14)
