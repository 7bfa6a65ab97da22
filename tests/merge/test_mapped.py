"""Files looked at where the system maps them: the same bytes, little held, short ones refused."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polytask.errors import DataError
from polytask.kernels import missing
from polytask.merge import TIES, Average, Options, TaskArithmetic, mapped, merge, prepare
from polytask.merge.files import FileModel, MemoryModel, open_model
from polytask.merge.mapped import BEHIND, Mapped, Trails
from polytask.merge.need import MAPPED

from .saved import elsewhere

needs_kernels = pytest.mark.skipif(bool(missing()), reason=f"no kernels: {missing()}")


def file_of(path: Path, size: int) -> Path:
    """Write bytes that tell where they stand."""
    path.write_bytes(bytes(i // 4096 % 251 for i in range(0, size, 4096) for _ in range(4096)))
    return path


def looked_at(place: int, count: int) -> bytes:
    import ctypes

    return ctypes.string_at(place, count)


def mapping(path: Path) -> Mapped:
    return Mapped(path, os.open(path, os.O_RDONLY))


def test_bytes_are_those_of_the_file_in_any_order(tmp_path):
    path = file_of(tmp_path / "file", 5 * BEHIND + 4096)
    whole, file, trails = path.read_bytes(), mapping(path), Trails()
    size = len(whole)
    for begin in (0, 10, BEHIND - 7, BEHIND + 1, 4 * BEHIND, 3, 5 * BEHIND + 4000, 2 * BEHIND + 11):
        place = file.place("m", "t", begin, min(begin + 90, size), trails)
        assert looked_at(place, min(90, size - begin)) == whole[begin : begin + 90]


def test_what_was_looked_at_is_let_go_a_little_behind(tmp_path):
    path = file_of(tmp_path / "file", 8 * BEHIND)
    file, trails, let_go = mapping(path), Trails(), []
    file.let_go = lambda begin, end: let_go.append((begin, end))
    for begin in range(0, 8 * BEHIND, BEHIND // 2):
        file.place("m", "t", begin, begin + BEHIND // 2, trails)
        held = trails["m"].end - trails["m"].begin
        assert held <= BEHIND + BEHIND // 2
    assert [begin for begin, _ in let_go] == [BEHIND * i for i in range(7)]
    assert all(end == begin + BEHIND for begin, end in let_go)
    file.place("m", "t", 0, 5, trails)  # from the beginning: all of the end is let go
    assert let_go[-1] == (7 * BEHIND, 8 * BEHIND)
    assert (trails["m"].begin, trails["m"].end) == (0, 5)


def test_another_file_of_the_model_lets_the_first_go(tmp_path):
    files = [mapping(file_of(tmp_path / name, 4096)) for name in "ab"]
    trails, let_go = Trails(), []
    files[0].let_go = lambda begin, end: let_go.append((begin, end))
    files[0].place("m", "t", 0, 100, trails)
    files[1].place("other", "t", 0, 100, trails)
    assert let_go == []
    files[1].place("m", "t", 0, 100, trails)
    assert let_go == [(0, 100)]
    assert len(trails) == 2


def test_a_file_that_became_shorter_is_refused_before_it_is_looked_at(tmp_path):
    path = file_of(tmp_path / "file", 2 * 4096)
    file, trails = mapping(path), Trails()
    file.place("m", "t", 0, 8192, trails)
    os.truncate(path, 4096)
    file.place("m", "t", 0, 4096, trails)
    with pytest.raises(DataError, match=r"file ends inside tensor 't'.*cut short"):
        file.place("m", "t", 4000, 4097, trails)


@needs_kernels
def test_a_model_cut_short_while_it_is_merged_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    base = {"a": torch.zeros(40_000), "z": torch.ones(40_000)}
    for name in ("base", "tuned"):
        save_file(base, tmp_path / f"{name}.safetensors")
    job = prepare(tmp_path / "base.safetensors", [tmp_path / "tuned.safetensors"], TaskArithmetic())
    place = Mapped.place

    def cut(self, model, name, begin, end, trails):
        if name == "z":
            os.truncate(tmp_path / "tuned.safetensors", 200_000)
        return place(self, model, name, begin, end, trails)

    monkeypatch.setattr(Mapped, "place", cut)
    with pytest.raises(DataError, match=r"tuned.safetensors ends inside tensor 'z'"):
        job.run(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base.safetensors", "tuned.safetensors"}


@needs_kernels
@pytest.mark.parametrize("unable", [OSError("no such device"), ValueError("empty")], ids=str)
def test_where_the_system_maps_nothing_files_are_read(unable, tmp_path, monkeypatch):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({"a": torch.randn(5, generator=torch.Generator().manual_seed(i))}, paths[-1])
    wanted = merge(paths[0], paths[1:], TIES())

    def refuse(*_: object, **__: object) -> None:
        raise unable

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert open_model(paths[0], "m").place("a", 0, 1, Trails()) is None
    assert torch.equal(merge(paths[0], paths[1:], TIES())["a"], wanted["a"])


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_many_models_are_read_and_not_held(threads, tmp_path, monkeypatch):
    asked = []
    place = FileModel.place
    monkeypatch.setattr(
        FileModel, "place", lambda self, *given: asked.append(self) or place(self, *given)
    )
    paths = []
    for i in range(MAPPED // threads + 1):
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({"a": torch.full((300,), float(i))}, paths[-1])
    for number, looked in ((len(paths) - 1, True), (len(paths), False)):
        asked.clear()
        options = Options(threads=threads)
        job = prepare(None, paths[:number], Average(), options)
        assert job.need.mapped == looked
        found, _ = job.tensors()
        assert found["a"].eq((number - 1) / 2).all()
        assert bool(asked) == looked


@needs_kernels
def test_tensors_in_memory_are_not_copied_but_for_those_that_lie_apart():
    every = torch.arange(24.0).reshape(4, 6)
    model = MemoryModel("m", {"whole": every, "turned": every.T, "one": torch.tensor(3.0)})
    assert model.place("whole", 5, 3, Trails()) == every.data_ptr() + 20
    base = {"whole": every, "turned": every.T, "one": torch.tensor(3.0)}
    tuned = {name: value + 1 for name, value in base.items()}
    found = merge(base, [tuned], TaskArithmetic(1.0))
    for name, value in tuned.items():
        assert torch.equal(found[name], value)


HELD = """
import json, sys
from pathlib import Path
from polytask.merge import Average, prepare

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

job = prepare(None, [Path(sys.argv[1])] * 2, Average())
before = peak()
job.run(Path(sys.argv[2]))
print(json.dumps([(peak() - before) * 1024, job.need.memory, job.need.mapped]))
"""


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_what_is_held_does_not_grow_with_the_files(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file({f"{i}": torch.ones(5_000_000) for i in range(8)}, path)  # 160 MB
    held, stated, looked = json.loads(elsewhere(HELD, path, tmp_path / "out").stdout)
    assert looked
    assert held <= min(stated, 40 << 20)


def test_a_system_that_cannot_let_go_maps_nothing(tmp_path, monkeypatch):
    path = file_of(tmp_path / "file", 4096)

    monkeypatch.setattr(mapped.mmap, "mmap", lambda *_, **__: object())
    with pytest.raises(OSError, match="does not let go"):
        mapping(path)
