"""Expert use: averages by hand, what deserves a warning, and nothing of the model moved."""

import math

import pytest
import torch

from polytask.errors import UsageError
from polytask.records import to_json
from polytask.share import HardSharing, Trace, expert_use
from polytask.share.use import ExpertUse, GateUse

from .conftest import make, rows


def use(*gates: tuple[str | None, tuple[float, ...]], own: int = 0) -> ExpertUse:
    """Gates over three experts, of which the last `own` are the reader's."""
    return ExpertUse(
        tuple(
            GateUse(
                0,
                reader,
                tuple(f"shared {e}" for e in range(3 - own))
                + tuple(f"own {e}" for e in range(own)),
                (None,) * (3 - own) + (reader,) * own,
                mean,
                0.5,
                10,
            )
            for reader, mean in gates
        )
    )


def test_means_and_entropies_are_those_of_the_rows_of_all_batches(recipe):
    model, parts = make(recipe, 3), [rows(4, 1), rows(9, 2), rows(2, 3)]
    found = expert_use(model, parts)
    trace = Trace()
    model(torch.cat(parts), trace=trace)
    expected = {
        (gate.level, reader): (gate.experts, gate.owners, gate.weights_RGE[:, g].detach())
        for gate in trace.gates
        for g, reader in enumerate(gate.readers)
    }
    assert len(found.gates) == len(expected)
    for gate in found.gates:
        experts, owners, weights_RE = expected[gate.level, gate.reader]
        assert (gate.experts, gate.owners, gate.rows) == (experts, owners, 15)
        assert gate.mean == pytest.approx(weights_RE.mean(0).tolist())
        entropy = -sum(w * math.log(w) for row in weights_RE.tolist() for w in row if w) / 15
        assert gate.entropy == pytest.approx(entropy)
    assert tuple(GateUse.from_json(entry) for entry in to_json(found.gates)) == found.gates


def test_it_leaves_modes_and_random_numbers_as_they_were():
    model = make("ple")
    model.train()
    model.encoder.eval()
    state = torch.get_rng_state()
    expert_use(model, [rows()])
    assert model.training
    assert not model.encoder.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_dead_experts_and_experts_of_one():
    found = use(("a", (0.5, 0.5, 0.0)), ("b", (0.999, 0.001, 0.0)))
    assert found.dead_share == pytest.approx(1 / 3)
    assert found.of_one == ((0, "shared 1"),)
    dead, one = found.warnings()
    assert dead.startswith("1 of 3 experts are dead")
    assert "shared 2" in dead
    assert one == "Of all tasks, shared 1 serves 'a' alone: it shares nothing."
    assert use(("a", (0.5, 0.5, 0.0))).of_one == ()  # a model of one task


def test_tasks_that_ignore_their_own_experts():
    found = use(("a", (0.5, 0.5, 0.001)), ("b", (0.5, 0.3, 0.2)), own=1)
    assert [gate.own for gate in found.gates] == [0.001, 0.2]
    assert found.ignoring_own == ("a",)
    assert any("'a' ignores its own experts" in text for text in found.warnings())
    assert found.dead_share == pytest.approx(1 / 4)  # a's own; b's own is used
    assert use((None, (0.5, 0.5, 0.0)), own=0).ignoring_own == ()


def test_a_healthy_model_has_no_warning():
    assert use(("a", (0.5, 0.2, 0.3)), ("b", (0.1, 0.6, 0.3))).warnings() == ()


def test_models_without_gates_have_no_use_to_tell():
    hard = HardSharing(torch.nn.Linear(5, 6), {"a": torch.nn.Linear(6, 1)}).double()
    found = expert_use(hard, [rows()])
    assert found.gates == ()
    assert math.isnan(found.dead_share)
    assert found.warnings() == ()
    with pytest.raises(UsageError, match="at least one batch"):
        expert_use(make("mmoe"), [])
