"""A row that breaks the loss stops a run, or is counted in its record while the run goes on."""

from types import ModuleType

import pytest
import torch

from polytask.errors import Diverged, UsageError
from polytask.fit import FitConfig


def with_a_broken_row(tiny: ModuleType):
    suite = tiny.shared()
    suite.train[0].inputs[3] = torch.nan
    return suite


def test_by_default_it_stops_the_run_and_names_the_task(tiny: ModuleType) -> None:
    with pytest.raises(Diverged, match="the loss of task 'a' is nan"):
        tiny.run(with_a_broken_row(tiny), "pcgrad")


@pytest.mark.parametrize("method", ["equal", "pcgrad", "uncertainty"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_skipped_updates_are_counted_and_leave_the_model_alone(
    tiny: ModuleType, method: str, accumulate: int
) -> None:
    with pytest.warns(RuntimeWarning, match="left the whole update out"):
        record, watcher = tiny.run(
            with_a_broken_row(tiny), method, nonfinite="skip", accumulate=accumulate
        )
    assert sum(record.notes.values()) == 3  # once per epoch
    assert all(bool(value.isfinite().all()) for value in watcher.last.values())
    assert record.settings["nonfinite"] == "skip"


def test_the_setting_is_part_of_a_runs_identity_only_where_it_is_not_the_default() -> None:
    assert "nonfinite" not in FitConfig().identity()
    assert FitConfig(nonfinite="skip").identity()["nonfinite"] == "skip"
    assert "checkpoint_seconds" not in FitConfig().identity()
    with pytest.raises(UsageError, match="nonfinite is 'ignore'; give 'stop' or 'skip'"):
        FitConfig(nonfinite="ignore")
