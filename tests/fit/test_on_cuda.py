"""On a CUDA device: a run ends, its scores are those of the CPU, and it goes on bit for bit."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("method", ["equal", "uncertainty", "pcgrad"])
@pytest.mark.parametrize("streams", ["shared", "apart", "ragged"])
def test_a_run_is_that_of_the_cpu(tiny: ModuleType, method: str, streams: str) -> None:
    suite = getattr(tiny, streams)
    (there, _), (here, _) = (
        tiny.run(suite(), method, None, device=device) for device in ("cuda", "cpu")
    )
    assert there.cost.steps == here.cost.steps
    for one, other in zip(there.points, here.points, strict=True):
        assert one.train == pytest.approx(other.train, rel=2e-3)
    assert there.cost.peak_memory > 0


def test_a_run_taken_up_again_ends_as_if_nothing_was(tiny: ModuleType, tmp_path: Path) -> None:
    def run(name: str, stop_after: int = 0):
        return tiny.run(
            tiny.shared(), "pcgrad", tmp_path / name, device="cuda", dropout=0.2,
            stop_after=stop_after, checkpoint_seconds=0,
        )  # fmt: skip

    whole, watched = run("whole")
    with pytest.raises(tiny.Stopped):
        run("parts", stop_after=whole.cost.steps // 2)
    record, taken_up = run("parts")
    assert record.points[-1].train == whole.points[-1].train
    for name, value in watched.last.items():
        assert torch.equal(taken_up.last[name], value)


def test_a_finished_run_gives_its_model_where_training_does(
    tiny: ModuleType, tmp_path: Path
) -> None:
    for _ in ("trained", "taken from the folder"):
        _, watcher = tiny.run(tiny.shared(), "equal", tmp_path / "run", device="cuda")
        assert {p.device.type for p in watcher.model.parameters()} == {"cuda"}
