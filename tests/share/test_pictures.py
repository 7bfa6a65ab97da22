"""What every architecture for pictures keeps, on an encoder whose stages can be seen."""

import inspect

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, PCGrad
from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.fit import FitConfig, fit
from polytask.parsing import parse
from polytask.recipes.train import build, score_for
from polytask.share import Trace
from polytask.share.base import shows
from polytask.share.m3vit import TOKENS
from polytask.share.staged import STAGED
from polytask.tasks import Binary, DenseLabels, Multiclass, Task, TaskSet, losses

from .conftest import APART, Encoder, count, rows
from .conftest import SETTINGS as OF_ROWS
from .pictures import RECIPES, SETTINGS, SIZE, Patches, Steps, make, pictures, suite, tasks


@pytest.fixture(params=RECIPES)
def recipe(request) -> str:
    return str(request.param)


def reached(model, names):
    """Return the names of the parameters that the outputs of these tasks depend on."""
    model.zero_grad(set_to_none=True)
    outputs = model(pictures(6))
    sum((outputs[t] + 0.3).square().sum() for t in names).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_every_architecture_is_tried_with_rows_or_with_pictures():
    named = {row.name for row in METHODS if row.room == "share"} - set(APART)
    assert named == {*OF_ROWS, *SETTINGS}
    assert not {*OF_ROWS} & {*SETTINGS}


def test_every_parameter_is_shared_or_one_tasks_own_and_reached_as_that(recipe):
    model = make(recipe)
    names = {id(p): n for n, p in model.named_parameters()}
    shared = [names[id(p)] for p in model.shared_parameters()]
    own = {t: [names[id(p)] for p in model.task_parameters(t)] for t in model.tasks}
    assert sorted(shared + [n for t in own for n in own[t]]) == sorted(names.values())
    by_task = {t: reached(model, [t]) for t in model.tasks}
    for name in names.values():
        readers = {t for t in model.tasks if name in by_task[t]}
        if name in shared:
            assert len(readers) > 1, f"{name} is shared, but only {readers} reaches it"
        else:
            assert readers == {t for t in own if name in own[t]}, name


def test_outputs_have_the_shapes_of_the_kinds_whatever_is_asked(recipe):
    model, inputs = make(recipe), pictures()
    together = model(inputs)
    shapes = {t: tuple(o.shape) for t, o in together.items()}
    assert shapes == {"t0": (3, 3, *SIZE), "t1": (3, 1), "t2": (3, 1, *SIZE), "t3": (3, 4)}
    for asked in (["t2"], ["t3", "t0"], ["t1", "t2", "t0"]):
        apart = model(inputs, tasks=asked)
        assert list(apart) == asked
        for task in asked:
            torch.testing.assert_close(apart[task], together[task], rtol=1e-11, atol=1e-12)
    assert model(inputs, tasks=()) == {}


def test_gradients_of_a_task_do_not_depend_on_the_others_being_there(recipe):
    model, inputs = make(recipe), pictures()
    parameters = list(model.parameters())
    alone, among = (
        torch.autograd.grad(outputs["t1"].square().sum(), parameters, materialize_grads=True)
        for outputs in (model(inputs, tasks=["t1"]), model(inputs))
    )
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_picture_does_not_see_the_others_of_the_batch(recipe):
    model, inputs = make(recipe), pictures(4)
    together = model(inputs)
    for task, output in model(inputs[1:3]).items():
        torch.testing.assert_close(output, together[task][1:3], rtol=1e-11, atol=1e-12)


def test_operators_do_not_grow_with_the_number_of_tasks(recipe):
    few, many = (make(recipe, TaskSet(Task(f"t{i}", Binary()) for i in range(n))) for n in (5, 17))
    inputs = pictures()
    with torch.no_grad():
        assert count(lambda: few(inputs)) == count(lambda: many(inputs))
        one = [count(lambda m=m: m(inputs, tasks=["t2"])) for m in (few, many)]
    assert one[0] == one[1]


def test_a_task_added_leaves_every_other_output_the_same_bits(recipe):
    model, inputs = make(recipe), pictures()
    before, own = model(inputs), {n: v.clone() for n, v in model.state_dict().items()}
    shared = {id(p) for p in model.shared_parameters()}
    model.add_task(Task("new", DenseLabels(5)))
    model.add_task(Task("a.b", Binary()))
    again = model(inputs, tasks=("t0", "t1", "t2", "t3"))
    assert all(torch.equal(before[t], again[t]) for t in before)
    together = model(inputs)
    assert list(together) == ["t0", "t1", "t2", "t3", "new", "a.b"]
    assert together["new"].shape == (3, 5, *SIZE)
    assert together["new"].dtype == torch.float64
    assert all(torch.equal(model.state_dict()[n], v) for n, v in own.items())
    assert {id(p) for p in model.shared_parameters()} == shared
    names = {id(p): n for n, p in model.named_parameters()}
    mine = {names[id(p)] for p in model.task_parameters("new")}
    assert mine <= reached(model, ["new"])
    assert not mine & reached(model, ["t0", "t1", "t2", "t3", "a.b"])
    with pytest.raises(UsageError, match="has a task 'new' already"):
        model.add_task(Task("new", Binary()))


