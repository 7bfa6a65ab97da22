"""The result's place: it appears whole or not at all, nothing else is touched, faults are named."""

import ctypes
import errno
import hashlib
import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from polytask.errors import DataError, RunError, UsageError
from polytask.merge import TIES, Average, Options, TaskArithmetic, merge, prepare, read_recipe
from polytask.merge.base import GRAIN
from polytask.merge.output import shards

from .saved import base, load, same, save, tuned


@pytest.fixture
def three(tmp_path):
    start = base()
    return save(tmp_path / "base", start), [
        save(tmp_path / f"m{i}", tuned(start, i)) for i in (1, 2)
    ]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_holds_weights_configuration_tokenizer_and_recipe(three, tmp_path):
    start, models = three
    (start / "config.json").write_text('{"model_type": "x", "torch_dtype": "float32"}')
    (start / "tokenizer.json").write_text("{}")
    (start / "modeling_x.py").write_text("raise SystemExit")
    out = tmp_path / "deep" / "out"
    merge(start, models, TIES(0.5), out=out, options=Options(dtype=torch.bfloat16))
    assert {p.name for p in out.iterdir()} == {
        "config.json", "merge.yaml", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert list(out.parent.iterdir()) == [out]


def test_a_single_file_can_be_asked_for(three, tmp_path):
    start, models = three
    out = tmp_path / "one" / "merged.safetensors"
    merge(start, models, TaskArithmetic(), out=out, options=Options(shard=1000))
    expected = merge(start, models, TaskArithmetic())
    assert same(load(out.parent), expected)
    assert {p.name for p in out.parent.iterdir()} == {"merged.safetensors", "merged.merge.yaml"}


def test_shards_have_an_index_that_transformers_reads(three, tmp_path):
    start, models = three
    merge(start, models, Average(), out=tmp_path / "out", options=Options(shard=170_000))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    total = sum(v.numel() * v.element_size() for v in load(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total
    again = merge(None, [tmp_path / "out"], Average())
    assert same(again, load(tmp_path / "out"))


@pytest.mark.parametrize(
    "method", [TIES(0.5, scale=2.0, weights=(1.0, 0.25)), Average(), TaskArithmetic(0.5)]
)
def test_the_recipe_that_is_written_makes_the_same_model_again(three, tmp_path, method):
    start, models = three
    base_model = start if method.needs_base else None
    merge(base_model, models, method, out=tmp_path / "out", options=Options(leave_out=("*.norm",)))
    job = read_recipe(tmp_path / "out" / "merge.yaml").job(Options())
    job.run(tmp_path / "again")
    assert same(load(tmp_path / "again"), load(tmp_path / "out"))


def test_what_is_there_already_is_left_as_it_is(three, tmp_path):
    start, models = three
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("out", "file", "link", "base"):
        with pytest.raises(UsageError, match="exists and is left as it is"):
            merge(start, models, Average(), out=tmp_path / name)
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "empty").mkdir()
    merge(start, models, Average(), out=tmp_path / "empty")
    assert load(tmp_path / "empty")


def test_a_link_in_the_place_of_the_hidden_folder_is_not_followed(three, tmp_path):
    start, models = three
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / ".out.merging").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="is a link"):
        merge(start, models, Average(), out=tmp_path / "out")
    assert contents(tmp_path / "precious") == {"file": b"kept"}


def test_a_link_in_the_place_of_a_shard_is_not_followed(three, tmp_path):
    start, models = three
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "model.safetensors").symlink_to(tmp_path / "precious")
    merge(start, models, Average(), out=tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "kept"
    assert stat.S_ISREG((tmp_path / "out" / "model.safetensors").lstat().st_mode)


def test_two_merges_into_one_place_do_not_mix(three, tmp_path):
    start, models = three
    inside, go = threading.Event(), threading.Event()

    class Wait:
        def phase(self, text, total):
            inside.set()
            go.wait(30)

        def advance(self, done):
            pass

    first = threading.Thread(
        target=merge,
        args=(start, models, Average()),
        kwargs={"out": tmp_path / "out", "progress": Wait()},
    )
    first.start()
    assert inside.wait(30)
    with pytest.raises(RunError, match="Another command is working"):
        merge(start, models, Average(), out=tmp_path / "out")
    go.set()
    first.join()
    assert load(tmp_path / "out")


def test_too_little_room_on_the_disk_is_said_before_anything_is_written(
    three, tmp_path, monkeypatch
):
    start, models = three
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage())
    with pytest.raises(RunError, match=r"needs .* bytes more, the disk of .* has 1,000 free"):
        merge(start, models, Average(), out=tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "m1", "m2"}


class Usage:
    free = 1000


