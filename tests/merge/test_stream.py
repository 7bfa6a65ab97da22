"""The walk through models: the same bits however it is cut, killed or spread over threads."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from polytask.catalog import METHODS
from polytask.errors import RunError, UsageError
from polytask.merge import (
    SLERP,
    TIES,
    Average,
    ModelStock,
    Options,
    TaskArithmetic,
    merge,
    prepare,
)
from polytask.merge.base import GRAIN, Merge

from .saved import base, elsewhere, load, mixed, same, save, tuned


def streamed(row) -> bool:
    target = row.load() if row.room == "merge" else None
    return isinstance(target, type) and issubclass(target, Merge)


ROWS = [row for row in METHODS if streamed(row)]


def method(row) -> Merge:
    return row.load()()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return mixed(tmp_path_factory.mktemp("family"))


def taken(chosen: Merge, models):
    return models[: chosen.most] if chosen.most else models


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_neither_pieces_nor_threads_nor_shards_change_a_bit(row, family, tmp_path):
    start, base_path, models, paths = family
    chosen = method(row)
    expected = merge(start, taken(chosen, models), chosen, options=Options(chunk=8 * GRAIN))
    for i, (threads, chunk, shard) in enumerate([(1, GRAIN, 1 << 40), (3, 2 * GRAIN, 100_000)]):
        out = tmp_path / f"out{i}"
        options = Options(threads=threads, chunk=chunk, shard=shard)
        merge(base_path, taken(chosen, paths), chosen, out=out, options=options)
        assert same(load(out), expected)
    in_memory = merge(start, taken(chosen, models), chosen, options=Options(threads=2, chunk=GRAIN))
    assert same(in_memory, expected)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_streamed_tensor_is_what_the_method_makes_of_it_whole(row):
    """One tensor is the whole model, so the engine must agree with the method called on it."""
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(150, 220, generator=draw)
    models = [start + 0.1 * torch.randn(150, 220, generator=draw) for _ in range(3)]
    chosen = method(row)
    models = taken(chosen, models)
    found = merge({"w": start}, [{"w": m} for m in models], chosen, options=Options(chunk=GRAIN))
    expected = chosen(start, torch.stack(models), "w")
    assert torch.equal(found["w"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "chosen",
    [Average(), Average((1.0, 2.0, 0.5, 1.0)), TaskArithmetic(), SLERP(0.3), ModelStock()],
    ids=repr,
)
def test_a_mixture_formed_as_it_is_read_is_what_the_method_makes_of_it(chosen, dtype):
    """Scales of 0.3 on few different changes: many of them end exactly between two values."""
    draw = torch.Generator().manual_seed(5)
    start = (torch.randn(40_000, generator=draw) * 0.02).to(dtype)
    tuned_MP = (start + 0.002 * torch.randn(4, 40_000, generator=draw)).to(dtype)[: chosen.most]
    options = Options(chunk=GRAIN)
    found = merge({"w": start}, [{"w": one} for one in tuned_MP], chosen, options=options)["w"]
    assert torch.equal(found, chosen(start, tuned_MP, "w"))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_element_of_an_average_is_misrounded(dtype, count):
    draw = torch.Generator().manual_seed(count)
    stacked = (torch.randn(count, 100_000, generator=draw) * 0.02).to(dtype)
    found = merge(None, [{"w": one} for one in stacked], Average())["w"]
    exact = stacked.double().sum(0) / count
    # The nearest value of the dtype: no neighbour is nearer.
    for other in (torch.inf, -torch.inf):
        neighbour = torch.nextafter(found, torch.full_like(found, other)).double()
        assert ((exact - found.double()).abs() <= (exact - neighbour).abs()).all()


def test_float64_files_are_merged_in_float64():
    start = {"w": torch.randn(50, dtype=torch.float64)}
    models = [{"w": start["w"] + torch.randn(50, dtype=torch.float64)} for _ in range(2)]
    found = merge(start, models, TaskArithmetic(0.5))["w"]
    expected = start["w"] + 0.5 * (models[0]["w"] - start["w"] + (models[1]["w"] - start["w"]))
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-15, atol=1e-15)
    same_models = merge(start, [start, start], TaskArithmetic(0.3))["w"]
    assert torch.equal(same_models, start["w"])


def test_the_dtype_of_the_result_is_the_bases_or_the_one_asked_for():
    start = {"w": torch.randn(5).bfloat16(), "n": torch.randn(3)}
    models = [{"w": torch.randn(5), "n": torch.randn(3).half()}]
    found = merge(start, models, TaskArithmetic())
    assert {n: v.dtype for n, v in found.items()} == {"w": torch.bfloat16, "n": torch.float32}
    found = merge(start, models, TaskArithmetic(), options=Options(dtype=torch.float16))
    assert {v.dtype for v in found.values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_leaving_the_range_of_the_dtype_raises_and_names_the_tensor(dtype, tmp_path):
    most = torch.finfo(dtype).max
    start = {"ok": torch.zeros(3), "big": torch.full((3,), float(most) * 0.9)}
    models = [{"ok": torch.zeros(3), "big": start["big"] * 1.1}] * 2
    with pytest.raises(RunError, match=r"Tensor 'big'.*out of the range of"):
        merge(start, models, TaskArithmetic(5.0), out=tmp_path / "m", options=Options(dtype=dtype))
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import json, resource, sys
from pathlib import Path
from polytask.merge import merge, prepare, Options, TIES, TaskArithmetic

def now():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"): return int(line.split()[1]) * 1024

home, threads = Path(sys.argv[1]), int(sys.argv[2])
paths = [home / f"m{i}" for i in range(2)]
found = {}
for method in (TaskArithmetic(), TIES()):
    # The peak so far is that of importing and of what ran before; it may only grow by a bound.
    before = now()
    job = prepare(home / "base", paths, method, Options(threads=threads))
    job.run(home / f"out-{type(method).__name__}-{threads}")
    found[type(method).__name__] = [now() - before, job.need.memory]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_below_what_was_stated_whatever_the_size_of_the_model(tmp_path):
    """Three models of 60 MB each, in one tensor of 48 MB and others."""
    shapes = {"embed.weight": (12_000, 1000), **{f"layers.{i}.w": (1000, 1000) for i in range(3)}}
    start = base(shapes=shapes)
    save(tmp_path / "base", start)
    for i in range(2):
        save(tmp_path / f"m{i}", tuned(start, i))
    del start
    found = json.loads(elsewhere(MEASURED, tmp_path, 1).stdout)
    for name, (grown, stated) in found.items():
        assert grown <= stated <= 64 << 20, name


def test_threads_are_given_back(family):
    start, _, models, _ = family
    before = torch.get_num_threads()
    merge(start, models, Average(), options=Options(threads=2))
    assert torch.get_num_threads() == before


def test_settings_may_differ_between_tensors_unless_the_whole_model_is_looked_at(family):
    start, _, models, _ = family

    def of(name):
        return TaskArithmetic(0.0) if "embed" in name else TaskArithmetic(1.0)

    found, _ = prepare(start, models[:1], of).tensors()
    assert torch.equal(found["embed.weight"], start["embed.weight"])
    assert torch.equal(found["layers.0.w"], models[0]["layers.0.w"])
    with pytest.raises(UsageError, match=r"TIES looks at the whole model at once"):
        prepare(start, models, lambda n: TIES(0.1 if "embed" in n else 0.2)).tensors()


def test_progress_adds_up(family):
    start, _, models, _ = family
    phases = []

    class Seen:
        def phase(self, text, total):
            phases.append([text, total, 0])

        def advance(self, done):
            phases[-1][2] += done

    merge(start, models, TIES(), options=Options(threads=2, chunk=GRAIN), progress=Seen())
    assert [text for text, _, _ in phases][-1] == "merging"
    assert all(total == done for _, total, done in phases), phases
    floats = sum(v.numel() for v in start.values() if v.is_floating_point())
    for text, total, _ in itertools.islice(phases, len(phases) - 1):
        assert text.startswith("looking")
        assert total == floats
