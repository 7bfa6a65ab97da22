"""Every kind of method in every way to train: the update is the one that plain autograd gives.

The oracle differentiates every loss by itself with torch.autograd.grad, on the bare model, and
hands losses and gradients to the method.
"""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask.balance import (
    AlignedMTL,
    Balancer,
    Equal,
    GradDrop,
    PCGrad,
    ScaleInvariant,
    Signal,
    Uncertainty,
)
from polytask.errors import UsageError

TASKS = ("a", "b", "c", "d")
FAST = "auto"
METHODS = {
    "equal": (Equal, "rows"),
    "scale-invariant": (ScaleInvariant, "rows"),
    "uncertainty": (Uncertainty, "rows"),
    "pcgrad": (PCGrad, "rows"),
    "aligned-mtl, per layer": (AlignedMTL, FAST),
    "graddrop": (GradDrop, "rows"),
}
FEEDS = ("shared", "per task", "missing", "absent")
"""One batch for all tasks; a batch for each; labels of which most are missing; no task "b"."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Linear(6, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 8), nn.Tanh()
        )
        self.heads = nn.ModuleDict({t: nn.Linear(8, 1) for t in TASKS})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {t: head(features)[:, 0] for t, head in self.heads.items()}


def feed(kind: str) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return batches of inputs and targets, of which NaN is no label."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for tasks in [(t,) for t in TASKS] if kind == "per task" else [TASKS]:
        inputs = torch.randn(12, 6, generator=generator)
        targets = {t: torch.randn(12, generator=generator) for t in tasks}
        for i, t in enumerate(TASKS):
            if kind == "missing":
                targets[t][torch.arange(12) % 4 != i] = torch.nan
        if kind == "absent":
            targets["b"][:] = torch.nan
        batches.append((inputs, targets))
    return batches


def losses(forward, batches, rows=slice(None)) -> dict[str, Tensor]:
    result = {}
    for inputs, targets in batches:
        outputs = forward(inputs[rows])
        for task, target in targets.items():
            count = int((~target.isnan()).sum())
            here = ~target[rows].isnan()
            if count and bool(here.any()):
                error = outputs[task].float()[here] - target[rows][here]
                result[task] = error.square().sum() / count
    return result


def expected(model: Model, method, batches) -> dict[str, Tensor]:
    """Return every parameter's gradient, by name."""
    shared = list(model.encoder.parameters())
    each = losses(model, batches)
    rows_KP = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in each.values()
        ]
    )
    index_K = torch.tensor([TASKS.index(t) for t in each])
    losses_K = torch.stack([loss.detach() for loss in each.values()])
    wide_KP = rows_KP.double()
    signal = Signal(losses_K, index_K, len(TASKS), 0, None, wide_KP @ wide_KP.T, rows_KP)
    state = method.start(len(TASKS))
    update = method(signal, state)
    weights_K = update.weights_K.detach().float()
    direction_P = update.direction_P
    if direction_P is None:
        direction_P = weights_K @ rows_KP
    grads = {}
    pieces = direction_P.split([p.numel() for p in shared])
    for (name, parameter), piece in zip(model.encoder.named_parameters(), pieces, strict=True):
        grads[f"encoder.{name}"] = piece.view_as(parameter)
    by_losses = method.needs == "losses"
    for k, (task, loss) in enumerate(each.items()):
        for name, parameter in model.heads[task].named_parameters():
            (grad,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            grads[f"heads.{task}.{name}"] = grad * (weights_K[k] if by_losses else 1)
    return grads


def compare(model: Model, grads: dict[str, Tensor], rtol: float, atol: float) -> None:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() >= grads.keys()
    for name, got in found.items():
        # Compiled as a whole, a model gives the heads of absent tasks zeros.
        grad = grads.get(name, torch.zeros_like(got))
        torch.testing.assert_close(got, grad, rtol=rtol, atol=atol, msg=name)


def run(model, name, forward, batches, **options) -> Balancer:
    build, gramian = METHODS[name]
    balancer = Balancer(build(), model.encoder.parameters(), TASKS, gramian=gramian)
    balancer.backward(losses(forward, batches), **options)
    return balancer


# -- ways to run the model ------------------------------------------------------------------------


def by_heads(model: Model, encode: Callable[[Tensor], Tensor]):
    def forward(inputs):
        features = encode(inputs)
        return {t: head(features)[:, 0] for t, head in model.heads.items()}

    return forward


def checkpointed(model: Model):
    return by_heads(model, lambda x: checkpoint(model.encoder, x, use_reentrant=False))


def reentrant(model: Model):
    # Reentrant checkpointing runs no backward at all where no input asks for a gradient.
    return by_heads(
        model, lambda x: checkpoint(model.encoder, x.requires_grad_(), use_reentrant=True)
    )


def compiled_encoder(model: Model):
    return by_heads(model, torch.compile(model.encoder, backend="aot_eager"))


def compiled_whole(model: Model):
    return torch.compile(model, backend="aot_eager")


WAYS = {f.__name__: f for f in (checkpointed, reentrant, compiled_encoder, compiled_whole)}


@pytest.fixture(scope="module", params=list(WAYS))
def wrapped(request):
    """A model, and its forward pass in one of the ways; compiled once for all tests."""
    model = Model()
    return model, WAYS[request.param](model)


@pytest.mark.parametrize("kind", FEEDS)
@pytest.mark.parametrize("name", METHODS)
def test_checkpointing_and_compiling_change_no_update(wrapped, name, kind):
    model, forward = wrapped
    batches = feed(kind)
    model.zero_grad()
    with torch._functorch.config.patch(donated_buffer=False):
        run(model, name, forward, batches)
    compare(model, expected(model, METHODS[name][0](), batches), 1e-4, 1e-6)


@pytest.mark.parametrize("kind", FEEDS)
@pytest.mark.parametrize("name", METHODS)
def test_bf16_autocast_changes_no_update_beyond_its_digits(name, kind):
    model, batches = Model(), feed(kind)

    def autocast(inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs)

    run(model, name, autocast, batches)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.dtype == torch.float32 for grad in found.values())
    each = losses(autocast, batches)
    wide = losses(model, batches)
    assert any(float(each[t].detach()) != float(wide[t].detach()) for t in each)
    if name == "graddrop":  # a drawn sign may turn where a coordinate is almost zero
        return
    grads = expected(model, METHODS[name][0](), batches)
    for key, grad in grads.items():
        error = (found[key] - grad).norm() / grad.norm()
        assert error < 0.06, key


