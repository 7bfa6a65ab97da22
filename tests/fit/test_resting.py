"""A run that rests goes on from there to the last bit, and leaves what is known so far."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from polytask.errors import UsageError
from polytask.fit import RECORD, RESTING, WEIGHTS, load_weights
from polytask.records import Record


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "per_task_best": True}])
def test_a_run_that_rests_is_the_run_that_does_not(
    tiny: ModuleType, tmp_path: Path, settings: dict
) -> None:
    suite = tiny.shared()
    options = {"epochs": 5, "patience": 0, "dropout": 0.3, **settings}
    whole, other = tiny.run(suite, folder=tmp_path / "whole", **options)
    folder = tmp_path / "rests"
    for until in (1, 3, 3):
        record, _ = tiny.run(suite, folder=folder, until=until, **options)
        assert record.stopped == ""
        assert [point.epoch for point in record.points] == list(range(1, until + 1))
        assert Record.load(folder / RESTING) == record
        assert not (folder / RECORD).exists()
        assert (folder / WEIGHTS).exists()
        for mine, theirs in zip(record.points, whole.points, strict=False):
            assert (mine.train, mine.val, mine.score) == (theirs.train, theirs.val, theirs.score)
    record, watcher = tiny.run(suite, folder=folder, **options)
    assert record.stopped == "epochs"
    assert not (folder / RESTING).exists()
    assert not list(folder.glob("checkpoint*"))
    assert (record.best.step, record.best.val) == (whole.best.step, whole.best.val)
    weights = load_weights(folder)
    for name, value in load_weights(tmp_path / "whole").items():
        assert torch.equal(weights[name], value)
    last = other.model.state_dict()
    assert all(torch.equal(v, last[n]) for n, v in watcher.model.state_dict().items())


def test_a_run_that_ends_before_it_is_to_rest_is_done(tiny: ModuleType, tmp_path: Path) -> None:
    suite = tiny.shared()
    record, _ = tiny.run(suite, folder=tmp_path / "a", epochs=2, until=7)
    assert record.stopped == "epochs"
    assert (tmp_path / "a" / RECORD).exists()
    again, _ = tiny.run(suite, folder=tmp_path / "a", epochs=2, until=1)
    assert again == record  # what is done stays done


def test_where_to_rest_must_be_an_epoch_and_needs_a_folder(
    tiny: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="until is 0"):
        tiny.run(tiny.shared(), folder=tmp_path / "a", until=0)
    with pytest.raises(UsageError, match="needs a folder to go on from"):
        tiny.run(tiny.shared(), until=1)