@pytest.mark.parametrize("task", ["t0", "t3"])
def test_what_is_extracted_is_smaller_computes_the_same_bits_and_exports(recipe, task):
    model, inputs = make(recipe).eval(), pictures()
    alone = model.extract(task)
    assert torch.equal(alone(inputs), model(inputs, tasks=[task])[task])
    size = sum(p.numel() for p in alone.parameters())
    assert size < sum(p.numel() for p in model.parameters())
    kept = alone(inputs)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(alone.eval(), (inputs,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for p in model.parameters():  # a copy: training the model further does not change it
            p.add_(1.0)
    assert torch.equal(alone(inputs), kept)
    for number in (1, 2, 5):
        given = pictures(number, seed=number)
        torch.testing.assert_close(program.module()(given), alone(given), rtol=1e-11, atol=1e-12)


def test_a_trace_changes_nothing_and_tells_of_every_position(recipe):
    model, trace, inputs = make(recipe), Trace(), pictures()
    plain, traced = model(inputs), model(inputs, trace=trace)
    assert all(torch.equal(plain[t], traced[t]) for t in plain)
    for gate in trace.gates:
        assert tuple(gate.weights_RGE.shape[1:]) == (len(gate.readers), len(gate.experts))
        assert len(gate.weights_RGE) % len(inputs) == 0
        assert len(gate.owners) == len(gate.experts)
        assert set(gate.readers) <= {*model.tasks}
    assert set(trace.penalties) <= {*model.tasks}
    assert model.penalises or not trace.penalties


def test_balance_methods_work_on_it(recipe):
    model, inputs = make(recipe), pictures(4)
    given = tasks()
    targets = {
        "t0": (inputs[:, 0] > 0).long(),
        "t1": (inputs[:, 0, 0, 0] > 0).double(),
        "t2": inputs[:, 1],
        "t3": torch.tensor([0, 1, 2, 3]),
    }
    balancer = Balancer(PCGrad(), model.shared_parameters(), tasks=model.tasks)
    balancer.backward(losses(given, model(inputs), targets))
    assert all(p.grad is not None for p in model.parameters())
    own = model.task_parameters("t1")
    plain = torch.autograd.grad(losses(given, model(inputs), targets)["t1"], own)
    for p, g in zip(own, plain, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-12)


def test_wrong_use_says_what_to_do(recipe):
    model = make(recipe)
    with pytest.raises(UsageError, match=r"Unknown task 't9'. Did you mean"):
        model(pictures(), tasks=["t9"])
    with pytest.raises(UsageError, match="Unknown task 'x'"):
        model.task_parameters("x")
    with pytest.raises(UsageError, match="Unknown task 'x'"):
        model.extract("x")
    with pytest.raises(UsageError, match="reads pictures, one tensor; got a mapping of 'numeric'"):
        model({"numeric": rows()})
    sharing = type(model.trunk)
    with pytest.raises(UsageError, match=r"(and Encoder shows none|and Encoder is none); give"):
        sharing.build(Encoder(), 6, tasks())
    with pytest.raises(UsageError, match="one head per task"):
        type(model)(model.encoder, model.trunk, {"t0": nn.Conv2d(8, 3, 1)})


def test_a_decoder_made_for_another_encoder_is_refused():
    from polytask.share.mtan import MTAN
    from polytask.share.pictures import PictureModel

    from .pictures import Steps

    head = {"a": nn.Linear(8, 1)}
    with pytest.raises(UsageError, match=r"made for stages of the channels \(\(8, 8\), .* have"):
        PictureModel(Steps(), MTAN(["a"], ((8, 8), (16, 12), (20, 7))), head)
    with pytest.raises(UsageError, match="ends with stage 2; let it read that one last"):
        PictureModel(Steps(), MTAN(["a"], ((8, 8), (16, 12))), head)
    with pytest.raises(UsageError, match="at least one task and a reduction of at least 1"):
        MTAN(["a"], ((8, 8),), reduction=0)
    with pytest.raises(UsageError, match="Unknown task 'b'"):
        PictureModel(Steps(), MTAN(["a"], Steps().stage_channels), head, {"b": "map"})
    model = make("mtan", TaskSet([Task("a", Multiclass(3))]))
    model._reads["a"] = "sequence"
    with pytest.raises(UsageError, match="reads the feature 'sequence', but the encoder Steps"):
        model(pictures())


@pytest.mark.parametrize("recipe", list(SETTINGS))
@pytest.mark.parametrize("of", ["pixels", "pictures"])
def test_it_learns_on_the_encoders_of_the_suites(recipe, of):
    """In the loop, with penalties and a balance method; the same run twice is the same run."""
    records = []
    for _ in range(2):
        made = suite(of)
        model, method, mix = build(made, parse(f"{recipe}+pcgrad"), 0)
        config = FitConfig(epochs=6, batch_size=16, lr=1e-2, probes=1)
        score = score_for(made.tasks, None)
        records.append(fit(made, model, method, mix, config, score, method=recipe))
    first, second = ([point.val for point in record.points] for record in records)
    assert first == second
    for task in made.tasks:
        values = [val[task.name][task.primary.name] for val in first]
        if task.primary.direction == "max":  # mean IoU and accuracy of two classes
            assert max(values) > 0.65, f"{task.name}: {values}"
        else:
            spread = float(made.val[0].targets[task.name].std())
            assert min(values) < 0.8 * spread, f"{task.name}: {values}, spread {spread}"


class Passes(nn.Module):
    """An encoder inside another module, which passes on what it is asked, as torch.compile's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize(
    ("names", "has", "lacks"), [(STAGED, Steps, Encoder), (TOKENS, Patches, Steps)]
)
def test_an_encoder_shows_what_it_has_by_any_means(names, has, lacks):
    """A look that finds attributes of the object and its class alone misses parts of modules."""
    with pytest.raises(AttributeError):
        inspect.getattr_static(Patches(), "blocks")
    assert shows(has(), names)
    assert shows(Passes(has()), names)
    assert not shows(lacks(), names)
    assert not shows(nn.Linear(2, 2), names)
