"""What every architecture of the catalog keeps, with its default settings and with odd ones."""

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, PCGrad
from polytask.errors import UsageError
from polytask.parsing import parse
from polytask.share import Trace
from polytask.tasks import (
    Binary,
    DenseLabels,
    Multiclass,
    Regression,
    SequenceLabels,
    Task,
    TaskSet,
    losses,
)

from .conftest import (
    INPUTS,
    SEARCHES,
    SETTINGS,
    WIDTH,
    Encoder,
    binary,
    count,
    encoder_for,
    make,
    rows,
)


def reached(model, tasks, inputs=None):
    """Return the names of the parameters that the outputs of these tasks depend on."""
    model.zero_grad(set_to_none=True)
    outputs = model(rows(64) if inputs is None else inputs)
    sum(outputs[t].square().sum() for t in tasks).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_shared_parameters_are_those_that_tasks_share_and_the_others_are_one_tasks_own(recipe):
    if recipe.startswith(SEARCHES):
        pytest.skip("the likeliest path reaches its own nodes alone")
    model = make(recipe, 3)
    names = {id(p): n for n, p in model.named_parameters()}
    shared = [names[id(p)] for p in model.shared_parameters()]
    own = {t: [names[id(p)] for p in model.task_parameters(t)] for t in model.tasks}
    every = shared + [n for t in own for n in own[t]]
    assert sorted(every) == sorted(names.values())
    by_task = {t: reached(model, [t]) for t in model.tasks}
    for name in names.values():
        readers = {t for t in model.tasks if name in by_task[t]}
        assert readers, f"no task reaches {name}"
        if name in shared:
            assert len(readers) > 1, f"{name} is shared, but only {readers} reaches it"
        else:
            assert readers == {t for t in own if name in own[t]}


def test_what_is_asked_alone_is_what_is_asked_with_others(recipe):
    model, inputs = make(recipe, 4), rows()
    together = model(inputs)
    assert tuple(together) == model.tasks
    for asked in (["t2"], ["t3", "t0"], ["t1", "t2", "t0"]):
        apart = model(inputs, tasks=asked)
        assert list(apart) == asked
        for task in asked:
            torch.testing.assert_close(apart[task], together[task], rtol=1e-12, atol=1e-12)
    assert model(inputs, tasks=()) == {}


def test_gradients_of_a_task_do_not_depend_on_the_others_being_there(recipe):
    model, inputs = make(recipe, 3), rows()
    parameters = list(model.parameters())
    alone, among = (
        torch.autograd.grad(outputs["t1"].square().sum(), parameters, materialize_grads=True)
        for outputs in (model(inputs, tasks=["t1"]), model(inputs))
    )
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_operators_do_not_grow_with_the_number_of_tasks(recipe):
    few, many = make(recipe, 17), make(recipe, 65)
    inputs = rows()
    if recipe.startswith("aitm"):
        pytest.skip("a chain is as long as it is")
    with torch.no_grad():
        ops = [count(lambda m=m: m(inputs)) for m in (few, many)]
        one = [count(lambda m=m: m(inputs, tasks=["t2"])) for m in (few, many)]
    assert ops[0] == ops[1]
    assert one[1] <= one[0]  # fewer where MMoEEx drew no expert for the task


