"""Hard sharing: the same outputs and gradients as a plain loop over heads, in fewer operators."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from polytask.errors import UsageError
from polytask.share import HardSharing
from polytask.tasks import TaskSet

ODD_NAMES = ("depth", "a.b", "a%2Eb", "type", "keys", "two words", "ä/ö", "", "heads")


class Features(nn.Module):
    """Gives the features named, of 6 channels each, from rows of 5 numbers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.layer = nn.Linear(5, 6)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        row = self.layer(inputs).relu()
        sequence = torch.stack([row, row * 2, row.flip(1)], dim=1)
        every = {
            "row": row,
            "sequence": sequence,
            "map": row[:, :, None, None].expand(-1, -1, 2, 2),
        }
        return {name: every[name] for name in self.names}


class Count(TorchDispatchMode):
    """Counts the operators that do arithmetic; views and the one concatenation are free."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls += name not in {"split_with_sizes", "split", "t", "view", "detach", "cat"}
        return func(*args, **(kwargs or {}))


def mixed_model() -> tuple[HardSharing, dict[str, str]]:
    torch.manual_seed(0)
    heads = {
        "a": nn.Linear(6, 1),
        "dense": nn.Conv2d(6, 2, 1),
        "b.c": nn.Linear(6, 4),
        "deep": nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1)),
        "bare": nn.Linear(6, 2, bias=False),
        "slots": nn.Linear(6, 7),
        "tags": nn.Linear(6, 2),
    }
    reads = {"dense": "map", "slots": "sequence", "tags": "sequence"}
    return HardSharing(Features("row", "sequence", "map"), heads, reads), reads


def test_outputs_and_gradients_are_those_of_a_loop_over_the_heads():
    model, reads = mixed_model()
    inputs = torch.randn(9, 5)
    outputs = model(inputs)
    features = model.encoder(inputs)
    expected = {t: model.head(t)(features[reads.get(t, "row")]) for t in model.tasks}
    assert tuple(outputs) == model.tasks == ("a", "dense", "b.c", "deep", "bare", "slots", "tags")
    parameters = list(model.parameters())
    for task, output in outputs.items():
        torch.testing.assert_close(output, expected[task], rtol=1e-6, atol=1e-6)
    factors = {task: torch.randn_like(output) for task, output in outputs.items()}
    ours, plain = (
        torch.autograd.grad(sum((o[t] * factors[t]).sum() for t in o), parameters)
        for o in (outputs, expected)
    )
    for grad, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-5, atol=1e-5)


def test_only_what_is_asked_runs_and_in_the_order_asked():
    model, _ = mixed_model()
    ran = []
    model.encoder.register_forward_hook(lambda *_: ran.append("encoder"))
    for task in model.tasks:
        model.head(task).register_forward_hook(lambda *_, task=task: ran.append(task))
    inputs = torch.randn(4, 5)
    assert tuple(model(inputs, tasks=("deep", "a"))) == ("deep", "a")
    assert sorted(ran) == ["a", "deep", "encoder"]
    ran.clear()
    assert model(inputs, tasks=()) == {}
    assert ran == []


def test_the_number_of_operators_does_not_grow_with_the_number_of_tasks():
    counts = []
    for tasks in (2, 139):
        heads = {f"task {i}": nn.Linear(6, 1) for i in range(tasks)}
        model = HardSharing(nn.Linear(5, 6), heads)
        inputs = torch.randn(3, 5)
        with Count() as count:
            model(inputs)
        counts.append(count.calls)
    assert counts == [2, 2]  # one product for the encoder, one for all heads


def test_hooked_and_subclassed_linear_heads_are_called_as_modules():
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    heads = {"a": Doubled(6, 1), "b": nn.Linear(6, 1), "c": nn.Linear(6, 1)}
    model = HardSharing(nn.Linear(5, 6), heads)
    heads["b"].register_forward_hook(lambda module, args, output: output + 1)
    inputs = torch.randn(3, 5)
    features, outputs = model.encoder(inputs), model(inputs)
    for task, head in heads.items():
        torch.testing.assert_close(outputs[task], head(features))


def test_a_replaced_head_takes_part():
    model = HardSharing(nn.Linear(5, 6), {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
    key = next(iter(model.heads))
    model.heads[key] = nn.Linear(6, 3)
    assert model(torch.randn(2, 5))["a"].shape == (2, 3)


def test_every_name_is_a_task_and_survives_a_checkpoint():
    def build() -> HardSharing:
        return HardSharing(nn.Linear(5, 6), {name: nn.Linear(6, 1) for name in ODD_NAMES})

    first, second = build(), build()
    second.load_state_dict(first.state_dict())
    inputs = torch.randn(3, 5)
    for name in ODD_NAMES:
        torch.testing.assert_close(first(inputs)[name], second(inputs, tasks=(name,))[name])
        assert [p.shape for p in first.task_parameters(name)] == [(1, 6), (1,)]
    assert len(first.state_dict()) == 2 + 2 * len(ODD_NAMES)


def test_parameters_are_split_into_shared_and_each_tasks_own():
    model, _ = mixed_model()
    shared = model.shared_parameters()
    own = [p for task in model.tasks for p in model.task_parameters(task)]
    assert [id(p) for p in shared] == [id(p) for p in model.encoder.parameters()]
    assert sorted(map(id, [*shared, *own])) == sorted(map(id, model.parameters()))
    alone = HardSharing(nn.Linear(5, 6), {"only": nn.Linear(6, 1)})
    assert alone.shared_parameters() == list(alone.encoder.parameters())


def test_heads_come_from_the_kinds_of_a_task_set():
    from polytask.tasks import Binary, Multiclass, SequenceLabels, Task

    tasks = TaskSet([Task("x", Binary()), Task("y", Multiclass(3)), Task("z", SequenceLabels(4))])
    outputs = HardSharing.build(Features("row", "sequence"), 6, tasks)(torch.randn(8, 5))
    shapes = {task: tuple(output.shape) for task, output in outputs.items()}
    assert shapes == {"x": (8, 1), "y": (8, 3), "z": (8, 3, 4)}


def test_wrong_use_says_what_to_do():
    model, _ = mixed_model()
    with pytest.raises(UsageError, match=r"Unknown task 'slot'. Did you mean 'slots'\?"):
        model(torch.randn(2, 5), tasks=("slot",))
    with pytest.raises(UsageError, match="Unknown task 'slits'"):
        model.task_parameters("slits")
    with pytest.raises(UsageError, match="at least one task"):
        HardSharing(nn.Linear(5, 6), {})
    with pytest.raises(UsageError, match="Did you mean 'depth'"):
        HardSharing(nn.Linear(5, 6), {"depth": nn.Linear(6, 1)}, {"dept": "map"})
    blind = HardSharing(Features("row"), {"s": nn.Linear(6, 1)}, {"s": "sequence"})
    with pytest.raises(UsageError, match=r"'s' reads the feature 'sequence', but .* gives 'row'"):
        blind(torch.randn(2, 5))
