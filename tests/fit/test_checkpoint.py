"""A checkpoint is whole or refused: damage, other runs, full disks are named, nothing is lost."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from polytask.balance import IMTLG, Signal, State, Update
from polytask.errors import RunError, UsageError
from polytask.fit import checkpoint, load_weights
from polytask.records import Record

TENSORS = {
    "model/a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "model/none": torch.empty(0, 2),
    "step": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "double": torch.full((2, 2), torch.nan, dtype=torch.float64),
}


def interrupted(tiny: ModuleType, folder: Path, after: int = 5, **settings: Any) -> None:
    with pytest.raises(tiny.Stopped):
        tiny.run(tiny.shared(), folder=folder, stop_after=after, checkpoint_seconds=0, **settings)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, TENSORS, {"x": 1.5})
    found = checkpoint.load(tmp_path)
    assert found is not None
    tensors, state = found
    assert state == {"x": 1.5}
    assert tensors.keys() == TENSORS.keys()
    for name, value in tensors.items():
        assert value.dtype == TENSORS[name].dtype
        assert value.shape == TENSORS[name].shape
        assert value.view(torch.uint8 if value.ndim else value.dtype).equal(
            TENSORS[name].view(torch.uint8 if value.ndim else value.dtype)
        )
    checkpoint.save(tmp_path, 4, TENSORS, {})
    names = ["checkpoint-4.safetensors", "checkpoint.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    checkpoint.remove(tmp_path)
    assert not list(tmp_path.iterdir())
    assert checkpoint.load(tmp_path) is None


def test_views_of_one_storage_are_written_out() -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    assert checkpoint.pack({"a": whole, "b": whole.T, "c": whole[0]})


def test_every_flipped_byte_that_changes_anything_is_found(tmp_path: Path) -> None:
    content = checkpoint.pack(TENSORS)
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    whole = checkpoint.unpack(file, "")
    found = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        file.write_bytes(damaged)
        told = ""
        try:
            tensors = checkpoint.unpack(file, "Delete it.")
        except RunError as error:
            told = str(error)
        if told:
            found += 1
            assert "x.safetensors is damaged" in told
            assert told.endswith("Delete it.")
            continue
        # What remains is blanks of the header and the like: no tensor may differ.
        assert tensors.keys() == whole.keys()
        for name, value in tensors.items():
            assert value.dtype == whole[name].dtype
            assert repr(value.tolist()) == repr(whole[name].tolist())
    assert found > 0.95 * len(content)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_found(tmp_path: Path, length: int) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(checkpoint.pack(TENSORS)[:length])
    with pytest.raises(RunError, match=r"x\.safetensors is damaged.*Delete it\."):
        checkpoint.unpack(file, "Delete it.")


def flip(folder: Path) -> None:
    (file,) = folder.glob("checkpoint-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)


def cut(folder: Path) -> None:
    file = folder / "checkpoint.json"
    file.write_text(file.read_text()[:-40])


def lose(folder: Path) -> None:
    (file,) = folder.glob("checkpoint-*.safetensors")
    file.unlink()


def strip(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"file": "checkpoint-4.safetensors"}')


def confuse(folder: Path) -> None:
    found = json.loads((folder / "checkpoint.json").read_text())
    del found["state"]["points"]
    (folder / "checkpoint.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (flip, r"checkpoint-4\.safetensors is damaged: the SHA-256.*Delete .*checkpoint\.json to"),
        (cut, r"checkpoint\.json cannot be read as JSON"),
        (
            lose,
            r"checkpoint-4\.safetensors cannot be read: No such file.*Delete .*checkpoint\.json",
        ),
        (strip, r"checkpoint\.json is not a checkpoint \(KeyError\('state'\)\)"),
        (confuse, r"does not fit this run \('points'\)\. Delete checkpoint\.json"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_deleting_it_begins_again(
    tmp_path: Path, tiny: ModuleType, damage: Any, text: str
) -> None:
    folder = tmp_path / "run"
    interrupted(tiny, folder)
    damage(folder)
    with pytest.raises(RunError, match=text):
        tiny.run(tiny.shared(), folder=folder)
    (folder / "checkpoint.json").unlink()
    again, watcher = tiny.run(tiny.shared(), folder=folder)
    assert watcher.begun_at == 0
    assert again.points[-1].val == tiny.run(tiny.shared())[0].points[-1].val


def test_best_weights_with_a_flipped_byte_are_refused(tmp_path: Path, tiny: ModuleType) -> None:
    folder = tmp_path / "run"
    tiny.run(tiny.shared(), folder=folder)
    content = bytearray((folder / "best.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "best.safetensors").write_bytes(content)
    expected = r"best\.safetensors is damaged.*Delete .*record\.json to run it again\."
    with pytest.raises(RunError, match=expected):
        load_weights(folder)
    with pytest.raises(RunError, match=expected):
        tiny.run(tiny.shared(), folder=folder)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"lr": 0.5}, r"settings\.lr is 0\.01, this one's is 0\.5"),
        ({"method": "pcgrad"}, "method is equal, this one's is pcgrad"),
        ({"rows": 30}, r"rows\.all is 50, this one's is 30"),
        ({"suite": "apart"}, "suite is shared, this one's is apart"),
    ],
)
def test_the_folder_of_another_run_is_refused_by_what_differs(
    tmp_path: Path, tiny: ModuleType, other: dict[str, Any], key: str
) -> None:
    folder = tmp_path / "run"
    interrupted(tiny, folder)
    settings = dict(other)
    suite = tiny.apart() if settings.pop("suite", "") else tiny.shared(settings.pop("rows", 50))
    with pytest.raises(RunError, match=f"holds another run: its {key}\\. Give another folder"):
        tiny.run(suite, folder=folder, **settings)


def test_a_finished_run_is_returned_without_training(tmp_path: Path, tiny: ModuleType) -> None:
    folder = tmp_path / "run"
    first, _ = tiny.run(tiny.shared(), folder=folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    second, watcher = tiny.run(tiny.shared(), folder=folder, checkpoint_seconds=0)
    assert watcher.seen == []
    assert second == Record.load(folder / "record.json")
    assert second.best.step == first.best.step
    best = load_weights(folder)
    for name, value in watcher.model.state_dict().items():
        assert value.equal(best[name])
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_closed_disk_stops_the_run_and_the_last_checkpoint_still_loads(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole, _ = tiny.run(tiny.shared(), dropout=0.2)
    folder, left, original = tmp_path / "run", [8], Path.open

    def failing(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "x" in mode and "checkpoint" in path.name:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(number, "No space left on device")
        return original(path, mode, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        with pytest.raises(RunError, match=r"Cannot write .*checkpoint.*No space left.*untouched"):
            tiny.run(tiny.shared(), folder=folder, dropout=0.2, checkpoint_seconds=0)
    assert not list(folder.glob(".*part*"))
    record, watcher = tiny.run(tiny.shared(), folder=folder, dropout=0.2)
    assert watcher.begun_at == 3, "8 files: the JSON of update 4 failed"
    assert [p.val for p in record.points] == [p.val for p in whole.points]


def test_a_folder_that_cannot_be_made_is_an_error_before_training(
    tmp_path: Path, tiny: ModuleType
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Cannot write .*run\.json"):
        tiny.run(tiny.shared(), folder=tmp_path / "file" / "run")


def test_an_unknown_device_is_an_error_before_anything_is_written(
    tmp_path: Path, tiny: ModuleType
) -> None:
    with pytest.raises(UsageError, match=r"device is 'gpu'.*Give cpu, cuda or cuda:N"):
        tiny.run(tiny.shared(), folder=tmp_path / "run", device="gpu")
    assert not (tmp_path / "run").exists()


class Unsettled(IMTLG):
    """A balance whose every answer is a substitute."""

    def __call__(self, signal: Signal, state: State) -> Update:
        return replace(super().__call__(signal, state), note="did something else")


def test_what_a_balance_did_instead_is_counted_in_the_record_across_a_stop(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.METHODS, "unsettled", Unsettled)
    folder = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match=r"Unsettled: did something else \(update 0;"):
        interrupted(tiny, folder, method="unsettled")
    record, _ = tiny.run(tiny.shared(), folder=folder, method="unsettled")
    assert record.notes == {"Unsettled: did something else": record.cost.steps}
    assert Record.load(folder / "record.json").notes == record.notes
