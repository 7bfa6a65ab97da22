"""The per-layer Gramian and its update, against autograd's gradient of every task."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polytask.balance import Balancer, Signal, State, Update, looks
from polytask.errors import UsageError


class Fixed:
    """Weights 1, -2, 3, ... that keep the Gramian they saw."""

    needs = "gramian"
    foresees = False
    by_epoch = False

    def start(self, tasks: int) -> State:
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        self.seen_KK = signal.gram_KK
        signs = (-1.0) ** torch.arange(len(signal.index_K))
        return Update(state, signs * (1 + signal.index_K))


# -- models: encoder, a batch, rows first; features (B, F) or (B, L, F) ---------------------------


def mlp() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 16), nn.Tanh()), torch.randn(
        12, 20
    )


class Norms(nn.Module):
    """A CNN with group and layer normalisation, strides, groups, a scale and a position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.GELU(),
            nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.ConvTranspose2d(8, 6, 2), nn.Flatten(), nn.LayerNorm(6 * 16), nn.Linear(6 * 16, 16),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.rand(16))
        self.place = nn.Parameter(torch.rand(1, 16))

    def forward(self, x):
        return self.body(x) * self.scale + self.place


def cnn() -> tuple[nn.Module, torch.Tensor]:
    return Norms(), torch.randn(12, 3, 14, 14)


def batch_norm() -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16)
    return nn.Sequential(*layers), torch.randn(12, 3, 8, 8)


class SmallViT(nn.Module):
    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True)
                for _ in range(2)
            )
        )
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        x = self.norm(self.blocks(x))
        return x if self.tokens else x[:, 0]


def vit() -> tuple[nn.Module, torch.Tensor]:
    return SmallViT(), torch.randn(12, 3, 8, 8)


def vit_tokens() -> tuple[nn.Module, torch.Tensor]:
    return SmallViT(tokens=True), torch.randn(12, 3, 8, 8)


class Tagger(nn.Module):
    def __init__(self, cell=nn.GRU) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 10, padding_idx=0)
        self.cell = cell(10, 8, batch_first=True, bidirectional=True)
        self.top = nn.Linear(16, 16)

    def forward(self, tokens):
        return self.top(self.cell(self.words(tokens))[0])


def gru_tagger() -> tuple[nn.Module, torch.Tensor]:
    return Tagger(), torch.randint(0, 300, (12, 7))


def lstm_tagger() -> tuple[nn.Module, torch.Tensor]:
    return Tagger(nn.LSTM), torch.randint(0, 300, (12, 7))


class Shared(nn.Module):
    """A layer used twice, a weight used by hand and transposed, a table that is also a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.table = nn.Embedding(9, 16)
        self.plain = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, tokens):
        x = self.table(tokens).mean(1)
        x = self.layer(self.layer(x).tanh())
        x = F.linear(x, self.plain) + x @ self.plain
        return x + F.linear(x, self.table.weight) @ self.table.weight


def weight_sharing() -> tuple[nn.Module, torch.Tensor]:
    return Shared(), torch.randint(0, 9, (12, 4))


class Experts(nn.Module):
    """A soft mixture of three experts whose layers are stacked, rows in dim 1: one input for all
    of them, then one for each; a weight as it is, and one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.gate = nn.Linear(20, 48), nn.Linear(48, 3)
        self.first = nn.Parameter(torch.randn(3, 48, 48) / 7)
        self.second = nn.Parameter(torch.randn(3, 16, 48) / 7)
        self.first_bias = nn.Parameter(torch.randn(3, 1, 48))
        self.second_bias = nn.Parameter(torch.randn(3, 16))

    def forward(self, x):
        x = self.trunk(x).tanh()
        flat = x.flatten(0, -2)
        gates = self.gate(flat).softmax(-1).T.unsqueeze(-1)
        h = torch.baddbmm(self.first_bias, flat.expand(3, -1, -1), self.first).tanh()
        h = h @ self.second.mT + self.second_bias[:, None]
        return (gates * h).sum(0).unflatten(0, x.shape[:-1])


def experts() -> tuple[nn.Module, torch.Tensor]:
    return Experts(), torch.randn(12, 20)


def experts_tokens() -> tuple[nn.Module, torch.Tensor]:
    return Experts(), torch.randn(12, 4, 20)