@pytest.mark.parametrize("kind", FEEDS)
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_through_checkpointed_layers(name, kind):
    model, batches = Model(), feed(kind)
    build, gramian = METHODS[name]
    if build.needs == "losses" and not build.foresees:
        pytest.skip("refused, see test_balancer")
    forward = checkpointed(model)
    balancer = Balancer(build(), model.encoder.parameters(), TASKS, gramian=gramian)
    for rows, more in ((slice(0, 5), True), (slice(5, 12), False)):
        balancer.backward(losses(forward, batches, rows), accumulate=more)
    compare(model, expected(model, build(), batches), 1e-4, 1e-6)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    ],
    ids=["fused AdamW", "foreach SGD"],
)
@pytest.mark.parametrize("name", METHODS)
def test_fused_and_clipped_optimisers_take_the_gradients_as_they_are(name, optimiser, clip):
    model, batches = Model(), feed("missing")
    other = copy.deepcopy(model)
    for name_, grad in expected(model, METHODS[name][0](), batches).items():
        other.get_parameter(name_).grad = grad
    run(model, name, model, batches)
    for each in (model, other):
        if clip is not None:
            assert nn.utils.clip_grad_norm_(each.parameters(), clip) > clip
        optimiser(list(each.parameters())).step()
    for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=key)


