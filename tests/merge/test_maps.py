"""Signs and cosines of task vectors, against the same counted element by element in Python."""

import itertools
import math

import pytest
import torch

from polytask.errors import UsageError
from polytask.merge import Options, maps

from .saved import SHAPES, base, elsewhere, mixed, save, tuned


def counted(start, models, names):
    """Return norms, cosines, shares of opposite signs, and the share of splits, one by one."""
    changes = [
        [x - y for n in names for x, y in zip(flat(m[n]), flat(start[n]), strict=True)]
        for m in models
    ]
    norms = [math.sqrt(math.fsum(x * x for x in change)) for change in changes]
    cosines, conflicts = [], []
    for a, b in itertools.combinations(range(len(models)), 2):
        pairs = list(zip(changes[a], changes[b], strict=True))
        lengths = norms[a] * norms[b]
        cosines.append(math.fsum(x * y for x, y in pairs) / lengths if lengths else None)
        both = [x * y < 0 for x, y in pairs if x and y]
        conflicts.append(sum(both) / len(both) if both else None)
    columns = list(zip(*changes, strict=True))
    changed = [column for column in columns if any(column)]
    split = [min(column) < 0 < max(column) for column in changed]
    return norms, cosines, conflicts, sum(split) / len(split) if split else None


def flat(tensor):
    return tensor.double().flatten().tolist()


def same(found, wanted):
    norms, cosines, conflicts, split = wanted
    assert found.norms == pytest.approx(norms, rel=1e-12)
    for got, expected in ((found.cosines, cosines), (found.conflicts, conflicts)):
        assert [x is None for x in got] == [x is None for x in expected]
        assert [x or 0 for x in got] == pytest.approx([x or 0 for x in expected], abs=1e-12)
    assert found.split == pytest.approx(split)


def test_files_of_mixed_kinds_give_what_counting_gives(tmp_path):
    start, folder, models, paths = mixed(tmp_path)
    names = [name for name in SHAPES if math.prod(SHAPES[name])]
    found = maps(folder, paths)
    assert found.labels == ("m0", "m1", "m2")
    layers = [one.name for one in found.layers]
    assert layers == ["embed.weight", "layers.0", "layers.1", "layers.2"]
    assert sum(one.elements for one in found.layers) == found.whole.elements
    same(found.whole, counted(start, models, names))
    for one in found.layers:
        same(one, counted(start, models, [n for n in names if n.startswith(one.name)]))
    # The same from state dicts, under names of one's own; the order of tensors is another.
    again = maps(start, models, labels=("x", "y", "z"))
    assert again.labels == ("x", "y", "z")
    for one, other in zip(again.layers, found.layers, strict=True):
        same(one, (other.norms, other.cosines, other.conflicts, other.split))


def test_what_did_not_change_has_no_angle_and_no_sign():
    start = {"w": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([0.0])}
    moved = {"w": torch.tensor([1.0, 2.5, 2.0]), "b": torch.tensor([1.0])}
    back = {"w": torch.tensor([0.0, 2.0, 4.0]), "b": torch.tensor([0.0])}
    found = maps(start, [start, moved, back])
    assert found.whole.norms == pytest.approx((0.0, 1.5, math.sqrt(2)))
    assert found.whole.cosines == (None, None, pytest.approx(-1 / 1.5 / math.sqrt(2)))
    assert found.whole.conflicts == (None, None, 1.0)  # the only element that both changed
    assert found.whole.split == 1 / 4
    (b, w) = found.layers
    assert (b.name, w.name) == ("b", "w")
    assert b.conflicts == (None, None, None)
    assert b.split == 0


def test_nan_is_undefined_and_leaves_the_other_pairs_alone():
    start = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor([1.0, 1, -1, x])} for x in (1.0, math.nan, 2.0)]
    whole = maps(start, models).whole
    assert [c is None for c in whole.cosines] == [True, False, True]


def test_wrong_use_is_said():
    start = base(shapes={"w": (3,)})
    with pytest.raises(UsageError, match="at least two tuned models"):
        maps(start, [tuned(start, 1)])
    with pytest.raises(UsageError, match="needs the base model"):
        maps(None, [tuned(start, 1), tuned(start, 2)])


def test_tensors_are_left_out_as_in_a_merge():
    start = base()
    found = maps(start, [tuned(start, 1), tuned(start, 2)], Options(leave_out=("layers.*",)))
    assert [one.name for one in found.layers] == ["embed.weight"]


MEASURE = """
import sys
from pathlib import Path
from polytask.merge import maps
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before = peak()
maps(sys.argv[1], sys.argv[2:])
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_models(tmp_path):
    """Four models and a base of 64 MiB each; one tensor of it alone would take 32 in float64."""
    start = {f"layers.{i}.w": torch.randn(4 << 20) for i in range(4)}
    paths = [save(tmp_path / "base", start)]
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        moved = {n: v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in start.items()}
        paths.append(save(tmp_path / f"m{seed}", moved))
    used = float(elsewhere(MEASURE, *paths).stdout)
    assert used < 32, used