def checkpointed() -> tuple[nn.Module, torch.Tensor]:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, _ = mlp()

        def forward(self, x):
            return checkpoint(self.layers, x, use_reentrant=False)

    return Checkpointed(), torch.randn(12, 20)


MODELS = [
    mlp, cnn, batch_norm, vit, vit_tokens, gru_tagger, lstm_tagger, weight_sharing, checkpointed,
    experts, experts_tokens,
]  # fmt: skip
ROWS_APART = [m for m in MODELS if m not in (batch_norm, lstm_tagger)]


def rows_by_autograd(losses, shared) -> torch.Tensor:
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, grads, strict=True)]
        rows.append(torch.cat([g.flatten() for g in flat]))
    return torch.stack(rows)


def case(build, dtype, tasks, labels):
    """Return losses, shared parameters and heads; task k is labelled where labels(k, row)."""
    torch.manual_seed(0)
    encoder, inputs = build()
    encoder.to(dtype)
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(tasks)).to(dtype)
    features = encoder(inputs.to(dtype) if inputs.is_floating_point() else inputs)
    losses = []
    for k, head in enumerate(heads):
        rows = [b for b in range(len(inputs)) if labels(k, b)]
        losses.append((head(features[rows]) - k).square().mean() * 10.0 ** (k % 3))
    return losses, list(encoder.parameters()), heads


def compare(losses, shared, heads, dtype, tolerance) -> str:
    """Check Gramian and update against autograd's; return what the engine says it did."""
    rows_KP = rows_by_autograd(losses, shared).double()
    own = torch.autograd.grad(sum(losses), list(heads.parameters()), retain_graph=True)
    expected_KK = rows_KP @ rows_KP.T
    method = Fixed()
    balancer = Balancer(method, shared, gramian="auto")
    weights_K = balancer.backward(losses).weights_K.double()
    norms_K = expected_KK.diagonal().sqrt()
    error = (method.seen_KK - expected_KK).abs() / (norms_K[:, None] * norms_K)
    assert method.seen_KK.dtype == torch.float64
    assert torch.equal(method.seen_KK, method.seen_KK.T)
    assert float(error.max()) < tolerance
    update_P = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
    )
    expected_P = weights_K @ rows_KP
    assert float((update_P - expected_P).norm()) < tolerance * float(
        (weights_K.abs() * norms_K).sum()
    )
    for parameter, grad in zip(heads.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=max(tolerance, 1e-6), atol=1e-12)
    return balancer.engine


PRECISION = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["64", "32"]
)


@PRECISION
@pytest.mark.parametrize("build", MODELS)
def test_dense_labels(build, dtype, tolerance):
    said = compare(*case(build, dtype, 3, lambda k, b: True), dtype, tolerance)
    assert said.startswith("exact, per layer: one backward per task present")


@PRECISION
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("build", ROWS_APART)
def test_rows_labelled_for_few_tasks(build, labels, dtype, tolerance):
    def labelled(k, b):
        return (b - k) % 6 < labels

    said = compare(*case(build, dtype, 6, labelled), dtype, tolerance)
    assert f"label-sparse, {labels} backward" in said


@pytest.mark.parametrize("build", [batch_norm, lstm_tagger])
def test_where_rows_are_mixed_or_layers_unknown_every_task_has_its_pass(build):
    """In float32 an LSTM is one node, of a sort the engine does not know."""
    said = compare(*case(build, torch.float32, 6, lambda k, b: b % 6 == k), torch.float32, 1e-4)
    assert "one backward per task present" in said


@pytest.mark.parametrize("labels", [1, 6], ids=["sparse", "dense"])
@pytest.mark.parametrize("build", [experts, experts_tokens])
def test_of_stacked_layers_no_weight_is_unknown(build, labels):
    """Few positions: from inputs and output gradients; many: each task's gradient is formed."""
    losses, shared, heads = case(build, torch.float64, 6, lambda k, b: (b - k) % 6 < labels)
    said = compare(losses, shared, heads, torch.float64, 1e-10)
    assert "does not know" not in said
    assert ("ghost" in said) == (build is experts), said


