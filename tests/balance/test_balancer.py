"""The balancer: what its three lines do to gradients, against loops written by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from polytask.balance import (
    DWA,
    GLS,
    IMTLL,
    RLW,
    STCH,
    AlignedMTL,
    Balance,
    Balancer,
    Equal,
    Fixed,
    GradNorm,
    IGBv1,
    PCGrad,
    ScaleInvariant,
    Signal,
    State,
    Uncertainty,
    Update,
)
from polytask.errors import RunError, UsageError

GRAMIAN = [PCGrad(), AlignedMTL(), AlignedMTL("median")]


class ByLoss:
    """Weighs by this step's losses, so it cannot foresee."""

    needs = "losses"
    foresees = False
    by_epoch = False

    def start(self, tasks: int) -> State:
        return {"last_T": torch.zeros(tasks)}

    def __call__(self, signal: Signal, state: State) -> Update:
        last_T = state["last_T"].index_copy(0, signal.index_K, signal.losses_K)
        return Update({"last_T": last_T}, 1 / signal.losses_K)


class SignSum:
    """Answers with a direction, which no weighted sum of rows is."""

    needs = "rows"
    foresees = False
    by_epoch = False

    def start(self, tasks: int) -> State:
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        return Update(state, torch.ones(len(signal.index_K)), None, signal.rows_KP.sign().sum(0))


def train(balancer: Balancer, model, batches, learning_rate: float = 0.05) -> list[torch.Tensor]:
    parameters = [*model.parameters(), *balancer.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=learning_rate)
    for inputs, targets in batches:
        optimiser.zero_grad()
        balancer.backward(model.losses(inputs, targets))
        optimiser.step()
    return [p.detach().clone() for p in parameters]


def rows_by_hand(model, losses) -> torch.Tensor:
    """Return each loss's gradient in the shared parameters, by torch.autograd.grad."""
    shared, rows = model.shared(), []
    for loss in losses.values():
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, grads, strict=True)]
        rows.append(torch.cat([g.flatten() for g in flat]))
    return torch.stack(rows)


def shared_grad(model) -> torch.Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.shared()]
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_is_the_plain_sum_bit_for_bit(toy, dtype):
    model, inputs, targets = toy(12, 64, dtype)
    sum(model.losses(inputs, targets).values()).backward()
    plain = model.grads()
    weights = Balancer(Equal(), model.shared()).backward(model.losses(inputs, targets))
    for name, grad in model.grads().items():
        assert (grad is None) == (plain[name] is None)
        assert grad is None or torch.equal(grad, plain[name]), name
    assert dict(weights) == dict.fromkeys(targets, 1.0)


