"""fit shows methods the losses they look at: after the update, and of validation rows."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from polytask.balance import FAMO, Balancer, CoBa, Fixed
from polytask.fit import Feed, FitConfig, build_optimiser, step_losses, task_losses, train_step
from polytask.mix import Schedule, Uniform
from polytask.share import HardSharing


def model_of(suite, seed: int = 0) -> HardSharing:
    torch.manual_seed(seed)
    return HardSharing.build(suite.encoder(), suite.width, suite.tasks)


def feed_of(suite, accumulate: int = 1) -> Feed:
    schedule = Schedule(Uniform(), [len(s) for s in suite.train], 12, 0)
    return Feed(suite.train, suite.tasks, schedule, accumulate)


@pytest.mark.parametrize("name", ["shared", "apart"])
def test_a_step_of_famo_is_that_of_a_loop_by_hand(tiny: ModuleType, name: str, float64) -> None:
    suite = getattr(tiny, name)()
    models = model_of(suite), model_of(suite)
    balancers = [Balancer(FAMO(), m.shared_parameters(), suite.tasks.names) for m in models]
    optimisers = [
        build_optimiser(m, b, FitConfig(lr=1e-2)) for m, b in zip(models, balancers, strict=True)
    ]
    feed = feed_of(suite)
    cursors_S = feed.schedule.start()
    for step in range(5):
        fed, cursors_S = feed.step(step, cursors_S)
        train_step(models[0], balancers[0], optimisers[0], fed)
        optimisers[1].zero_grad()
        tasks, losses_K = task_losses(models[1], fed.micros[0], fed.counts, "float32")
        balancers[1].backward(losses_K, tasks=tasks)
        optimisers[1].step()
        with torch.no_grad():
            tasks, losses_K = task_losses(models[1], fed.micros[0], fed.counts, "float32")
        balancers[1].observe(losses_K, tasks=tasks)
    one, other = (b.state_dict() for b in balancers)
    assert all(torch.equal(one[k].nan_to_num(), other[k].nan_to_num()) for k in one)
    assert one["state.logits_T"].abs().min() > 0


def test_losses_of_a_step_in_parts_are_those_of_the_whole(tiny: ModuleType, float64) -> None:
    suite = tiny.apart()
    model = model_of(suite)
    found = []
    for accumulate in (1, 3):
        feed = feed_of(suite, accumulate)
        fed, _ = feed.step(0, feed.schedule.start())
        tasks, losses_K = step_losses(model, fed, "float32")
        assert not losses_K.requires_grad
        found.append(dict(zip(tasks, losses_K.tolist(), strict=True)))
    assert found[1] == pytest.approx(found[0], rel=1e-12)


@pytest.fixture
def observers(tiny: ModuleType, monkeypatch) -> ModuleType:
    monkeypatch.setitem(tiny.METHODS, "coba", lambda: CoBa(warmup=3, history=6))
    monkeypatch.setitem(tiny.METHODS, "famo", FAMO)
    return tiny


def test_coba_sees_a_batch_of_validation_rows_before_every_update(
    observers: ModuleType, monkeypatch
) -> None:
    seen = []
    observe = Balancer.observe

    def listen(self, losses, *, tasks=None):
        seen.append((self.step, tasks, losses.requires_grad))
        observe(self, losses, tasks=tasks)

    monkeypatch.setattr(Balancer, "observe", listen)
    record, watcher = observers.run(observers.apart(), "coba", dropout=0.5, accumulate=2)
    assert [step for step, _, _ in seen] == list(range(record.cost.steps))
    assert {name for _, tasks, _ in seen for name in tasks} == set(observers.TASKS.names)
    assert not any(graph for _, _, graph in seen)
    assert watcher.model.training
    assert record.engine.endswith("one forward of validation rows")
    weights = record.points[-1].weights.values()
    assert max(weights) > 1.05 * min(weights)


def test_validation_rows_are_looked_at_without_dropout_and_move_no_random_number(
    observers: ModuleType, monkeypatch
) -> None:
    """With weights that stay equal, a run of CoBa is one of equal weights of 1 / T."""
    monkeypatch.setitem(observers.METHODS, "coba", lambda: CoBa(warmup=999, history=999))
    monkeypatch.setitem(observers.METHODS, "fixed", lambda: Fixed((0.25,) * 4))
    lasts = [
        observers.run(observers.shared(), method, dropout=0.5)[1].last
        for method in ("coba", "fixed")
    ]
    assert all(torch.equal(lasts[0][name], value) for name, value in lasts[1].items())


@pytest.mark.parametrize("method", ["coba", "famo"])
def test_a_run_taken_up_again_ends_as_if_nothing_was(
    observers: ModuleType, tmp_path: Path, method: str
) -> None:
    def run(name: str, stop_after: int = 0):
        return observers.run(
            observers.apart(), method, tmp_path / name, dropout=0.2, stop_after=stop_after,
            checkpoint_seconds=0,
        )  # fmt: skip

    whole, undisturbed = run("whole")
    with pytest.raises(observers.Stopped):
        run("parts", stop_after=whole.cost.steps // 2)
    again, resumed = run("parts")
    assert 0 < resumed.begun_at < whole.cost.steps
    assert all(torch.equal(undisturbed.last[n], value) for n, value in resumed.last.items())
    for one, other in zip(whole.points, again.points, strict=True):
        assert other.weights == one.weights
