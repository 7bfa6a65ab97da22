"""The compiled library is used only where it is whole, fits this machine and its own sources."""

from __future__ import annotations

import shutil

import pytest
import torch

from polytask import kernels as module
from polytask.errors import UsageError
from polytask.kernels import Library, library, missing
from polytask.merge import TIES, merge


@pytest.mark.parametrize("value", ["2", "", "no"])
def test_the_switch_is_0_or_1(value, monkeypatch):
    monkeypatch.setenv(module.SWITCH, value)
    with pytest.raises(
        UsageError, match=r"POLYTASK_KERNELS is .*; give 0 to compute by torch alone"
    ):
        library()


def test_the_switch_turns_them_off(monkeypatch):
    monkeypatch.setenv(module.SWITCH, "0")
    assert library() is None
    assert missing() == "POLYTASK_KERNELS is 0"


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is loaded yet, and nothing of what is stays."""
    monkeypatch.delenv(module.SWITCH, raising=False)
    module._loaded.cache_clear()
    yield
    module._loaded.cache_clear()


def test_without_a_library_torch_does_it_all_and_the_reason_is_said(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "libkernels.so")
    assert library() is None
    assert missing() == "they were not compiled when polytask was installed"
    base, tuned = {"x": torch.zeros(4)}, {"x": torch.arange(4.0)}
    assert merge(base, [tuned], TIES())["x"].tolist() == [0.0, 0.0, 0.0, 3.0]


def test_a_library_that_is_none_is_left(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "libkernels.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(module, "LIBRARY", broken)
    assert library() is None
    assert missing().startswith("libkernels.so does not load: ")


@pytest.mark.skipif(bool(missing()), reason=f"no kernels: {missing()}")
@pytest.mark.parametrize("changed", ["level.h", "share.c"])
def test_a_library_of_other_sources_is_left(changed, fresh, monkeypatch, tmp_path):
    for source in module.FOLDER.glob("*.[ch]"):
        shutil.copy(source, tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert isinstance(library(), Library)
    module._loaded.cache_clear()
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
    assert library() is None
    assert "was compiled from other C files" in missing()
