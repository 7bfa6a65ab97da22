"""Reading: what the format allows is read to the bit; whatever breaks it is refused, by name."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from polytask.errors import DataError, UsageError
from polytask.merge.files import open_model
from polytask.merge.headers import DTYPES, header_of, read_header
from polytask.merge.window import window

from .saved import base, entry, header, save


def read(model, name):
    found = torch.empty(model.entries[name].shape, dtype=model.entries[name].dtype)
    model.read(name, 0, window(found.view(-1)))
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_to_the_bit(tmp_path, shards):
    tensors = base() | {"half": torch.randn(5).half(), "wide": torch.randn(3, 3).double()}
    model = open_model(save(tmp_path / "m", tensors, shards), "m")
    assert set(model.entries) == set(tensors)
    for name, value in tensors.items():
        assert model.entries[name].shape == value.shape
        assert torch.equal(read(model, name), value)


def test_a_stretch_is_read_where_it_is_asked_for(tmp_path):
    values = torch.randn(1000)
    save_file({"a": torch.zeros(3), "b": values}, tmp_path / "m.safetensors")
    model = open_model(tmp_path / "m.safetensors", "m")
    part = torch.empty(17)
    model.read("b", 500, window(part))
    assert torch.equal(part, values[500:517])


def test_headers_written_here_are_read_by_safetensors_and_back(tmp_path):
    specs = {
        "ä": (torch.bfloat16, (2, 3)),
        "empty": (torch.float32, (0, 7)),
        "s": (torch.int64, ()),
    }
    text, entries = header_of(specs, {"format": "pt"})
    assert len(text) % 8 == 0
    path = tmp_path / "m.safetensors"
    path.write_bytes(text + bytes(max(e.stop for e in entries.values()) - len(text)))
    found, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    assert found == entries
    assert {n: (v.dtype, tuple(v.shape)) for n, v in load_file(path).items()} == specs


GOOD = {"a": entry([2], 0, 8), "b": entry([1], 8, 12)}

BAD = {
    "too short": (b"abc", "its header alone would need"),
    "header longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "would need"),
    "not JSON": (header("{,}"), "is not JSON"),
    "not text": ((2).to_bytes(8, "little") + b"\xff\xfe", "is not JSON"),
    "no object": (header("[1]"), "no JSON object"),
    "deep": (header("[" * 100_000), "is not JSON"),
    "a name twice": (
        header('{"a":' + json.dumps(GOOD["a"]) + ',"a":' + json.dumps(GOOD["a"]) + "}", 8),
        "'a' stands there twice",
    ),
    "no offsets": (header({"a": {"dtype": "F32", "shape": [2]}}, 8), "lacks its dtype, shape or"),
    "an unknown entry": (header({"a": {**GOOD["a"], "x": 1}}, 8), "unknown entry 'x'"),
    "an unknown dtype": (header({"a": entry([2], 0, 8, "F31")}, 8), "unknown dtype 'F31'"),
    "a dtype of another type": (header({"a": entry([2], 0, 8, ["F32"])}, 8), "unknown dtype"),
    "a negative shape": (header({"a": entry([-2], 0, 8)}, 8), "has the shape [-2]"),
    "a fractional shape": (header({"a": entry([2.0], 0, 8)}, 8), "has the shape [2.0]"),
    "a true shape": (header({"a": entry([True, 2], 0, 8)}, 8), "has the shape [True, 2]"),
    "negative offsets": (header({"a": entry([2], -8, 0)}, 8), "byte range [-8, 0]"),
    "a range too small": (header({"a": entry([3], 0, 8)}, 8), "needs 12 bytes and has 8"),
    "a huge shape": (header({"a": entry([1 << 62, 8], 0, 8)}, 8), "needs"),
    "an overlap": (header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12), "'b' overlaps 'a'"),
    "a gap": (header({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, 16), "'b' leaves a gap"),
    "truncated": (header(GOOD, 11), "its tensors end at byte"),
    "too long": (header(GOOD, 13), "its tensors end at byte"),
    "metadata of numbers": (header(GOOD, 12, {"a": 1}), "metadata is no object of texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_breaks_the_format_is_refused_and_named(tmp_path, case):
    content, said = BAD[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_model(path, "m")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_beyond_the_formats_bound_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr("polytask.merge.headers.MOST_HEADER", 50)
    path = tmp_path / "m.safetensors"
    path.write_bytes(header(GOOD, 12))
    with pytest.raises(DataError, match="more than 50"):
        open_model(path, "m")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_of_the_header_raises_dataerror_or_reads_as_safetensors_does(
    tmp_path_factory, data
):
    """Whatever single byte is changed, no other error escapes and nothing is read out of bounds."""
    folder = tmp_path_factory.mktemp("flipped")
    content = bytearray(header(GOOD, 12))
    at = data.draw(st.integers(0, len(content) - 13))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = folder / "m.safetensors"
    path.write_bytes(bytes(content))
    try:
        entries, _ = read_header(path)
    except DataError:
        return
    for one in entries.values():
        assert 8 <= one.start <= one.stop <= len(content)
        assert one.stop - one.start == one.numel * one.dtype.itemsize


def test_every_dtype_name_is_that_of_safetensors(tmp_path):
    for name, dtype in DTYPES.items():
        save_file({"a": torch.zeros(2).to(dtype)}, tmp_path / "m.safetensors")
        assert read_header(tmp_path / "m.safetensors")[0]["a"].dtype == dtype, name


def index(folder, where):
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": where}))
    return path


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a/../../m", "..", "", 3, None]
)
def test_a_shard_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors")
    index(tmp_path / "m", {"a": name})
    with pytest.raises(DataError, match=r"a shard's name must be that of a file beside it"):
        open_model(tmp_path / "m", "m")


def test_a_missing_or_wrong_shard_is_named(tmp_path):
    folder = save(tmp_path / "m", {"a": torch.zeros(2), "b": torch.ones(2)}, 2)
    _, second = sorted(folder.glob("*.safetensors"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(DataError, match=f"names {second.name}, which is missing"):
        open_model(folder, "m")
    second.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{second.name} is damaged"):
        open_model(folder, "m")
    save_file({"b": torch.ones(2), "c": torch.ones(2)}, second)
    with pytest.raises(DataError, match=r"holds 'c', which .*index.json does not place there"):
        open_model(folder, "m")
    save_file({"d": torch.ones(2)}, second)
    with pytest.raises(DataError, match=f"says that {second.name} holds 'b'; it does not"):
        open_model(folder, "m")


def test_an_index_without_a_map_is_refused(tmp_path):
    index(tmp_path / "m", {})
    with pytest.raises(DataError, match="no weight_map"):
        open_model(tmp_path / "m", "m")


def test_links_to_shards_are_followed_as_caches_have_them(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert torch.equal(read(open_model(tmp_path / "m", "m"), "a"), torch.ones(2))


def test_pickled_weights_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80")
    for path in (tmp_path / "m", tmp_path / "m" / "pytorch_model.bin"):
        with pytest.raises(UsageError, match=r"unpickling may run any code.*convert it once"):
            open_model(path, "m")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json"], "holds no safetensors file"),
        (["a.safetensors", "b.safetensors"], "holds 2 safetensors files"),
        (["model.safetensors", "model.safetensors.index.json"], "holds both"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter"),
    ],
)
def test_a_folder_that_leaves_the_model_open_is_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=said):
        open_model(tmp_path, "m")


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "does not exist"), (3, "is a int"), ({"a": [1]}, "'a' is a list")],
)
def test_what_is_no_model_is_refused(source, said):
    with pytest.raises(UsageError, match=said):
        open_model(source, "model 1")


def test_a_file_cut_short_after_its_header_was_read_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    model = open_model(path, "m")
    os.truncate(path, 2000)
    with pytest.raises(DataError, match=r"ends inside tensor 'a'"):
        read(model, "a")


def test_modules_and_state_dicts_are_read_too():
    module = nn.Linear(3, 2)
    model = open_model(module, "m")
    assert torch.equal(read(model, "weight"), module.weight)
    strided = torch.randn(4, 6)[:, ::2]
    assert torch.equal(read(open_model({"a": strided}, "m"), "a"), strided)


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("polytask.merge.files.OPEN_FILES", 2)
    tensors = {f"t{i}": torch.full((3,), float(i)) for i in range(9)}
    model = open_model(save(tmp_path / "m", tensors, 9), "m")
    for _ in range(2):
        assert all(torch.equal(read(model, n), v) for n, v in tensors.items())
    assert len(model._open) <= 2
