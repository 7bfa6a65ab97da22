"""On a CUDA device: every method gives what it gives on the CPU, from models that are there."""

import copy

import pytest
import torch

from polytask.catalog import METHODS as ROWS
from polytask.merge import merge
from polytask.merge.base import Merge
from polytask.merge.family import Family, Merged
from polytask.merge.fisher import Fisher
from polytask.merge.grafting import Grafting
from polytask.merge.regmean import RegMean

from .families import FAMILIES, TASKS, inputs, targets
from .test_searches import LABELLED, METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WITH_DATA = {**METHODS, "fisher": Fisher(), "regmean": RegMean(), "grafting": Grafting()}
DATA_FREE = [
    row.name
    for row in ROWS
    if row.room == "merge"
    and isinstance(row.load(), type)
    and issubclass(row.load(), Merge)
]  # fmt: skip


def there(family: Family) -> Family:
    """Return the same family on the device."""
    models = {task: copy.deepcopy(family.hooked(task)).cuda() for task in TASKS.names}
    base = copy.deepcopy(next(iter(models.values())))
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in family.base:
                parameter.copy_(family.base[name])
        for name, buffer in base.named_buffers():
            buffer.copy_(family.buffers[name])
    return Family(base, models, TASKS)


def run(name: str, family: Family, kind: str, device: str) -> Merged:
    method = WITH_DATA[name]
    data = {t: x.to(device) for t, x in inputs(kind).items()}
    if name in (*LABELLED, "grafting"):
        truth = {t: y.to(device) for t, y in targets().items()}
        data = {t: (x, truth[t]) for t, x in data.items()}
    if name == "surgery":
        return method(family, data, Merged(family.mean()))
    return method(family, data)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("name", WITH_DATA)
def test_with_data(name, kind):
    family = FAMILIES[kind]()
    here = run(name, family, kind, "cpu")
    found = run(name, there(family), kind, "cuda")
    assert found.losses == pytest.approx(here.losses, rel=1e-5)
    for n, tensor in here.shared.items():
        assert found.shared[n].device.type == "cuda"
        torch.testing.assert_close(found.shared[n].cpu(), tensor, rtol=1e-4, atol=1e-5, msg=n)
    x = inputs(kind)
    for task in TASKS.names:
        out = family.build(task, here)(x[task])
        other = there(family).build(task, found)(x[task].cuda())
        if not isinstance(out, torch.Tensor):
            out, other = out[task], other[task]
        torch.testing.assert_close(other.cpu(), out, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:model . lies")
@pytest.mark.parametrize("name", DATA_FREE)
def test_without_data(name):
    method = next(row.load() for row in ROWS if row.room == "merge" and row.name == name)()
    family = FAMILIES["cnn"]()
    tuned = [family.shared(t) for t in TASKS.names]
    if name == "slerp":
        tuned = tuned[:2]
    here = merge(family.base, tuned, method)
    cuda = [{n: t.cuda() for n, t in model.items()} for model in [family.base, *tuned]]
    found = merge(cuda[0], cuda[1:], method)
    for n, tensor in here.items():
        assert torch.equal(found[n], tensor), n