def test_a_stack_that_ends_the_encoder_does_not_hide_which_rows_are_labelled():
    """The stack's output lies on every way as the features do; its first dimension is no row's."""
    torch.manual_seed(0)
    trunk = nn.Linear(20, 16).double()
    weight = nn.Parameter(torch.randn(3, 16, 16, dtype=torch.float64))
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(6)).double()
    x = trunk(torch.randn(12, 20, dtype=torch.float64))
    features = torch.bmm(x.expand(3, -1, -1), weight).tanh().mean(0)
    losses = [head(features[k::6]).square().mean() for k, head in enumerate(heads)]
    said = compare(losses, [*trunk.parameters(), weight], heads, torch.float64, 1e-10)
    assert "label-sparse, 1 backward" in said


@pytest.mark.parametrize(("small", "by"), [((1, 6), 0), ((4, 1), 1)], ids=["token", "row"])
def test_a_batch_of_one_token_or_one_row_does_not_settle_what_is_mixed(small, by, monkeypatch):
    """Tokens, in dim 0, are mixed; rows are not. Steps 1 and 2 are those that always try it."""
    monkeypatch.setattr(looks, "SMALL", 0)  # looks at every step
    torch.manual_seed(0)
    first, last = nn.Linear(5, 8).double(), nn.Linear(8, 4).double()
    shared, method = [*first.parameters(), *last.parameters()], Fixed()
    balancer = Balancer(method, shared, ["a", "b"])
    for tokens, rows in (small, small, (4, 6), small, (4, 6)):
        x = first(torch.randn(tokens, rows, 5, dtype=torch.float64)).tanh()
        features = last(x + x.mean(0)).movedim(by, 0)
        losses = [features[0::2].square().sum(), features[1::2].exp().sum()]
        rows_KP = rows_by_autograd(losses, shared)
        balancer.backward(losses)
        torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-10, atol=1e-10)
    assert ("label-sparse" in balancer.engine) == (by == 1)


def test_rows_of_several_tasks_are_packed_together():
    """One row of six tasks, the others of one: six streams would save nothing."""
    said = compare(
        *case(mlp, torch.float64, 6, lambda k, b: b == 0 or b % 6 == k), torch.float64, 1e-10
    )
    assert "one backward per task present" in said


def test_a_mixing_layer_that_begins_at_zero_is_found_when_it_grows():
    """Rows are mixed by a gate that is 0 at first, so that the first trial sees nothing."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(20, 16), nn.Linear(16, 16)
            self.gate = 0.0

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.gate * x.mean(0, keepdim=True))

    torch.manual_seed(0)
    encoder, x = Gated().double(), torch.randn(12, 20, dtype=torch.float64)
    method = Fixed()
    balancer = Balancer(method, encoder.parameters(), gramian="auto")
    for step in range(4):
        encoder.gate = 0.5 if step else 0.0
        features = encoder(x)
        losses = [features[:6].square().sum(), features[6:].sum()]
        rows_KP = rows_by_autograd(losses, list(encoder.parameters()))
        balancer.backward(losses)
        assert ("label-sparse" in balancer.engine) == (step == 0)
        torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-10, atol=1e-10)


def test_rows_that_cancel_do_not_cost_the_digits():
    """A task's rows cancel to a thousandth, its squared gradient to a millionth."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(256, 256, bias=False))
    x = torch.randn(16, 256)
    features = encoder(torch.cat([x, x]))
    signs = torch.cat([torch.ones(16), -torch.ones(16) * (1 - 1e-3)])[:, None]
    losses = [(features * signs).sum(), features.square().mean()]
    shared = list(encoder.parameters())
    rows_KP = rows_by_autograd(losses, shared).double()
    method = Fixed()
    balancer = Balancer(method, shared, gramian="auto")
    balancer.backward(losses)
    assert "ghost 1" in balancer.engine
    torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=3e-3, atol=0)


@pytest.mark.parametrize("labels", [1, 6], ids=["sparse", "dense"])
def test_under_autocast(labels):
    """bf16 has 8 bits; the products are formed in float32 from what the layers kept."""
    torch.manual_seed(0)
    encoder, heads = nn.Sequential(*mlp()[0], nn.Linear(16, 16)), nn.Linear(16, 6)
    x = torch.randn(12, 20)
    mask = (torch.arange(12)[:, None] - torch.arange(6)) % 6 < labels
    with torch.autocast("cpu", torch.bfloat16):
        outputs = heads(encoder(x))
    losses = list((outputs.float().square() * mask).sum(0))
    said = compare(losses, list(encoder.parameters()), heads, torch.float32, 0.02)
    assert ("label-sparse" in said) == (labels == 1)
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters())