@pytest.mark.parametrize("method", GRAMIAN, ids=repr)
def test_gramian_methods_update_as_a_loop_by_hand(toy, method):
    model, inputs, targets = toy(4, 24, torch.float64)
    losses = model.losses(inputs, targets)
    rows_TP = rows_by_hand(model, losses)
    losses_T = torch.stack([loss.detach() for loss in losses.values()])
    signal = Signal(losses_T, torch.arange(4), 4, 0, gram_KK=rows_TP @ rows_TP.T)
    weights_T = method(signal, {}).weights_K
    heads = {n: p for n, p in model.named_parameters() if n.startswith("heads")}
    own = torch.autograd.grad(sum(losses.values()), list(heads.values()), retain_graph=True)

    weights = Balancer(method, model.shared()).backward(losses)
    torch.testing.assert_close(shared_grad(model), weights_T @ rows_TP, rtol=1e-10, atol=1e-14)
    assert list(weights.values()) == pytest.approx(weights_T.tolist(), rel=1e-10)
    for parameter, grad in zip(heads.values(), own, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    assert all(p.grad is None for p in model.idle.parameters())


def test_a_direction_takes_the_place_of_the_rows(toy):
    model, inputs, targets = toy(3, 12, torch.float64)
    losses = model.losses(inputs, targets)
    expected_P = rows_by_hand(model, losses).sign().sum(0)
    Balancer(SignSum(), model.shared()).backward(losses)
    assert torch.equal(shared_grad(model), expected_P)


@pytest.mark.parametrize("method", [Equal(), *GRAMIAN], ids=repr)
def test_gradients_already_there_are_added_to(toy, method):
    model, inputs, targets = toy()
    losses = model.losses(inputs, targets)
    Balancer(method, model.shared()).backward(model.losses(inputs, targets))
    once = model.grads()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    Balancer(method, model.shared()).backward(losses)
    for name, grad in model.grads().items():
        expected = 1 if once[name] is None else once[name] + 1
        torch.testing.assert_close(grad, torch.ones_like(grad) * expected)


@pytest.mark.parametrize("method", [Equal(), Uncertainty(), *GRAMIAN], ids=repr)
@pytest.mark.parametrize("written", ["key missing", "None"])
def test_an_absent_task_is_left_out_of_the_problem(toy, method, written):
    model, inputs, targets = toy(4)
    names = tuple(targets)
    all_losses = model.losses(inputs, targets)
    there = {name: all_losses[name] for name in (names[0], names[2])}
    given = there if written == "key missing" else dict.fromkeys(names) | there
    weights = Balancer(method, model.shared(), names).backward(given)
    assert tuple(weights) == (names[0], names[2])
    ours = model.grads()
    only = model.losses(inputs, {name: targets[name] for name in there})
    Balancer(method, model.shared(), tuple(there)).backward(only)
    for name, grad in model.grads().items():
        assert (grad is None) == (ours[name] is None), name
        assert grad is None or torch.equal(grad, ours[name]), name
    assert ours[f"heads.{names[1]}.weight"] is None


@pytest.mark.parametrize("method", [Equal(), PCGrad(), DWA()], ids=repr)
def test_with_every_task_absent_nothing_happens(toy, method):
    model, *_ = toy(2)
    balancer = Balancer(method, model.shared(), ["a", "b"], steps_per_epoch=5)
    before = balancer.state_dict()
    assert dict(balancer.backward({})) == {}
    assert all(grad is None for grad in model.grads().values())
    after = balancer.state_dict()
    assert int(after.pop("step")) == int(before.pop("step")) + 1
    assert all(torch.equal(after[k].nan_to_num(), before[k].nan_to_num()) for k in before)


@pytest.mark.parametrize("method", [Equal(), PCGrad(), AlignedMTL()], ids=repr)
def test_losses_come_by_name_in_a_list_or_as_one_tensor(toy, method):
    results = []
    for form in ("mapping", "backwards", "list", "named list", "tensor", "named tensor"):
        model, inputs, targets = toy(3)
        losses = model.losses(inputs, targets)
        values, names = list(losses.values()), list(losses)
        balancer = Balancer(method, model.shared(), names)
        if form == "mapping":
            weights = balancer.backward(losses)
        elif form == "backwards":
            weights = balancer.backward(dict(reversed(losses.items())))
        elif form == "list":
            weights = balancer.backward(values)
        elif form == "named list":
            weights = balancer.backward(values[::-1], tasks=names[::-1])
        elif form == "tensor":
            weights = balancer.backward(torch.stack(values))
        else:
            weights = balancer.backward(torch.stack(values[::-1]), tasks=names[::-1])
        assert weights.tasks == tuple(names)
        assert not weights.weights_K.requires_grad
        results.append((dict(weights), shared_grad(model)))
    for weights, grad in results[1:]:
        assert weights == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-5, atol=1e-6)


def test_the_first_call_fixes_the_tasks(toy):
    model, inputs, targets = toy(3)
    balancer = Balancer(Equal(), model.shared())
    assert balancer.tasks == ()
    balancer.backward(model.losses(inputs, targets))
    assert balancer.tasks == tuple(targets)
    with pytest.raises(UsageError, match=r"Unknown task 'task 11'. Did you mean 'task 1'\?"):
        balancer.backward({"task 11": next(iter(model.losses(inputs, targets).values()))})


