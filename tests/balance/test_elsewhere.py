"""Flat regions, look-ahead and modality branches, each against autograd in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from polytask.balance import (
    FAMO,
    MGDA,
    Balancer,
    CAGrad,
    Equal,
    FeatureLevel,
    FlatRegions,
    Fuller,
    GradDrop,
    LookAhead,
    PCGrad,
    Rows,
    Uncertainty,
    Weighed,
)
from polytask.errors import UsageError
from polytask.parsing import parse
from polytask.testing import check_wrapper


class Net(nn.Module):
    """Two branches that meet in one layer, and a head per task."""

    def __init__(self, tasks: int = 3, rows: int = 20) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.join = nn.Linear(8, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))
        self.double()
        self.x = torch.randn(rows, 5, dtype=torch.float64)
        self.y = torch.randn(tasks, rows, dtype=torch.float64) * torch.arange(1, tasks + 1)[:, None]

    def shared(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.named_parameters() if not n.startswith("heads")}

    def own(self, task: int) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.named_parameters() if n.startswith(f"heads.{task}.")}

    def forward(self, task: int, rows=slice(None)):
        x = self.x[rows]
        both = torch.cat([self.left(x[:, :3]).tanh(), self.right(x[:, 3:]).tanh()], 1)
        return F.mse_loss(self.heads[task](self.join(both).relu())[:, 0], self.y[task][rows])

    def losses(self):
        return {str(t): self(t) for t in range(len(self.heads))}

    def again(self, rows, tasks):
        return {t: self(int(t), rows.indices(len(self.x)) if rows != Rows() else slice(None))
                for t in tasks}  # fmt: skip

    def balancer(self, method, **settings):
        return Balancer(method, self.shared().values(), [str(t) for t in range(len(self.heads))],
                        **settings)  # fmt: skip


def slopes(model, task, at=None, rows=slice(None)):
    """Return the gradients of one task's loss by name, at other values of some parameters."""
    values = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    for name, value in (at or {}).items():
        values[name] = value.detach().clone().requires_grad_()
    loss = functional_call(model, values, (task, rows))
    names = [*model.shared(), *model.own(task)]
    return dict(zip(names, torch.autograd.grad(loss, [values[n] for n in names]), strict=True))


def row(model, grads):
    return torch.cat([grads[n].flatten() for n in model.shared()])


def answer(method, rows_KP, signal, losses):
    update = method(signal(rows_KP, losses=tuple(losses)), method.start(len(rows_KP)))
    if update.direction_P is not None:
        return update.direction_P
    return update.weights_K.to(rows_KP.dtype) @ rows_KP


def shared_grad(model):
    return torch.cat([p.grad.flatten() for p in model.shared().values()])


@pytest.mark.parametrize("method", [PCGrad(), MGDA(), CAGrad(), GradDrop()])
def test_flat_regions_is_algorithm_1(method, signal):
    """Each task's shared and own parameters move by rho along their gradient; the differences of
    the gradients there and here are aggregated apart from the gradients here."""
    model, rho = Net(), 0.3
    low, there = [], []
    for task in range(3):
        here = slopes(model, task)
        at = {}
        for part in (model.shared(), model.own(task)):
            norm = torch.cat([here[n].flatten() for n in part]).norm()
            at |= {n: p + rho * here[n] / norm for n, p in part.items()}
        low.append(row(model, here))
        there.append(slopes(model, task, at))
    low_KP = torch.stack(low)
    flat_KP = torch.stack([row(model, found) for found in there]) - low_KP
    losses = [model(t).item() for t in range(3)]
    expected = answer(method, low_KP, signal, losses) + answer(method, flat_KP, signal, losses)
    balancer = model.balancer(FlatRegions(method, rho=rho))
    balancer.backward(model.losses(), again=model.again)
    torch.testing.assert_close(shared_grad(model), expected, rtol=1e-7, atol=1e-9)
    for task in range(3):
        for name, parameter in model.own(task).items():
            torch.testing.assert_close(parameter.grad, there[task][name])
    assert balancer.engine.startswith("flat regions")


def test_flat_regions_of_equal_weights_is_the_sum_of_every_tasks_sam_gradient():
    model = Net()
    model.balancer(parse("flat-regions:rho=0.1").build_balance(0)).backward(
        model.losses(), again=model.again
    )
    total = 0
    for task in range(3):
        here = slopes(model, task)
        at = {}
        for part in (model.shared(), model.own(task)):
            norm = torch.cat([here[n].flatten() for n in part]).norm()
            at |= {n: p + 0.1 * here[n] / norm for n, p in part.items()}
        total = total + row(model, slopes(model, task, at))
    torch.testing.assert_close(shared_grad(model), total)


