"""MultiModN by a loop over rows: states, every head after every step, rows that lack a modality."""

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.fit import task_losses
from polytask.fit.data import Feed
from polytask.mix import Proportional, Schedule
from polytask.share import MultiModN, Trace
from polytask.suites import About, Stream
from polytask.suites.check import make_suite
from polytask.tasks import Binary, Multiclass, SequenceLabels, Task, TaskSet

from .conftest import make, rows

TASKS = TaskSet([Task("a", Binary()), Task("b", Multiclass(3)), Task("c", Binary())])


class Part(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.layer = width, nn.Linear(inputs, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).tanh()


class Several(nn.Module):
    """An encoder that only lends its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"sound": Part(4, 3), "text": Part(2, 5)})


def built(penalty=0.5):
    torch.manual_seed(0)
    return MultiModN.build(Several(), 0, TASKS, state=6, penalty=penalty).double()


def given(number=8):
    """Rows of which some lack a modality, in part or whole, and one lacks both."""
    draw = torch.Generator().manual_seed(1)
    inputs = {
        "sound": torch.randn(number, 4, generator=draw, dtype=torch.float64),
        "text": torch.randn(number, 2, generator=draw, dtype=torch.float64),
    }
    inputs["sound"][[1, 2]] = torch.nan
    inputs["sound"][4, 3] = torch.nan
    inputs["text"][[2, 5]] = torch.nan
    return inputs


def by_hand(model, inputs):
    """Return of each row the states after every step."""
    chain, every = model.chain, []
    for r in range(len(inputs["sound"])):
        states = [chain.initial_1S[0]]
        for name in ("sound", "text"):
            step, x = chain.modalities[f"task_{name}"], inputs[name][r]
            if x.isnan().any():
                states.append(states[-1])
                continue
            f = torch.tanh(step.encoder.layer.weight @ x + step.encoder.layer.bias)
            states.append(step.update.weight @ torch.cat([f, states[-1]]) + step.update.bias)
        every.append(torch.stack(states))
    return torch.stack(every)


def test_all_that_training_reads_is_that_of_the_loop_and_so_are_the_gradients():
    model, inputs, trace = built(), given(), Trace()
    ours = model(inputs, trace=trace)
    states = by_hand(model, inputs)  # (B, M + 1, S)
    plain = [{t: model.model.head(t)(states[:, m]) for t in TASKS.names} for m in range(3)]
    gone = torch.stack([inputs[name].isnan().any(1) for name in ("sound", "text")])
    for m, step in enumerate(plain[:2]):  # the same state comes again, and is learned from there
        for t, output in step.items():
            step[t] = torch.stack(
                [o.detach() if gone[m, r] else o for r, o in enumerate(output.unbind())]
            )
    change = sum((states[:, m + 1] - states[:, m]).square().mean(1) for m in range(2)).mean()
    found = [*trace.further, ours]
    assert len(found) == 3
    for step, expected in zip(found, plain, strict=True):
        assert tuple(step) == TASKS.names
        for t, output in step.items():
            torch.testing.assert_close(output, expected[t], rtol=1e-12, atol=1e-12)
    assert set(trace.penalties) == set(TASKS.names)
    torch.testing.assert_close(trace.penalties["b"], 0.5 * change, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    sums = [
        sum((o + 0.3).square().sum() * (m + i + 1) for m, step in enumerate(steps)
            for i, o in enumerate(step.values())) + penalty
        for steps, penalty in ((found, trace.penalties["a"]), (plain, 0.5 * change))
    ]  # fmt: skip
    for a, b in zip(*(torch.autograd.grad(s, parameters) for s in sums), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert a.isfinite().all()
    assert all(torch.equal(ours[t], o) for t, o in model(inputs).items())


def test_a_row_that_lacks_a_modality_is_no_other_rows_business():
    model, inputs = built(), given()
    outputs = model(inputs)
    for r in range(8):
        alone = model({name: value[r : r + 1] for name, value in inputs.items()})
        for t, output in alone.items():
            torch.testing.assert_close(output[0], outputs[t][r], rtol=1e-12, atol=1e-13)
    # What lacks everything is answered from the first state.
    first = model.model.head("b")(model.chain.initial_1S)[0]
    torch.testing.assert_close(outputs["b"][2], first)


def test_a_state_that_a_row_left_as_it_was_is_learned_from_once():
    """All rows lack the text: whether it is told or left out, training reads what it read."""
    model, inputs = built(), given()
    told = inputs | {"text_there": torch.zeros(8, dtype=torch.bool)}
    gone = inputs | {"text": torch.full_like(inputs["text"], torch.nan)}
    parameters = list(model.parameters())

    def gradients(given):
        trace = Trace()
        outputs = model(given, trace=trace)
        total = trace.penalties["a"] + sum(
            (o + 0.3).square().sum() for step in (outputs, *trace.further) for o in step.values()
        )
        return torch.autograd.grad(total, parameters, materialize_grads=True)

    expected = gradients({"sound": inputs["sound"]})
    for missing in (told, gone):
        for a, b in zip(gradients(missing), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_modality_missing_for_all_does_not_run():
    model, inputs = built(), given()
    calls = []
    model.chain.modalities["task_text"].register_forward_hook(lambda *_: calls.append(1))
    without = model({"sound": inputs["sound"]})
    assert calls == []
    gone = model({**inputs, "text": torch.full_like(inputs["text"], torch.nan)})
    assert all(torch.equal(without[t], o) for t, o in gone.items())


def test_the_losses_of_all_steps_steer_and_the_last_one_counts():
    draw = torch.Generator().manual_seed(0)

    def stream(number):
        targets = {
            "a": torch.randint(2, (number,), generator=draw).float(),
            "b": torch.randint(3, (number,), generator=draw),
            "c": torch.randint(2, (number,), generator=draw).float(),
        }
        targets["a"][::3] = torch.nan
        inputs = {name: value.nan_to_num() for name, value in given(number).items()}
        there = {f"{name}_there": ~v.isnan().any(1) for name, v in given(number).items()}
        return Stream("s", inputs | there, targets)

    made = make_suite(
        name="modalities", tasks=TASKS, train=[stream(24)], val=[stream(8)], test=[stream(8)],
        encoder=Several, width=1, about=About("", "", "", "", ""),
    )  # fmt: skip
    model = built()
    schedule = Schedule(Proportional(), [24], 12, 0)
    fed = Feed(made.train, made.tasks, schedule).step(0, schedule.start())[0]
    ((batch,),) = fed.micros
    names, losses_K = task_losses(model, [batch], fed.counts, "float32")
    trace = Trace()
    last = model(batch.inputs, trace=trace)
    gone = {
        name: batch.inputs[name].masked_fill(~batch.inputs[f"{name}_there"][:, None], torch.nan)
        for name in ("sound", "text")
    }
    assert all(value.isnan().any() for value in gone.values())
    assert all(torch.equal(last[t], o) for t, o in model(gone).items())
    parameters = list(model.parameters())
    for k, name in enumerate(names):
        (block,) = [b for b in batch.blocks if name in b.tasks]
        target = batch.targets[batch.blocks.index(block)]
        at = block.tasks.index(name)
        of = [block.loss_sums(o, target)[at] / fed.counts[name] for o in (last, *trace.further)]
        torch.testing.assert_close(losses_K[k], of[0])
        total = sum(of) + trace.penalties[name]
        found = torch.autograd.grad(
            losses_K[k], parameters, retain_graph=True, materialize_grads=True
        )
        expected = torch.autograd.grad(total, parameters, retain_graph=True, materialize_grads=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_parameters_tasks_and_what_is_extracted():
    model, inputs = built(), given()
    names = {id(p): n for n, p in model.named_parameters()}
    own = {t: [names[id(p)] for p in model.task_parameters(t)] for t in model.tasks}
    shared = [names[id(p)] for p in model.shared_parameters()]
    assert sorted([*shared, *(n for t in own for n in own[t])]) == sorted(names.values())
    assert set(model.branches()) == {"sound", "text"}
    before = model(inputs)
    model.add_task(Task("new", Multiclass(4)))
    assert all(torch.equal(before[t], o) for t, o in model(inputs, tasks=tuple(before)).items())
    assert model(inputs, tasks=["new"])["new"].shape == (8, 4)
    alone = model.extract("b").eval()
    assert torch.equal(alone(inputs), model(inputs, tasks=["b"])["b"])
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in model.parameters())
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = ({name: {0: batch} for name in inputs},)
    program = torch.export.export(alone, (inputs,), dynamic_shapes=shapes)
    more = given(17)
    torch.testing.assert_close(program.module()(more), alone(more), rtol=1e-12, atol=1e-12)


def test_an_encoder_without_branches_is_one_modality():
    model, inputs = make("multimodn:state=7,towers=4", 2), rows()
    inputs[3, 1] = torch.nan
    outputs = model(inputs)
    first = model.model.head("t1")(model.chain.initial_1S)[0]
    torch.testing.assert_close(outputs["t1"][3], first)
    assert outputs["t1"].isfinite().all()
    assert model.branches() == {}
    trace = Trace()
    model(inputs[:0], trace=trace)  # a process may have no row
    assert trace.penalties["t0"].item() == 0.0
    assert model(inputs, tasks=()) == {}


def test_what_does_not_fit_is_answered():
    with pytest.raises(
        UsageError, match=r"reads the modalities sound, text, .* inputs are picture"
    ):
        built()({"picture": torch.zeros(2, 4)})
    with pytest.raises(UsageError, match="the inputs are one tensor"):
        built()(rows())
    with pytest.raises(UsageError, match="penalty is -1; give a number >= 0"):
        built(-1)
    with pytest.raises(UsageError, match="state is 0; give a width"):
        make("multimodn:state=0")
    words = TaskSet([Task("words", SequenceLabels(3))])
    with pytest.raises(UsageError, match="its state is of a row, but 'words' reads a 'sequence'"):
        make("multimodn", words)
    silent = Several()
    del silent.branches["text"].width
    with pytest.raises(UsageError, match="the encoder's branch 'text', a Part, does not tell"):
        MultiModN.build(silent, 0, TASKS)