@pytest.mark.parametrize(
    "build",
    [
        *(Equal, Uncertainty, DWA, PCGrad, AlignedMTL, Fixed, RLW, IMTLL, GLS, ScaleInvariant),
        *(GradNorm, IGBv1, STCH),
    ],
    ids=lambda build: build.__name__,
)
def test_a_resumed_run_goes_on_bit_for_bit(toy, build):
    def fresh():
        model, *_ = toy(3)
        return Balancer(build(), model.shared(), ["task 0", "task 1", "task 2"], 2), model

    _, inputs, targets = toy(3, 70)
    rows = [slice(i, i + 10) for i in range(0, 70, 10)]
    batches = [(inputs[r], {name: t[r] for name, t in targets.items()}) for r in rows]
    balancer, model = fresh()
    train(balancer, model, batches[:3])
    saved, weights = balancer.state_dict(), copy.deepcopy(model.state_dict())
    whole = train(balancer, model, batches[3:])

    resumed, model = fresh()
    resumed.load_state_dict(saved)
    model.load_state_dict(weights)
    again = train(resumed, model, batches[3:])
    assert all(map(torch.equal, whole, again))
    one, other = balancer.state_dict(), resumed.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k].nan_to_num(), other[k].nan_to_num()) for k in one)
    assert int(one["step"]) == 7


def test_the_saved_state_is_a_copy():
    balancer = Balancer(Uncertainty(), [], ["a"])
    saved = balancer.state_dict()
    with torch.no_grad():
        balancer.parameters()[0].fill_(3.0)
    assert saved["trained.log_variance_T"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda saved: saved.pop("state.last_T"), r"lacks 'state.last_T'"),
        (lambda saved: saved.update(extra=torch.ones(1)), r"has the unknown entry 'extra'"),
        (
            lambda saved: saved.update({"state.last_T": torch.ones(5)}),
            r"'state.last_T' has shape \(5,\), expected \(2,\)",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(change, text):
    balancer = Balancer(ByLoss(), [], ["a", "b"])
    saved = balancer.state_dict()
    change(saved)
    with pytest.raises(RunError, match=text):
        balancer.load_state_dict(saved)


@pytest.mark.parametrize(
    "method",
    [Equal(), Uncertainty(), DWA(), Fixed((1.0, 2.0, 0.0)), RLW(), IMTLL(), GradNorm(), *GRAMIAN],
    ids=repr,
)
def test_micro_batches_make_the_update_of_the_whole_batch(toy, method):
    """Also where a task has labels in one of the micro-batches alone."""
    results = []
    for parts in (1, 3):
        model, inputs, targets = toy(3, 12, torch.float64)
        targets["task 1"][:4] = torch.nan
        targets["task 2"][4:] = torch.nan
        counts = {name: int((~t.isnan()).sum()) for name, t in targets.items()}
        balancer = Balancer(copy.deepcopy(method), model.shared(), list(targets), 1)
        steps = []
        for _ in range(3):  # DWA begins to weigh in the third epoch
            rows = np.array_split(np.arange(12), parts)
            for i, r in enumerate(rows):
                cut = {name: t[r] for name, t in targets.items()}
                losses = model.shares(inputs[r], cut, counts)
                balancer.backward(losses, accumulate=i + 1 < parts)
            steps.append(
                model.grads() | {f"s{i}": p.grad for i, p in enumerate(balancer.parameters())}
            )
            with torch.no_grad():
                for i, (name, p) in enumerate(model.named_parameters()):
                    p -= 0.05 * (steps[-1][name] if steps[-1][name] is not None else 0) * (i + 1)
        results.append((steps, balancer.state_dict()))
    (whole, state), (parted, parted_state) = results
    for expected, got in zip(whole, parted, strict=True):
        for name, grad in expected.items():
            assert (grad is None) == (got[name] is None), name
            if grad is not None:
                torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)
    for name, value in state.items():
        if not name.startswith("engine."):  # what it found out about the graphs, which differ
            torch.testing.assert_close(parted_state[name], value, equal_nan=True)


def test_a_method_that_cannot_foresee_refuses_micro_batches():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(ByLoss(), [leaf])
    with pytest.raises(UsageError, match=r"ByLoss weighs by the whole step's losses.*Take a small"):
        balancer.backward({"a": leaf * 2}, accumulate=True)


def test_no_state_is_saved_in_the_middle_of_an_update():
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(Equal(), [leaf])
    balancer.backward({"a": leaf * 2}, accumulate=True)
    with pytest.raises(UsageError, match="between two micro-batches"):
        balancer.state_dict()
    balancer.backward({"a": leaf * 2})
    assert float(leaf.grad) == 4
    assert int(balancer.state_dict()["step"]) == 1