def test_a_tiny_move_gives_the_method_itself():
    exact, flat = Net(), Net()
    exact.balancer(PCGrad()).backward(exact.losses())
    flat.balancer(FlatRegions(PCGrad(), rho=1e-9)).backward(flat.losses(), again=flat.again)
    torch.testing.assert_close(shared_grad(flat), shared_grad(exact), rtol=1e-5, atol=1e-7)


def test_again_must_give_every_task_present():
    model = Net()
    with pytest.raises(UsageError, match="gave no loss of task '0'"):
        model.balancer(FlatRegions(PCGrad())).backward(model.losses(), again=lambda *_: {})


@pytest.mark.parametrize("method", [Equal(), PCGrad(), CAGrad(), GradDrop()])
def test_look_ahead_takes_each_tasks_gradient_after_a_step_of_its_own(method, signal):
    model, lr, seed = Net(), 0.2, 5
    inner, outer = Rows((seed, 0), 0.0, 0.8).indices(20), Rows((seed, 0), 0.8, 1.0).indices(20)
    assert (len(inner), len(outer)) == (16, 4)
    found = []
    for task in range(3):
        step = slopes(model, task, rows=inner)
        at = {n: p - lr * step[n] for n, p in (model.shared() | model.own(task)).items()}
        found.append(slopes(model, task, at, outer))
    rows_KP = torch.stack([row(model, one) for one in found])
    losses = [model(t).item() for t in range(3)]
    balancer = model.balancer(LookAhead(method, lr=lr, seed=seed))
    balancer.backward(model.losses(), again=model.again)
    expected = answer(method, rows_KP, signal, losses)
    torch.testing.assert_close(shared_grad(model), expected, rtol=1e-7, atol=1e-9)
    for task in range(3):
        for name, parameter in model.own(task).items():
            torch.testing.assert_close(parameter.grad, found[task][name])


def test_look_ahead_gives_no_weight_to_a_task_without_a_label_kept_back():
    model = Net()
    outer = []

    def again(rows, tasks):
        losses = model.again(rows, tasks)
        if rows.start > 0:
            outer.append(tasks)
            losses.pop("1", None)
        return losses

    used = model.balancer(LookAhead(PCGrad())).backward(model.losses(), again=again)
    assert outer == [("0",), ("1",), ("2",)]
    assert used["1"] == 0
    assert used["0"] > 0
    assert all(p.grad is None for p in model.own(1).values())

    used = model.balancer(LookAhead(PCGrad())).backward(
        model.losses(), again=lambda rows, tasks: {} if rows.start else model.again(rows, tasks)
    )
    assert set(used.values()) == {0.0}