@pytest.mark.parametrize("labels", [1, 6], ids=["sparse", "dense"])
def test_dropout_is_that_of_the_forward_pass(labels):
    def build():
        layers, x = mlp()
        return nn.Sequential(layers[0], nn.Dropout(0.5), *layers[1:], nn.Dropout(0.2)), x

    losses = case(build, torch.float64, 6, lambda k, b: (b - k) % 6 < labels)
    said = compare(*losses, torch.float64, 1e-10)
    assert ("label-sparse" in said) == (labels == 1)


def test_losses_as_one_tensor_from_one_node():
    torch.manual_seed(0)
    encoder, heads = mlp()[0].double(), nn.Linear(16, 6).double()
    x = torch.randn(12, 20, dtype=torch.float64)
    mask = torch.arange(12)[:, None] % 6 == torch.arange(6)
    losses_K = (heads(encoder(x)).square() * mask).sum(0) / 2
    shared = list(encoder.parameters())
    rows_KP = rows_by_autograd(losses_K.unbind(), shared)
    method = Fixed()
    balancer = Balancer(method, shared, gramian="auto")
    balancer.backward(losses_K)
    assert "label-sparse" in balancer.engine
    torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-10, atol=1e-12)


def test_a_task_that_reaches_another_part_of_the_encoder():
    """No node lies on every way, and two tasks share nothing."""
    torch.manual_seed(0)
    left, right = nn.Linear(20, 16).double(), nn.Linear(20, 16).double()
    x = torch.randn(12, 20, dtype=torch.float64)
    one, other = left(x), right(x)
    losses = [one.square().sum(), other.sum(), (one * other).sum()]
    shared = [*left.parameters(), *right.parameters()]
    heads = nn.ModuleList([nn.Linear(1, 1).double()])
    losses = [loss * heads[0](loss.new_ones(1))[0] for loss in losses]
    said = compare(losses, shared, heads, torch.float64, 1e-10)
    assert said.startswith("exact, per layer: one backward per task present")


def test_hooks_on_shared_parameters_are_obeyed():
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        torch.manual_seed(0)
        encoder, x = mlp()
        seen = []
        getattr(encoder[0].weight, register)(lambda given, seen=seen: seen.append(given) and None)
        balancer = Balancer(Fixed(), encoder.parameters(), gramian="auto")
        balancer.backward([encoder(x).sum(), encoder(x).square().sum()])
        assert len(seen) >= 2, register


@pytest.mark.parametrize("few", [False, True], ids=["dense", "few"])
@pytest.mark.parametrize("linear", [True, False], ids=["linear heads", "others"])
def test_a_hook_on_the_features_changes_their_gradient_once(linear, few):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 16)).double()
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(3)).double()
    features = encoder(torch.randn(24, 7, dtype=torch.float64))
    features.register_hook(lambda d: d * torch.linspace(0.5, 2, 16))
    losses = []
    for k, head in enumerate(heads):
        mine = features[k::3] if few else features
        given = head(mine) if linear else head(mine.exp())
        losses.append((given - k).square().mean())
    compare(losses, list(encoder.parameters()), heads, torch.float64, 1e-10)


def test_reentrant_checkpointing_takes_one_backward_per_task(caplog):
    torch.manual_seed(0)
    encoder, x = mlp()
    shared, x = list(encoder.parameters()), x.requires_grad_()
    results = []
    for wrapped in (True, False):
        method = Fixed()
        balancer = Balancer(method, shared, gramian="auto")
        for _ in range(2):
            features = checkpoint(encoder, x, use_reentrant=True) if wrapped else encoder(x)
            with caplog.at_level(logging.WARNING):
                balancer.backward([features.sum(), features.square().sum()])
        results.append((method.seen_KK, balancer.engine))
    (got_KK, said), (expected_KK, _) = results
    torch.testing.assert_close(got_KK, expected_KK, rtol=1e-5, atol=0)
    assert said.startswith("exact: one backward per task present (a Python-written")
    assert sum("hides parameters" in record.message for record in caplog.records) == 1


# -- a forward pass per task, as with one data set per task ---------------------------------------


