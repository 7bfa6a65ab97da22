"""What is not finite is named, and stops the run or leaves out one whole update, never less."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polytask.balance import (
    DWA,
    FAMO,
    MGDA,
    Balancer,
    CoBa,
    Equal,
    EveryN,
    FeatureLevel,
    FlatRegions,
    GradDrop,
    PCGrad,
    SampledRows,
    Uncertainty,
    Weighed,
)
from polytask.errors import Diverged, UsageError


class Bad(torch.autograd.Function):
    """The input as it is, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.heads = nn.ModuleDict({t: nn.Linear(4, 1) for t in ("a", "b", "c")})
        self.x = torch.randn(8, 3)

    def losses(self, rows=None, tasks=("a", "b", "c"), ill=None):
        features = self.encoder(self.x if rows is None else rows(self.x))
        found = {t: self.heads[t](features).square().mean() + 0.1 for t in tasks}
        if ill == "loss":
            found["b"] = found["b"] * torch.nan
        elif ill == "gradient":
            found["b"] = self.heads["b"](Bad.apply(features)).square().mean() + 0.1
        elif ill == "own gradient":
            found["b"] = found["b"] + Bad.apply(self.heads["b"].bias).sum()
        return found


METHODS = {
    "equal": Equal,
    "uncertainty": Uncertainty,
    "pcgrad": PCGrad,
    "graddrop": GradDrop,
    "per layer": MGDA,
    "every-n": lambda: EveryN(PCGrad(), n=2),
    "feature-level": lambda: FeatureLevel(MGDA()),
    "sampled-rows": lambda: SampledRows(MGDA(), 0.5),
    "flat-regions": lambda: FlatRegions(PCGrad()),
    "weighed": lambda: Weighed(PCGrad(), by=DWA()),
}


def balancer_of(net, name, **settings):
    by = "auto" if name == "per layer" else "rows"
    return Balancer(METHODS[name](), net.encoder.parameters(), net.heads, steps_per_epoch=1,
                    gramian=by, **settings)  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ill", ["loss", "gradient", "own gradient"])
def test_skip_leaves_out_the_whole_update_and_counts_it(name, ill):
    net = Net()
    balancer = balancer_of(net, name, nonfinite="skip")
    balancer.backward(net.losses(), again=net.losses)
    trained = [*net.parameters(), *balancer.parameters()]
    kept = [None if p.grad is None else p.grad.clone() for p in trained]
    state = balancer.state_dict()
    with pytest.warns(RuntimeWarning, match="left the whole update out") as caught:
        used = balancer.backward(net.losses(ill=ill), again=net.losses)
    assert len(used) == 0
    assert caught[0].filename == __file__
    for parameter, grad in zip(trained, kept, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    after = balancer.state_dict()
    assert int(after.pop("step")) == int(state.pop("step")) + 1
    for key, value in state.items():
        if not key.startswith("engine."):  # counts the steps in which it looked at the graph
            torch.testing.assert_close(after[key], value, equal_nan=True, rtol=0, atol=0)
    (note,) = balancer.notes
    assert balancer.notes[note] == 1
    if ill == "loss":
        assert "the loss of task 'b' is not finite" in note
    with warnings.catch_warnings():
        if name == "every-n":  # looks again now, where it had weights before: another note
            warnings.simplefilter("ignore", RuntimeWarning)
        balancer.backward(net.losses(ill=ill), again=net.losses)
    assert sum(balancer.notes.values()) == 2
    assert len(balancer.backward(net.losses(), again=net.losses)) == 3


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "per layer", "feature-level",
                                  "flat-regions", "weighed"])  # fmt: skip