@pytest.mark.parametrize("method", [Equal(), PCGrad()], ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_task_and_the_step(method, value):
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(method, [leaf])
    balancer.backward({"left": leaf * 1, "right": leaf * 2})
    leaf.grad = None
    with pytest.raises(RunError, match=rf"At step 1 the loss of task 'right' is {value}; expected"):
        balancer.backward({"left": leaf * 1, "right": leaf * value})
    assert leaf.grad is None


def test_frozen_and_half_precision_parameters_may_be_among_the_shared(toy):
    model, inputs, targets = toy(2)
    model.encoder[0].weight.requires_grad_(False)
    balancer = Balancer(PCGrad(), model.shared())
    balancer.backward(model.losses(inputs, targets))
    assert model.encoder[0].weight.grad is None
    assert model.encoder[2].weight.grad is not None

    half = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    full = nn.Parameter(torch.ones(3))
    Balancer(PCGrad(), [half, full]).backward([half.sum() + full.sum(), 2 * full.sum()])
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.tolist() == [1.0, 1.0]
    assert full.grad.tolist() == [3.0] * 3


def test_wrong_use_says_what_to_do(toy):
    leaf = torch.ones((), requires_grad=True)
    loss = leaf * 2
    balancer = Balancer(Equal(), [leaf], ["depth", "normals"])
    cases = {
        r"loss of task 'depth' has no graph": {"depth": loss.detach()},
        r"loss of task 'depth' has shape \(2,\); reduce it": {"depth": loss.expand(2)},
        r"Unknown task 'dept'. Did you mean 'depth'": {"dept": loss},
        r"1 losses came for 2 tasks": [loss],
        r"shape \(K,\); got \(\)": loss,
    }
    for text, losses in cases.items():
        with pytest.raises(UsageError, match=text):
            balancer.backward(losses)
    with pytest.raises(UsageError, match="leave out tasks"):
        balancer.backward({"depth": loss}, tasks=["depth"])
    for twice in ([loss, loss], torch.stack([loss, loss])):
        with pytest.raises(UsageError, match="named twice"):
            balancer.backward(twice, tasks=["depth", "depth"])
    with pytest.raises(UsageError, match="PCGrad balances shared parameters; Balancer was given n"):
        Balancer(PCGrad(), [])
    with pytest.raises(UsageError, match="one or more different names"):
        Balancer(Equal(), [], ["a", "a"])
    with pytest.raises(UsageError, match="object is no balance method"):
        Balancer(object(), [])
    with pytest.raises(UsageError, match="steps_per_epoch is 0"):
        Balancer(DWA(), [], steps_per_epoch=0)
    for ask in (Balancer.parameters, lambda b: b.load_state_dict({})):
        with pytest.raises(UsageError, match=r"needs the tasks' order beforehand"):
            ask(Balancer(Uncertainty(), []))


def test_weights_are_read_from_the_device_only_when_looked_at():
    leaf = torch.ones((), requires_grad=True)
    weights = Balancer(Equal(), [leaf]).backward({"a": leaf * 2, "b": leaf * 3})
    assert weights["b"] == 1.0
    assert torch.equal(weights.weights_K, torch.ones(2))
    assert repr(weights) == "Weights({'a': 1.0, 'b': 1.0})"
    with pytest.raises(KeyError, match="c"):
        weights["c"]


def test_it_says_what_it_costs():
    leaf = torch.ones((), requires_grad=True)
    assert Balancer(Equal(), [leaf]).engine == "one backward of the weighted losses"
    assert Balancer(PCGrad(), [leaf]).engine == "exact, per layer: chosen at the first step"
    by_rows = Balancer(PCGrad(), [leaf], gramian="rows")
    assert by_rows.engine == "exact: one backward per task present"
    assert Balancer(SignSum(), [leaf]).engine == "exact: one backward per task present"


def test_methods_written_by_users_fit_the_protocol():
    assert isinstance(ByLoss(), Balance)
    assert isinstance(SignSum(), Balance)
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(ByLoss(), [leaf], ["a", "b"])
    balancer.backward({"b": leaf * 4})
    assert float(leaf.grad) == 1.0
    assert balancer.state["last_T"].tolist() == [0.0, 4.0]