def separate(build, dtype, streams, fused):
    """Return losses, shared parameters and heads; stream s has its own rows, passed alone.

    streams: the tasks that each stream labels. fused: losses are one tensor on their way, as where
        streams are concatenated, so that by the graph every task reaches every stream.
    """
    torch.manual_seed(0)
    encoder, inputs = build()
    encoder.to(dtype)
    tasks = 1 + max(task for stream in streams for task in stream)
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(tasks)).to(dtype)
    sums, at = [], []
    for s, stream in enumerate(streams):
        torch.manual_seed(s + 1)
        rows = torch.randperm(len(inputs))[: len(inputs) - s % 3]
        features = encoder(inputs[rows].to(dtype) if inputs.is_floating_point() else inputs[rows])
        for task in stream:
            sums.append((heads[task](features) - task).square().mean() * 10.0 ** (task % 3))
            at.append(task)
    if fused:
        together = torch.stack(sums) / torch.arange(1, len(sums) + 1)
        losses = together.new_zeros(tasks).index_add(0, torch.tensor(at), together).unbind()
    else:
        losses = [
            sum(x for x, t in zip(sums, at, strict=True) if t == task) for task in range(tasks)
        ]
    return list(losses), list(encoder.parameters()), heads


EACH_ITS_OWN = [(0,), (1,), (2,), (3,), (4,)]
MIXED = [(0, 1, 2), (3,), (2, 4), (4,)]
"""One stream labels three tasks; task 2 has labels in two streams, task 4 as well."""


@PRECISION
@pytest.mark.parametrize("fused", [False, True], ids=["losses", "one tensor"])
@pytest.mark.parametrize("build", MODELS)
def test_every_task_with_a_forward_pass_of_its_own(build, fused, dtype, tolerance):
    """Also where rows are mixed: a forward pass of one task is that task's altogether."""
    said = compare(*separate(build, dtype, EACH_ITS_OWN, fused), dtype, tolerance)
    assert said.startswith("exact, per layer: separate forwards, 1 backward for all tasks")


@PRECISION
@pytest.mark.parametrize("fused", [False, True], ids=["losses", "one tensor"])
@pytest.mark.parametrize("build", MODELS)
def test_some_tasks_share_a_forward_pass(build, fused, dtype, tolerance):
    said = compare(*separate(build, dtype, MIXED, fused), dtype, tolerance)
    assert said.startswith("exact, per layer: separate forwards, 3 backward for all tasks")


@PRECISION
@pytest.mark.parametrize("build", [mlp, cnn, gru_tagger, weight_sharing, experts_tokens])
def test_packed_rows_beside_a_forward_pass_of_one_task(build, dtype, tolerance):
    """Three kinds of streams in one weight: packed ones, dense ones, and one of a single task."""
    torch.manual_seed(0)
    encoder, inputs = build()
    encoder.to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(7)).to(dtype)
    packed, dense, alone = encoder(inputs), encoder(inputs[:7]), encoder(inputs[4:])
    losses = []
    for k in range(4):
        rows = [b for b in range(12) if (b + k) % 4 < 2]
        losses.append(heads[k](packed[rows]).square().mean())
    losses += [heads[k](dense).square().mean() * k for k in (4, 5)]
    losses[0] = losses[0] + heads[0](dense).mean()
    losses.append(heads[6](alone).exp().mean())
    said = compare(losses, list(encoder.parameters()), heads, dtype, tolerance)
    assert "label-sparse, 3 backward for all tasks" in said


def test_a_forward_pass_that_no_loss_enters_is_left_out():
    """By the graph it is reached, but its part of the losses is multiplied by nothing but zeros."""
    torch.manual_seed(0)
    encoder, x = mlp()
    sums = torch.stack([encoder(x).sum(), encoder(x + 1).square().sum(), encoder(x - 1).sum()])
    head = nn.Linear(1, 1, bias=False)
    losses = (sums[:2] * head.weight[0]).unbind()
    said = compare(losses, list(encoder.parameters()), head, torch.float32, 1e-4)
    assert "separate forwards, 1 backward for all tasks" in said


def test_a_table_is_never_as_large_as_tasks_times_words():
    torch.manual_seed(0)
    table, head = nn.Embedding(5000, 8), nn.Linear(8, 6)
    tokens = torch.randint(0, 5000, (6, 5, 4))
    losses = [head(table(tokens[k]).mean(1))[:, k].square().mean() for k in range(6)]
    shared = list(table.parameters())
    rows_KP = rows_by_autograd(losses, shared).double()
    method = Fixed()
    balancer = Balancer(method, shared)
    weights_K = balancer.backward(losses).weights_K.double()
    assert balancer.held_bytes == 4 * 6 * 5 * 4 * 8
    torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(
        shared[0].grad.flatten().double(), weights_K @ rows_KP, rtol=1e-5, atol=1e-7
    )