def test_a_full_disk_keeps_what_is_done_and_the_merge_goes_on(three, tmp_path, monkeypatch):
    start, models = three
    write, left = os.pwrite, [4]

    def full(handle, view, at):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, view, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=r"is full. Free some space and give the same merge again"):
        merge(start, models, Average(), out=tmp_path / "out", options=Options(chunk=GRAIN))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.merging").is_dir()
    monkeypatch.undo()
    totals = []

    class Seen:
        def phase(self, text, total):
            totals.append(total)

        def advance(self, done):
            pass

    merge(
        start,
        models,
        Average(),
        out=tmp_path / "out",
        options=Options(chunk=GRAIN),
        progress=Seen(),
    )
    assert totals[0] < sum(v.numel() for v in base().values())
    assert same(load(tmp_path / "out"), merge(start, models, Average()))


@pytest.fixture
def reserving(monkeypatch):
    """Return a function that makes setting room aside end with an error number, and the calls."""
    calls = []

    def ends(number):
        def fallocate(handle, mode, at, size):
            calls.append((at.value, size.value))
            ctypes.set_errno(number)
            return -1

        system = SimpleNamespace(fallocate64=fallocate)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: system)
        return calls

    return ends


def test_room_is_set_aside_before_anything_is_written(three, tmp_path, reserving):
    start, models = three
    sizes = [path.stat().st_size for path in start.glob("*.safetensors")]
    calls = reserving(errno.ENOSPC)
    with pytest.raises(RunError, match=r"is full. Free some space and give the same merge again"):
        merge(start, models, Average(), out=tmp_path / "out")
    ((at, size),) = calls
    assert at == 0
    assert size >= sum(sizes) - 1000  # all of it, but for headers
    assert {p.name for p in tmp_path.iterdir()} == {"base", "m1", "m2"}


def test_a_disk_that_sets_no_room_aside_is_written_all_the_same(three, tmp_path, reserving):
    start, models = three
    expected = merge(start, models, Average())
    calls = reserving(errno.EOPNOTSUPP)
    merge(start, models, Average(), out=tmp_path / "out")
    assert calls
    assert same(load(tmp_path / "out"), expected)


def test_tensors_begin_where_lines_of_the_cache_do(three, tmp_path):
    start, models = three
    out = tmp_path / "merged.safetensors"
    merge(start, models, Average(), out=out)
    with out.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    assert (8 + length) % 64 == 0


