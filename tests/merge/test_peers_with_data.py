"""Where FusionBench is at hand: its merges with data and ours of the same models on the same rows.

`test_peers.py` says how to have it. Its searches are written around CLIP; what is run here are the
classes that those are made of, in its own order of steps. Models are small and in float64.

Shapes: T = tasks, N = tensors, F = features.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from polytask.merge import AdaMerging, Concrete, Fisher, Merged, RegMean, Surgery
from polytask.merge.coefficients import named
from polytask.merge.family import Family
from polytask.tasks import Multiclass, Task, TaskSet

from .families import ROWS, inputs, mlp
from .peers import run

TASKS = TaskSet([Task("a", Multiclass(3)), Task("c", Multiclass(2))])
ROUNDS, RATE, RANK, TEMPERATURE = 20, 1e-2, 3, 0.5

CODE = """
import contextlib, io, sys, torch
from safetensors.torch import load_file, save_file
from torch import nn
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import regmean_merging
from fusion_bench.models.masks import MaskModel
from fusion_bench.models.surgery.surgerymodelwrapper import SurgeryModelWrapper
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel
from fusion_bench.models.wrappers.task_wise_fusion import TaskWiseMergedModel
given = load_file(sys.argv[1])
rounds, rank, names = int(sys.argv[3]), int(sys.argv[5]), sys.argv[6].split(",")
rate, temperature = float(sys.argv[4]), 0.5
def of(prefix):
    return {n[len(prefix):]: t.clone() for n, t in given.items() if n.startswith(prefix)}
class Body(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh()).double()
        self.load_state_dict(tensors)
    def forward(self, x):
        return self.body(x)
def base(): return Body(of("base/"))
def tuned(): return [Body(of(f"tuned/{name}/")) for name in names]
def losses(model):
    for name in names:
        head = of(f"head/{name}/")
        yield entropy_loss(nn.functional.linear(
            model(given[f"x/{name}"]), head["head.weight"], head["head.bias"]))
found = {}
def search(module, parameters, merge):
    optimiser = torch.optim.Adam(parameters, lr=rate)
    for step in range(rounds):
        merge(step)
        for loss in losses(module):
            loss.backward(retain_graph=True)
        optimiser.step()
        optimiser.zero_grad()
layers = len(list(base().parameters()))
module = LayerWiseMergedModel(
    torch.full((len(names), layers), 0.3, dtype=torch.float64), base(), tuned())
search(module, [module.merge_weight], lambda step: module.merge_weights())
found["layer"] = module.merge_weight.data.T
module = TaskWiseMergedModel(torch.full((len(names),), 0.3, dtype=torch.float64), base(), tuned())
search(module, [module.merge_weight], lambda step: module.merge_weights())
found["task"] = module.merge_weight.data

module = TaskWiseMergedModel(torch.full((len(names),), 0.3, dtype=torch.float64), base(), tuned())
module.merge_weight.requires_grad_(False)
masks = MaskModel(base(), ignore_untrained_params=True, parameter_type="logits")
masks.fill_(0.0)
rand, drawn = torch.rand, []
torch.rand = lambda shape, **_: drawn.pop(0).reshape(shape)
def masked(step):
    drawn.extend(given[f"drawn/{step}/{name}"] for name, _ in masks.named_parameters())
    mask = masks.sample_mask(mask_type="continuous", temperature=temperature)
    module.merge_weights(task_vector_mask={n: m / torch.mean(m) for n, m in mask.items()})
search(module, masks.parameters(), masked)
torch.rand = rand
found |= {f"mask/{name}": value.data for name, value in masks.named_parameters()}

parameters = {n: [dict(m.named_parameters())[n].data for m in tuned()] for n, _ in
              base().named_parameters()}
merged = merging_with_fisher_weights(
    parameters, [of(f"fisher/{name}/") for name in names],
    torch.ones(len(names), dtype=torch.float64) / len(names))
found |= {f"fisher/{name}": value for name, value in merged.items()}

class Trainer:
    def __init__(self, model, rows):
        self.model, self._rows, self._train_batch_size = model, rows, 8
    def get_train_dataloader(self):
        return [{"x": part} for part in self._rows.split(8)]
    def _prepare_inputs(self, inputs):
        return inputs
models = tuned()
trainers = [Trainer(m, given[f"x/{name}"]) for m, name in zip(models, names)]
with contextlib.redirect_stdout(io.StringIO()):
    merged = regmean_merging(
        models, trainers, [], [len(given[f"x/{name}"]) for name in names], 0.9)
found |= {f"regmean/{name}": value for name, value in merged.items()}

surgery = SurgeryModelWrapper(nn.Identity(), names, projection_dim=5, hidden_dim=rank).double()
for name in names:
    surgery.get_submodule(f"feature_mapping_to_head_down_proj_{name}").weight.data.copy_(
        given[f"down/{name}"])