# -- micro-batches -------------------------------------------------------------------------------


def micro(build, dtype, labels, parts, gramian):
    """Return the Gramian, all gradients and what the engine says, of one update in parts."""
    torch.manual_seed(0)
    encoder, inputs = build()
    encoder.to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(4)).to(dtype)
    there_BK = torch.tensor([[labels(k, b) for k in range(4)] for b in range(len(inputs))])
    count_K = there_BK.sum(0)
    method = Fixed()
    balancer = Balancer(method, encoder.parameters(), ["a", "b", "c", "d"], gramian=gramian)
    cuts = torch.arange(len(inputs)).tensor_split(parts)
    for m, rows_B in enumerate(cuts):
        features = encoder(inputs[rows_B])
        losses = {}
        for k, name in enumerate("abcd"):
            there_B = there_BK[rows_B, k]
            if there_B.any():
                losses[name] = (heads[k](features[there_B]) - k).square().sum() / count_K[k]
        balancer.backward(losses, accumulate=m + 1 < parts)
    parameters = [*encoder.parameters(), *heads.parameters()]
    return method.seen_KK, [p.grad for p in parameters], balancer.engine


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("labels", [1, 4], ids=["sparse", "dense"])
@pytest.mark.parametrize("build", [m for m in MODELS if m is not batch_norm])
def test_micro_batches_make_the_whole_batch(build, labels, parts):
    """The last has no row of task d, and with sparse labels each lacks some task."""

    def labelled(k, b):
        return (b // 2 + k) % 4 < labels and not (k == 3 and b > 8)

    whole_KK, whole, _ = micro(build, torch.float64, labelled, 1, "rows")
    parted_KK, parted, said = micro(build, torch.float64, labelled, parts, "auto")
    assert ", in micro-batches" in said
    norms_K = whole_KK.diagonal().sqrt()
    assert float(((parted_KK - whole_KK).abs() / (norms_K[:, None] * norms_K)).max()) < 1e-10
    for got, expected in zip(parted, whole, strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            assert float((got - expected).norm()) <= 1e-10 * float(expected.norm()) + 1e-13


def test_micro_batches_hold_whichever_is_less():
    """Inputs and output gradients while they are few, the tasks' gradients from then on."""
    torch.manual_seed(0)
    encoder = nn.Linear(64, 64, bias=False)
    method = Fixed()
    balancer = Balancer(method, encoder.parameters(), ["a", "b"])
    held = []
    x = torch.randn(12, 8, 64)
    for m in range(12):
        features = encoder(x[m])
        balancer.backward([features.sum(), features.square().sum()], accumulate=m < 11)
        held.append(balancer.held_bytes)
    assert held[:3] == [2 * 4 * 8 * 64 * (m + 1) for m in range(3)]
    assert max(held) == 2 * 4 * 64 * 64
    features = encoder(x)
    rows_KP = rows_by_autograd([features.sum(), features.square().sum()], [encoder.weight])
    expected_KK = rows_KP.double() @ rows_KP.double().T
    torch.testing.assert_close(method.seen_KK, expected_KK, rtol=1e-4, atol=0)


def test_a_micro_batch_that_cannot_be_read_turns_those_before_into_rows():
    torch.manual_seed(0)
    encoder, x = mlp()
    x.requires_grad_()
    shared = list(encoder.parameters())
    features = encoder(x)
    rows_KP = rows_by_autograd([features.sum(), features.square().sum()], shared).double()
    method = Fixed()
    balancer = Balancer(method, shared, ["a", "b"])
    for m, part in enumerate(x.split(4)):
        features = checkpoint(encoder, part, use_reentrant=True) if m == 1 else encoder(part)
        balancer.backward([features.sum(), features.square().sum()], accumulate=m < 2)
    assert balancer.engine == "exact: one backward per task present"
    torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-5, atol=0)
    update_P = torch.cat([p.grad.flatten() for p in shared]).double()
    expected_P = torch.tensor([1.0, -2.0], dtype=torch.float64) @ rows_KP
    torch.testing.assert_close(update_P, expected_P, rtol=1e-4, atol=1e-4)


def test_rows_by_choice():
    torch.manual_seed(0)
    encoder, x = mlp()
    by_rows = Balancer(Fixed(), encoder.parameters(), gramian="rows")
    by_rows.backward([encoder(x).sum(), encoder(x).square().sum()])
    assert by_rows.engine == "exact: one backward per task present"
    assert by_rows.held_bytes == 2 * 4 * sum(p.numel() for p in encoder.parameters())
    with pytest.raises(UsageError, match="gramian is 'ghost'; give 'auto' or 'rows'"):
        Balancer(Fixed(), encoder.parameters(), gramian="ghost")


# -- resuming ------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Rows are mixed by a gate that opens when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 48), nn.Linear(48, 16)
        self.gate = 0.0

    def forward(self, x):
        x = self.first(x).tanh()
        return self.last(x + self.gate * x.mean(0, keepdim=True))


@pytest.mark.parametrize("killed", [1, 2, 3, 5, 7])
def test_a_resumed_run_takes_the_digits_of_one_never_stopped(killed):
    """Rows of one task; from step 4 on they are mixed, which the trial in step 4 of 8 finds."""
    x = torch.randn(9, 12, 20, generator=torch.Generator().manual_seed(1))

    def fresh():
        torch.manual_seed(0)
        model = nn.ModuleDict({"encoder": Gated(), "heads": nn.Linear(16, 6)})
        shared = list(model["encoder"].parameters())
        return model, Balancer(Fixed(), shared, list("abcdef"))

    def run(model, balancer, steps):
        said = []
        for step in steps:
            model["encoder"].gate = 1e-6 if step >= 3 else 0.0
            model.zero_grad()
            outputs = model["heads"](model["encoder"](x[step]))
            balancer.backward([outputs[k::6, k].square().mean() for k in range(6)])
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
            said.append("label-sparse" in balancer.engine)
        return said

    model, balancer = fresh()
    whole = run(model, balancer, range(9))
    assert whole[:3] == [True] * 3
    assert not whole[-1]
    first, stopped = fresh()
    run(first, stopped, range(killed))
    second, resumed = fresh()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    assert run(second, resumed, range(killed, 9)) == whole[killed:]
    for p, q in zip(model.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    one, other = balancer.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_wide_layer_keeps_no_row_per_task():
    torch.manual_seed(0)
    encoder, x = nn.Linear(512, 512, bias=False), torch.randn(8, 512)
    balancer = Balancer(Fixed(), encoder.parameters(), gramian="auto")
    features = encoder(x)
    balancer.backward([features.sum(), features.square().sum(), features.exp().sum()])
    assert balancer.held_bytes == 3 * 4 * 8 * 512


def test_a_compiled_encoder_is_a_layer_it_does_not_know(caplog):
    """Its gradients are autograd's, one row per task; that is said once."""
    torch.manual_seed(0)
    encoder, x = mlp()
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(3))
    features = torch.compile(encoder, backend="aot_eager")(x)
    losses = [head(features).square().mean() for head in heads]
    with caplog.at_level(logging.WARNING):
        said = compare(losses, list(encoder.parameters()), heads, torch.float32, 1e-5)
    assert "4 parameters in layers it does not know" in said
    assert sum(record.name.startswith("polytask") for record in caplog.records) == 1


def test_an_embedding_of_which_little_is_looked_up_keeps_no_row_of_the_table():
    torch.manual_seed(0)
    table, tokens = nn.Embedding(5000, 8, padding_idx=3), torch.randint(0, 9, (6, 4))
    features = table(tokens).sum(1)
    losses = [features.sum(), features.square().sum(), features[:3].exp().sum()]
    shared = list(table.parameters())
    rows_KP = rows_by_autograd(losses, shared).double()
    method = Fixed()
    balancer = Balancer(method, shared, gramian="auto")
    weights_K = balancer.backward(losses).weights_K.double()
    assert "looked up 1" in balancer.engine
    assert balancer.held_bytes == 3 * 4 * 24 * 8
    torch.testing.assert_close(method.seen_KK, rows_KP @ rows_KP.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        shared[0].grad.flatten().double(), weights_K @ rows_KP, rtol=1e-5, atol=1e-5
    )
    assert not shared[0].grad[3].any()