def test_a_task_added_leaves_every_other_output_the_same_bits(recipe):
    model, inputs = make(recipe, 3), rows()
    before, own = model(inputs), {n: v.clone() for n, v in model.state_dict().items()}
    shared = {id(p) for p in model.shared_parameters()}
    model.add_task(Task("new", Multiclass(4)))
    model.add_task(Task("newer", Binary()))
    assert model.tasks == ("t0", "t1", "t2", "new", "newer")
    again = model(inputs, tasks=("t0", "t1", "t2"))
    assert all(torch.equal(before[t], again[t]) for t in before)
    together = model(inputs)
    for t in before:
        torch.testing.assert_close(together[t], before[t], rtol=1e-13, atol=1e-13)
    assert together["new"].shape == (9, 4)
    assert together["new"].dtype == torch.float64
    assert all(torch.equal(model.state_dict()[n], v) for n, v in own.items())
    now = {id(p) for p in model.shared_parameters()}
    # The last of a chain shares what it had alone with the one that comes after it.
    assert now > shared if recipe.startswith("aitm") else now == shared
    if recipe.startswith(SEARCHES):
        return  # the likeliest path need not lead through a new task's own nodes
    names = {id(p): n for n, p in model.named_parameters()}
    mine = {names[id(p)] for p in model.task_parameters("new")}
    assert mine <= reached(model, ["new"])
    assert not mine & reached(model, ["t0", "t1", "t2", "newer"])
    with pytest.raises(UsageError, match="has a task 'new' already"):
        model.add_task(Task("new", Binary()))