@pytest.mark.parametrize("method", [MGDA(), PCGrad(), GradDrop()])
def test_fuller_brings_the_branches_of_the_feature_levels_update_to_their_mean_norm(method):
    plain, model = Net(), Net()

    # one forward pass for all tasks
    def together(net):
        both = torch.cat([net.left(net.x[:, :3]).tanh(), net.right(net.x[:, 3:]).tanh()], 1)
        features = net.join(both).relu()
        return [F.mse_loss(h(features)[:, 0], y) for h, y in zip(net.heads, net.y, strict=True)]

    branches = {"left": list(model.left.parameters()), "right": list(model.right.parameters())}
    plain.balancer(FeatureLevel(method)).backward(together(plain))
    used = model.balancer(Fuller(method, branches=branches)).backward(together(model))
    norms = {n: torch.cat([p.grad.flatten() for p in getattr(plain, n).parameters()]).norm()
             for n in branches}  # fmt: skip
    level = sum(norms.values()) / 2
    assert max(norms.values()) > 1.05 * min(norms.values())
    for name, parameters in branches.items():
        ours = torch.cat([p.grad.flatten() for p in parameters])
        theirs = torch.cat([p.grad.flatten() for p in getattr(plain, name).parameters()])
        torch.testing.assert_close(ours, theirs * level / norms[name], rtol=1e-9, atol=1e-12)
    for ours, theirs in ((model.join, plain.join), (model.heads, plain.heads)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    # the same by the Balancer's own branches, as a recipe in the loop has them
    again = Net()
    again.balancer(Fuller(method), branches={"left": list(again.left.parameters()),
                   "right": list(again.right.parameters())}).backward(together(again))  # fmt: skip
    torch.testing.assert_close(shared_grad(again), shared_grad(model))
    assert set(used) == {"0", "1", "2"}


def test_fuller_leaves_a_branch_without_a_gradient_out_of_the_level():
    model = Net()
    branches = {"left": list(model.left.parameters()), "right": list(model.right.parameters())}
    with torch.no_grad():
        model.join.weight[:, 4:] = 0  # nothing comes through the right branch
    before = Net()
    with torch.no_grad():
        before.join.weight[:, 4:] = 0

    def together(net):
        both = torch.cat([net.left(net.x[:, :3]).tanh(), net.right(net.x[:, 3:]).tanh()], 1)
        features = net.join(both).relu()
        return [F.mse_loss(h(features)[:, 0], y) for h, y in zip(net.heads, net.y, strict=True)]

    model.balancer(Fuller(PCGrad(), branches=branches)).backward(together(model))
    before.balancer(FeatureLevel(PCGrad())).backward(together(before))
    assert not bool(model.right.weight.grad.any())
    torch.testing.assert_close(model.left.weight.grad, before.left.weight.grad)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda net: Fuller(PCGrad(), branches={"left": [net.left.weight]}), "1 branches were gi"),
        (
            lambda net: Fuller(PCGrad(), branches={"a": [net.left.weight], "b": []}),
            "'b' has no par",
        ),
        (
            lambda net: Fuller(PCGrad(), branches={"a": [net.left.weight], "b": [net.left.weight]}),
            "'a' and 'b' have a parameter in common",
        ),
        (lambda net: FlatRegions(PCGrad(), rho=0), "rho is 0; give a value > 0"),
        (lambda net: FlatRegions(FAMO()), "FAMO, which looks at other losses"),
        (lambda net: FlatRegions(FlatRegions(PCGrad())), "cannot stand around FlatRegions"),
        (lambda net: LookAhead(PCGrad(), lr=0), "lr is 0; give a value > 0"),
        (lambda net: LookAhead(PCGrad(), inner=1.0), "inner is 1.0; give a part of the rows"),
        (lambda net: LookAhead(PCGrad(), seed=-1), "seed is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, said):
    with pytest.raises(UsageError, match=said):
        build(Net())


def test_fuller_without_branches_says_how_to_name_them():
    model = Net()
    with pytest.raises(UsageError, match="Fuller needs the model's modality branches; give Fuller"):
        model.balancer(parse("mgda+fuller").build_balance(0)).backward(model.losses())
    strange = {"a": [nn.Parameter(torch.ones(2))], "b": [nn.Parameter(torch.ones(2))]}
    x = model.join(torch.ones(1, 8, dtype=torch.float64))
    with pytest.raises(UsageError, match="no loss reaches a parameter of the branches"):
        model.balancer(Fuller(MGDA(), branches=strange)).backward(
            {str(t): head(x).sum() for t, head in enumerate(model.heads)}
        )


def test_weighed_losses_are_weighed_when_computed_again_too():
    model, by = Net(), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)

    class By(Equal):
        def __call__(self, signal, state):
            found = super().__call__(signal, state)
            return type(found)(state, by[signal.index_K])

    model.balancer(Weighed(FlatRegions(GradDrop(leak=1.0)), by=By())).backward(
        model.losses(), again=model.again
    )
    total = 0
    for task in range(3):
        here = slopes(model, task)
        at = {}
        for part in (model.shared(), model.own(task)):
            norm = torch.cat([here[n].flatten() for n in part]).norm()
            at |= {n: p + 0.05 * here[n] / norm for n, p in part.items()}
        found = slopes(model, task, at)
        total = total + by[task] * row(model, found)
        for name, parameter in model.own(task).items():
            torch.testing.assert_close(parameter.grad, by[task] * found[name])
    torch.testing.assert_close(shared_grad(model), total)


def test_trained_weights_learn_inside_flat_regions_as_they_do_alone():
    grads = []
    for build in (Uncertainty, lambda: FlatRegions(Uncertainty())):
        model = Net()
        balancer = model.balancer(build())
        balancer.backward(model.losses(), again=model.again)
        grads.append(balancer.parameters()[0].grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("text", ["equal+flat-regions", "uncertainty+look-ahead",
                                  "igb-v1+pcgrad+flat-regions", "graddrop+flat-regions",
                                  "trimmed-mean+look-ahead"])  # fmt: skip
def test_every_sort_of_nest_keeps_the_contract(text):
    check_wrapper(parse(text).build_balance(0))