def test_a_compiled_encoder_is_named_once_as_what_is_not_known(caplog):
    model, batches = Model(), feed("shared")
    torch.compiler.reset()  # what an earlier test compiled may be for a single loss
    with torch._functorch.config.patch(donated_buffer=False):
        forward = compiled_encoder(model)
        forward(batches[0][0])
    with caplog.at_level(logging.WARNING):
        balancer = Balancer(AlignedMTL(), model.encoder.parameters(), TASKS, gramian=FAST)
        said = []
        for _ in range(3):  # the third does not look at the graph, see `looks`
            balancer.backward(losses(forward, batches))
            said.append(balancer.engine)
    assert all("6 parameters in layers it does not know" in text for text in said[:2])
    assert sum(r.name.startswith("polytask") for r in caplog.records) == 1


@pytest.mark.parametrize("name", ["pcgrad", "aligned-mtl, per layer"])
def test_a_compiled_model_that_was_passed_once_before_is_told_what_to_do(name):
    """Its first backward pass tells torch whether others follow: a method of losses says no."""
    model, batches = Model(), feed("shared")
    torch.compiler.reset()
    forward = compiled_encoder(model)
    run(model, "equal", forward, batches)
    compare(model, expected(model, Equal(), batches), 1e-4, 1e-6)
    with pytest.raises(
        UsageError, match=r"config\.donated_buffer = False before the first forward"
    ):
        run(model, name, forward, batches)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_the_default_compiler():
    model, batches = Model(), feed("shared")
    torch.compiler.reset()
    forward = by_heads(model, torch.compile(model.encoder))
    for name in ("pcgrad", "aligned-mtl, per layer", "graddrop", "uncertainty"):
        model.zero_grad()
        run(model, name, forward, batches)
        compare(model, expected(model, METHODS[name][0](), batches), 1e-4, 1e-6)


# -- loss scaling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEEDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_loss_scaler_changes_no_update(name, kind):
    model, batches = Model(), feed(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = run(model, name, model, batches, scale=scaler.get_scale())
    scaled = next(model.encoder.parameters()).grad.abs().max()
    scaler.scale(torch.ones(()))  # what makes it ready, as scaler.scale(loss) does
    scaler.unscale_(optimiser)
    assert scaled > 1000 * next(model.encoder.parameters()).grad.abs().max()
    grads = expected(model, METHODS[name][0](), batches)
    compare(model, grads, 1e-4, 1e-6)
    for parameter in balancer.parameters():
        fresh = run(copy.deepcopy(Model()), name, model, batches).parameters()[0]
        torch.testing.assert_close(parameter.grad / 2.0**12, fresh.grad)


@pytest.mark.parametrize("name", ["pcgrad", "aligned-mtl, per layer", "graddrop", "uncertainty"])
def test_an_update_that_overflows_is_passed_over_and_leaves_no_trace(name):
    model, batches = Model(), feed("shared")
    build, gramian = METHODS[name]
    balancer = Balancer(build(), model.encoder.parameters(), TASKS, gramian=gramian)
    optimiser = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-36)
    before = [p.detach().clone() for p in [*model.parameters(), *balancer.parameters()]]
    for first in (True, False):
        optimiser.zero_grad()
        weights = balancer.backward(losses(model, batches), scale=scaler.get_scale())
        scaler.scale(torch.ones(()))
        scaler.step(optimiser)
        scaler.update()
        pairs = zip(before, [*model.parameters(), *balancer.parameters()], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == first
        if build.needs != "losses":
            assert (not weights) == first
            assert int(balancer.state_dict()["step"]) == (not first)
    assert scaler.get_scale() == pytest.approx(300)


def test_a_scale_that_is_none_or_changes_within_an_update_is_refused():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(PCGrad(), [leaf], ["a"])
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="give a number > 0"):
            balancer.backward([leaf * 1], scale=scale)
    balancer.backward([leaf * 1], scale=2.0, accumulate=True)
    with pytest.raises(UsageError, match=r"scale is 4\.0, it was 2\.0 for earlier micro-batches"):
        balancer.backward([leaf * 1], scale=4.0)