def test_a_gradient_that_is_not_finite_is_named_and_stops(name):
    net = Net()
    balancer = balancer_of(net, name)
    with pytest.raises(
        Diverged, match="At step 0 the gradient of task 'b' in the shared parameter"
    ):
        balancer.backward(net.losses(ill="gradient"), again=net.losses)
    assert balancer.step == 0
    assert all(p.grad is None for p in net.encoder.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_named_and_stops(name):
    net = Net()
    balancer = balancer_of(net, name)
    with pytest.raises(Diverged, match="At step 0 the loss of task 'b' is nan"):
        balancer.backward(net.losses(ill="loss"), again=net.losses)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["equal", "pcgrad"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("ill", ["loss", "gradient", "own gradient"])
def test_one_bad_micro_batch_leaves_out_all_of_its_update(name, at, ill):
    net = Net()
    balancer = balancer_of(net, name, nonfinite="skip")
    for n in range(2):
        balancer.backward(net.losses(ill=ill if n == at else None), accumulate=True)
    with pytest.warns(RuntimeWarning, match="left the whole update out"):
        used = balancer.backward(net.losses(ill=ill if at == 2 else None))
    assert len(used) == 0
    assert all(p.grad is None for p in net.parameters())
    # and the next update is as if it had not been
    other = copy.deepcopy(net)
    fresh = balancer_of(other, name)
    fresh.step = 1
    for one, model in ((balancer, net), (fresh, other)):
        for n in range(2):
            one.backward(model.losses(), accumulate=n < 1)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_without_a_bad_number_skip_changes_nothing():
    grads = []
    for nonfinite in ("stop", "skip"):
        net = Net()
        balancer_of(net, "pcgrad", nonfinite=nonfinite).backward(net.losses())
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_losses_that_are_observed_and_not_finite_are_not_looked_at():
    net = Net()
    nan = {"a": torch.tensor(1.0), "b": torch.tensor(torch.nan)}
    stop = Balancer(CoBa(warmup=2, history=2), net.encoder.parameters(), ["a", "b"])
    with pytest.raises(Diverged, match="loss of task 'b' is nan"):
        stop.observe(nan)
    for method in (CoBa(warmup=2, history=2), FAMO()):
        skip = Balancer(method, net.encoder.parameters(), net.heads, nonfinite="skip")
        skip.backward(net.losses())
        state = {key: value.clone() for key, value in skip.state.items()}
        with pytest.warns(RuntimeWarning, match="'b' is not finite, as observed; did not look"):
            skip.observe(nan)
        assert all(
            torch.equal(state[k].nan_to_num(), v.nan_to_num()) for k, v in skip.state.items()
        )
        skip.backward(net.losses())


def test_an_update_left_out_needs_no_look_after_it():
    net = Net()
    balancer = Balancer(FAMO(), net.encoder.parameters(), net.heads, nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="left the whole update out"):
        balancer.backward(net.losses(ill="loss"))
    assert len(balancer.backward(net.losses())) == 3


def test_skip_refuses_a_graph_that_hides_parameters():
    net = Net()
    balancer = balancer_of(net, "pcgrad", nonfinite="skip")
    x = net.x.clone().requires_grad_()
    features = checkpoint(net.encoder, x, use_reentrant=True)
    with pytest.raises(UsageError, match="use_reentrant=False"):
        balancer.backward({t: net.heads[t](features).mean() for t in net.heads})
    with pytest.raises(UsageError, match="nonfinite is 'ignore'; give 'stop' or 'skip'"):
        balancer_of(net, "pcgrad", nonfinite="ignore")


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "per layer", "every-n", "feature-level"])
def test_shared_parameters_that_no_loss_reaches_are_an_error(name):
    net, other = Net(), Net()
    with pytest.raises(UsageError, match="no loss reaches any of the shared parameters"):
        balancer_of(other, name).backward(net.losses())


@pytest.mark.parametrize("name", ["pcgrad", "per layer", "every-n", "feature-level"])
def test_shared_parameters_that_some_reach_are_as_in_autograd(name):
    net = Net()
    idle = nn.Parameter(torch.ones(2))
    by = "auto" if name == "per layer" else "rows"
    balancer = Balancer(METHODS[name](), [*net.encoder.parameters(), idle], net.heads, gramian=by)
    for _ in range(2):
        balancer.backward(net.losses())
        assert idle.grad is None
        assert all(p.grad is not None for p in net.encoder.parameters())