optimiser = torch.optim.Adam(surgery.collect_trainable_params(), lr=rate)
for step in range(rounds):
    optimiser.zero_grad()
    for name in names:
        features, _, _ = surgery.compute_surgery_features(given[f"merged/{name}"], name)
        nn.functional.l1_loss(features, given[f"wanted/{name}"]).backward()
    optimiser.step()
for name in names:
    features, _, _ = surgery.compute_surgery_features(given[f"merged/{name}"], name)
    found[f"surgery/{name}"] = features.detach()
save_file({n: t.detach().contiguous() for n, t in found.items()}, sys.argv[2])
"""


def mean(family: Family) -> Merged:
    return Merged(family.mean())


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Family, dict[str, Tensor], dict[str, Tensor]]:
    """Return a family, its rows, and what FusionBench finds."""
    home = tmp_path_factory.mktemp("fusionbench")
    family = mlp(TASKS)
    rows = {task: x for task, x in inputs("mlp").items() if task in TASKS.names}
    given = {f"base/{name}": tensor for name, tensor in family.base.items()}
    for index, task in enumerate(TASKS):
        own, x = family.own(task.name), rows[task.name]
        given |= {f"tuned/{task.name}/{n}": t for n, t in family.shared(task.name).items()}
        given |= {f"head/{task.name}/{n}": t for n, t in own.items()}
        given[f"x/{task.name}"] = x
        fisher = Fisher(examples=ROWS).information(family, task, x, index)
        given |= {f"fisher/{task.name}/{n}": t for n, t in fisher.items()}
        head = family.head(task.name)
        given[f"merged/{task.name}"] = family.seen(task.name, head, family.mean(), x)
        given[f"wanted/{task.name}"] = family.seen(task.name, head, None, x)
        width = given[f"merged/{task.name}"].shape[-1]
        start = torch.rand(RANK, width, generator=named(0, task.name)).double()
        given[f"down/{task.name}"] = (2 * start - 1) / width**0.5
    for step in range(ROUNDS):
        for name, tensor in family.base.items():
            drawn = torch.rand(tensor.shape, generator=named(0, name, step))
            given[f"drawn/{step}/{name}"] = drawn.double()
    save_file({n: t.detach().clone().contiguous() for n, t in given.items()}, home / "in")
    tasks = ",".join(TASKS.names)
    run("FUSIONBENCH", CODE, home / "in", home / "out", ROUNDS, RATE, RANK, tasks)
    return family, rows, load_file(home / "out")


def within(prefix: str, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}


@pytest.mark.parametrize("level", ["task", "layer"])
def test_adamerging_finds_the_coefficients_that_fusionbench_finds(both, level) -> None:
    """It adds 1e-8 to each chance before its logarithm."""
    family, rows, theirs = both
    method = AdaMerging(level, learning_rate=RATE, rounds=ROUNDS, batch_size=ROWS)
    ours = method(family, rows).learned["coefficients"]
    assert float((ours - 0.3).abs().max()) > 0.05  # they have gone somewhere
    torch.testing.assert_close(ours.double(), theirs[level], rtol=0, atol=1e-6)


def test_concrete_learns_the_mask_that_fusionbench_learns(both) -> None:
    """Of the same draws."""
    family, rows, theirs = both
    method = Concrete(0.3, TEMPERATURE, RATE, ROUNDS, batch_size=ROWS)
    ours = method(family, rows).learned
    masks = {name: value for name, value in theirs.items() if name.startswith("mask/")}
    assert ours.keys() == masks.keys()
    for name, value in masks.items():
        assert float(value.abs().max()) > 0.05
        torch.testing.assert_close(ours[name].double(), value, rtol=0, atol=1e-5)


def test_fisher_weighs_as_fusionbench_does(both) -> None:
    """Of the same information: what it takes for that itself is another, see `Fisher`."""
    family, rows, theirs = both
    ours = Fisher(examples=ROWS)(family, rows).shared
    assert ours.keys() == within("fisher/", theirs).keys()
    for name, value in within("fisher/", theirs).items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_regmean_gives_what_fusionbench_gives(both) -> None:
    family, rows, theirs = both
    ours = RegMean(examples=ROWS, diagonal=0.9)(family, rows).shared
    assert ours.keys() == within("regmean/", theirs).keys()
    for name, value in within("regmean/", theirs).items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


def test_surgery_corrects_features_as_fusionbench_does(both) -> None:
    family, rows, theirs = both
    method = Surgery(RANK, RATE, ROUNDS, batch_size=ROWS)
    found = method(family, rows, mean(family))
    for task, x in rows.items():
        head, operation = found.before[task]
        z = family.seen(task, head, family.mean(), x)
        with torch.no_grad():
            ours = operation(z)
        assert float(functional.l1_loss(ours, z)) > 1e-3
        torch.testing.assert_close(ours, theirs[f"surgery/{task}"], rtol=0, atol=1e-6)