def test_a_place_that_cannot_be_written_is_named(three, tmp_path):
    start, models = three
    (tmp_path / "file").write_text("")
    with pytest.raises((RunError, UsageError), match="file"):
        merge(start, models, Average(), out=tmp_path / "file" / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", [Average(), TIES(), TaskArithmetic()])
def test_what_is_not_finite_is_refused_and_named_or_kept_by_choice(tmp_path, value, method):
    start = {"a": torch.zeros(4), "b": torch.ones(70_000)}
    good, bad = tuned(start, 1), tuned(start, 2)
    bad["b"][66_666] = value
    word = "NaN" if value != value else "infinite"
    with pytest.raises(DataError, match=f"Tensor 'b' of model 2 holds values that are {word}"):
        merge(start, [good, bad], method, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    options = Options(nonfinite="continue", chunk=GRAIN)
    with pytest.warns(
        UserWarning, match="'b' is not finite in model 2; it was merged all the same"
    ):
        found = merge(start, [good, bad], method, options=options)
    rest = torch.arange(70_000) != 66_666
    assert found["b"][rest].isfinite().all()
    assert found["a"].isfinite().all()


def test_missing_and_extra_tensors_are_counted_and_named():
    start = {f"t{i}": torch.zeros(2) for i in range(6)}
    less = {n: v for n, v in start.items() if n in ("t0", "t1")}
    with pytest.raises(
        DataError, match=r"model 1 lacks 't2', 't3', 't4' and 1 more, against the base"
    ):
        merge(start, [less], TaskArithmetic())
    more = start | {"head.x": torch.zeros(3)}
    with pytest.raises(DataError, match=r"model 1 adds 'head.x', against the base.*leave_out"):
        merge(start, [more], TaskArithmetic())
    found = merge(start, [more], TaskArithmetic(), options=Options(leave_out=("head.*",)))
    assert found.keys() == start.keys()


def test_shapes_that_differ_are_named_with_what_to_do():
    start = {"w": torch.zeros(4, 3)}
    with pytest.raises(
        DataError, match=r"'w' has shape \(4, 3\) in the base and \(5, 3\) in model 1.*vocab"
    ):
        merge(start, [{"w": torch.zeros(5, 3)}], TaskArithmetic())
    with pytest.raises(DataError, match=r"'w' has shape.*Merge models of one architecture"):
        merge(start, [{"w": torch.zeros(4, 4)}], TaskArithmetic())


def test_buffers_that_differ_are_named_or_taken_from_the_base():
    start = {"w": torch.zeros(3), "steps": torch.tensor(5)}
    other = {"w": torch.zeros(3), "steps": torch.tensor(6)}
    with pytest.raises(
        DataError, match=r"'steps' is int64, which is not merged but copied, and model 1"
    ):
        merge(start, [other], TaskArithmetic())
    found = merge(start, [other], TaskArithmetic(), options=Options(buffers="base"))
    assert found["steps"] == 5
    mixed = {"w": torch.zeros(3), "steps": torch.tensor(5.0)}
    with pytest.raises(DataError, match="'steps'"):
        merge(start, [mixed], TaskArithmetic())


def test_tied_weights_that_some_files_leave_out():
    embed = torch.randn(6, 4)
    short = {"embed.weight": embed, "w": torch.zeros(2)}
    long = {"embed.weight": embed * 1.1, "lm_head.weight": embed * 1.1, "w": torch.ones(2)}
    found = merge(short, [long], TaskArithmetic(1.0))
    assert found.keys() == short.keys()
    found = merge(long, [short], TaskArithmetic(1.0))
    assert found.keys() == long.keys()
    assert torch.equal(found["lm_head.weight"], found["embed.weight"])
    apart = long | {"lm_head.weight": embed}
    with pytest.raises(DataError, match=r"adds 'lm_head.weight'"):
        merge(short, [apart], TaskArithmetic())
    zeros = short | {"b.bias": torch.zeros(3, 3), "c.bias": torch.zeros(3, 3)}
    with pytest.raises(DataError, match=r"lacks 'c.bias'"):
        merge(zeros, [{n: v for n, v in zeros.items() if n != "c.bias"}], TaskArithmetic())


def test_a_base_that_is_none_is_warned_of():
    start = {
        f"w{i}": torch.randn(20, 20, generator=torch.Generator().manual_seed(i)) for i in range(4)
    }
    near = {n: v + 0.05 * torch.randn(20, 20) for n, v in start.items()}
    stranger = {n: v.flip(0).roll(3, 1) for n, v in start.items()}
    assert prepare(start, [near], TaskArithmetic()).warnings == ()
    (text,) = prepare(start, [near, stranger], TaskArithmetic()).warnings
    assert text.startswith("model 2 lies 1.")
    assert "Is that its base?" in text
    with pytest.warns(UserWarning, match="model 2 lies"):
        merge(start, [near, stranger], TaskArithmetic())


def test_a_flipped_byte_is_found_where_a_checksum_lies_beside(three, tmp_path):
    start, models = three
    file = models[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    (models[0] / "SHA256SUMS").write_text(f"{'0' * 64}  other.bin\n{digest} *model.safetensors\n")
    merge(start, models, Average(), out=tmp_path / "good")
    content[-100] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"model.safetensors is damaged: its SHA-256 is"):
        merge(start, models, Average(), out=tmp_path / "bad")
    merge(start, models, Average(), out=tmp_path / "unchecked", options=Options(checksums=False))
    (models[0] / "SHA256SUMS").unlink()
    (models[0] / "model.safetensors.sha256").write_text(digest)
    with pytest.raises(DataError, match="is damaged"):
        merge(start, models, Average(), out=tmp_path / "bad")
    (models[0] / "model.safetensors.sha256").write_text("nonsense")
    with pytest.raises(DataError, match="holds no SHA-256"):
        merge(start, models, Average(), out=tmp_path / "bad")


def test_modules_merge_into_what_a_module_loads():
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    start, *models = made
    models[0].load_state_dict(start.state_dict())
    models[1].load_state_dict(start.state_dict())
    with torch.no_grad():
        models[0][0].weight *= 1.5
    found = merge(start, models, TaskArithmetic(1.0), options=Options(buffers="base"))
    start.load_state_dict(found)
    assert torch.equal(start[0].weight, models[0][0].weight)
    assert found["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"chunk": 5}, "multiple of 16384"),
        ({"nonfinite": "skip"}, "'refuse' or 'continue'"),
        ({"buffers": "mean"}, "'refuse' or 'base'"),
        ({"vocabulary": "all"}, "'base' or 'union' or None"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"shard": 0}, "shard is 0 bytes"),
        ({"leave_out": "heads.*"}, "give a tuple of patterns"),
    ],
)
def test_a_wrong_option_is_answered_with_what_to_do(options, said):
    with pytest.raises(UsageError, match=said):
        Options(**options)


@pytest.mark.parametrize(
    ("models", "method", "said"),
    [
        ([], Average(), "nothing to merge"),
        ("path", Average(), "give a list of models"),
        ([{"w": torch.zeros(2)}], TaskArithmetic(), "TaskArithmetic needs the base model"),
        ([{"w": torch.zeros(2)}] * 2, Average((1.0,)), "1 weights for 2 tuned models"),
    ],
)
def test_a_merge_that_cannot_be_is_refused(models, method, said):
    with pytest.raises(UsageError, match=said):
        merge(None, models, method)


def test_models_without_any_float_are_refused():
    with pytest.raises(DataError, match="no tensor of floating point"):
        merge(None, [{"n": torch.arange(3)}], Average())


def test_shards_fill_up_in_order(tmp_path):
    save_file(
        {f"t{i}": torch.zeros(n) for i, n in enumerate((5, 5, 100, 1, 1))},
        tmp_path / "m.safetensors",
    )
    from polytask.merge.files import open_model

    entries = open_model(tmp_path / "m.safetensors", "m").entries
    ordered = {name: entries[name] for name in sorted(entries)}
    assert shards(ordered, 40) == [["t0", "t1"], ["t2"], ["t3", "t4"]]