def test_what_is_extracted_is_smaller_and_computes_the_same_bits(recipe):
    model, inputs = make(recipe, 5), rows()
    alone = model.extract("t3")
    assert torch.equal(alone(inputs), model(inputs, tasks=["t3"])["t3"])
    size = sum(p.numel() for p in alone.parameters())
    assert size < sum(p.numel() for p in model.parameters())
    # a copy: training the model further does not change it
    kept = alone(inputs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(alone(inputs), kept)


def test_what_is_extracted_exports_with_any_number_of_rows(recipe):
    alone = make(recipe, 3).extract("t1").eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(alone, (rows(4),), dynamic_shapes=({0: batch},))
    for number in (1, 2, 17):
        inputs = rows(number, seed=number)
        torch.testing.assert_close(program.module()(inputs), alone(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", sorted(set(SETTINGS) - {"aitm", "stem"}))
def test_other_kinds_and_features_of_positions(recipe):
    class Everything(nn.Module):
        width = WIDTH

        def __init__(self):
            super().__init__()
            self.fields = 2
            self.layer = nn.Linear(INPUTS, WIDTH)

        def forward(self, inputs):
            row = self.layer(inputs).relu()
            sequence = torch.stack([row, row * 2, row - 1], dim=1)
            return {"row": row, "sequence": sequence, "map": sequence.mT[..., None] * torch.ones(2)}

    tasks = TaskSet(
        [
            Task("yes", Binary()),
            Task("class", Multiclass(4)),
            Task("words", SequenceLabels(3)),
            Task("pixels", DenseLabels(2)),
            Task("more words", SequenceLabels(3)),
            Task("number", Regression()),
        ]
    )
    share = parse(recipe).share
    torch.manual_seed(0)
    model = share.method.load().build(Everything(), WIDTH, tasks).eval()
    inputs = rows().float()
    outputs = model(inputs)
    shapes = {t: tuple(o.shape) for t, o in outputs.items()}
    assert shapes == {
        "yes": (9, 1),
        "class": (9, 4),
        "words": (9, 3, 3),
        "pixels": (9, 2, 3, 2),
        "more words": (9, 3, 3),
        "number": (9, 1),
    }
    for task, output in outputs.items():
        torch.testing.assert_close(model.extract(task)(inputs), output)
    # every position is a row: the second word alone gives the second word's output
    features = model.encoder(inputs)
    (words_RW,) = model.trunk(features["sequence"][:, 1], ["words"])
    torch.testing.assert_close(model.head("words")(words_RW), outputs["words"][:, 1])
    (pixels_RW,) = model.trunk(features["map"][:, :, 2, 1], ["pixels"])
    alone = model.head("pixels")(pixels_RW[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(alone, outputs["pixels"][:, :, 2, 1])


@pytest.mark.parametrize("balance", ["PCGrad", "MGDA", "Uncertainty", "GradDrop", "GradNorm"])
@pytest.mark.parametrize("recipe", sorted(set(SETTINGS) - set(SEARCHES)))
def test_balance_methods_work_on_it(recipe, balance):
    import polytask.balance as room

    model, inputs = make(recipe, 3), rows(32)
    tasks = binary(3)
    targets = {t: (inputs[:, i] > 0).double() for i, t in enumerate(model.tasks)}
    balancer = Balancer(getattr(room, balance)(), model.shared_parameters(), tasks=model.tasks)
    parts = losses(tasks, model(inputs), targets)
    balancer.backward(parts)
    assert all(p.grad is not None for p in model.parameters())
    # a task's own parameters get their unweighted gradient
    if balance in ("PCGrad", "MGDA", "GradDrop"):
        own = model.task_parameters("t1")
        plain = torch.autograd.grad(losses(tasks, model(inputs), targets)["t1"], own)
        for p, g in zip(own, plain, strict=True):
            torch.testing.assert_close(p.grad, g)


def test_the_gramian_by_layers_is_that_of_rows(recipe):
    """Over several steps: the engine learns which rows belong to which task, and may take care."""
    if recipe.startswith(SEARCHES):
        pytest.skip("nodes off the likeliest paths have no gradients to compare")
    tasks = binary(3)
    models = [make(recipe, 3), make(recipe, 3)]
    balancers = [
        Balancer(PCGrad(), model.shared_parameters(), gramian=engine)
        for model, engine in zip(models, ("auto", "rows"), strict=True)
    ]
    for step in range(6):
        inputs = rows(32, seed=step)
        targets = {t: (inputs[:, i] > 0).double() for i, t in enumerate(tasks.names)}
        for model, balancer in zip(models, balancers, strict=True):
            model.zero_grad(set_to_none=True)
            balancer.backward(losses(tasks, model(inputs), targets))
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10)


def test_a_checkpoint_of_one_fits_the_other_whatever_the_tasks_names(recipe):
    odd = TaskSet(Task(n, Binary()) for n in ("a.b", "a%2Eb", "type", "two words", "", "shared"))
    first, second = make(recipe, odd, seed=0), make(recipe, odd, seed=0)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.1)
    second.load_state_dict(first.state_dict())
    inputs = rows()
    for task, output in first(inputs).items():
        assert torch.equal(output, second(inputs)[task])


def test_gates_are_told_and_weights_of_a_row_sum_to_1(recipe):
    model, trace = make(recipe, 3), Trace()
    plain = model(rows())
    traced = model(rows(), trace=trace)
    assert all(torch.equal(plain[t], traced[t]) for t in plain)
    for gate in trace.gates:
        shape = (9, len(gate.readers), len(gate.experts))
        assert tuple(gate.weights_RGE.shape) == shape
        assert len(gate.owners) == len(gate.experts)
        assert set(gate.owners) <= {None, *model.tasks}


def test_wrong_use_says_what_to_do(recipe):
    model = make(recipe, 3)
    with pytest.raises(UsageError, match=r"Unknown task 't9'. Did you mean"):
        model(rows(), tasks=["t9"])
    with pytest.raises(UsageError, match="Unknown task 'x'"):
        model.task_parameters("x")
    with pytest.raises(UsageError, match="Unknown task 'x'"):
        model.extract("x")
    share = parse(recipe).share
    encoder = encoder_for(recipe)
    told = rf"width 7, but the encoder {type(encoder).__name__} gives {encoder.width}"
    with pytest.raises(UsageError, match=told):
        share.method.load().build(encoder, 7, binary(3), **dict(share.settings))
    if recipe.startswith("stem"):
        with pytest.raises(UsageError, match=r"takes an encoder of fields.* Encoder has none"):
            share.method.load().build(Encoder(), WIDTH, binary(3), **dict(share.settings))
        return
    silent = nn.Linear(INPUTS, WIDTH)  # tells no width: found out at the first rows
    silent.fields = 7
    model = share.method.load().build(silent, 7, binary(3), **dict(share.settings)).eval()
    with pytest.raises(UsageError, match=r"width 7, but the encoder gives 'row' of shape \(9, 6\)"):
        model(rows().float())
