"""ATM and ColD Fusion: one round is task arithmetic or the average; heads stay; bad input."""

import copy

import pytest
import torch

from polytask.errors import UsageError
from polytask.merge.atm import atm
from polytask.merge.cold_fusion import cold_fusion
from polytask.merge.family import Family

from .families import CNN, OUTPUTS, TASKS, moved


def starts():
    torch.manual_seed(0)
    base = CNN(7).double()
    models = {}
    for task in TASKS.names:
        models[task] = CNN(OUTPUTS[task]).double()
        models[task].body = copy.deepcopy(base.body)
    return base, models


def tune(model, task):
    """Move as if tuned: differently for each task, and on from wherever it is."""
    return moved(model, TASKS.index(task) + 1, 0.2)


def test_one_round_is_task_arithmetic_with_scale_over_the_number_of_tasks():
    base, models = starts()
    merged = atm(models, TASKS, tune, rounds=1, scale=1.5)
    for name in Family(base, models, TASKS).names:
        theta = base.state_dict()[name]
        taus = [tune(models[t], t).state_dict()[name] - theta for t in TASKS.names]
        expected = theta + (1.5 / 3) * sum(taus)
        for task in TASKS.names:
            torch.testing.assert_close(merged[task].state_dict()[name], expected)


def test_rounds_go_on_from_the_merged_model_with_the_tasks_own_heads():
    _, models = starts()
    seen = []
    twice = atm(models, TASKS, tune, rounds=2, after=lambda k, nets: seen.append((k, nets)))
    assert [k for k, _ in seen] == [1, 2]
    again = atm(seen[0][1], TASKS, tune, rounds=1)  # from the saved round
    for task in TASKS.names:
        for name, tensor in twice[task].state_dict().items():
            assert torch.equal(tensor, again[task].state_dict()[name]), name
    head = tune(tune(models["a"], "a"), "a").head.weight
    torch.testing.assert_close(twice["a"].head.weight, head)


def test_cold_fusion_averages_the_contributors():
    _, models = starts()
    merged = cold_fusion(models, TASKS, tune, rounds=1)
    tuned = {t: tune(models[t], t).state_dict() for t in TASKS.names}
    for name in tuned["a"]:
        if name.startswith("head"):
            assert torch.equal(merged["b"].state_dict()[name], tuned["b"][name])
        elif tuned["a"][name].is_floating_point():
            mean = sum(tuned[t][name] for t in TASKS.names) / 3
            torch.testing.assert_close(merged["b"].state_dict()[name], mean)
    same = atm(models, TASKS, tune, rounds=1)
    for name, tensor in same["c"].state_dict().items():
        torch.testing.assert_close(tensor, merged["c"].state_dict()[name])


def test_a_tune_that_changes_in_place_is_taken_too_and_the_users_models_stay():
    _, models = starts()
    before = copy.deepcopy(models["a"].state_dict())

    def in_place(model, task):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.25
        return model

    merged = atm(models, TASKS, in_place, rounds=2, scale=1.0)
    torch.testing.assert_close(
        merged["a"].body[0].weight, models["a"].body[0].weight.detach() + 0.5
    )
    assert all(torch.equal(p, before[n]) for n, p in models["a"].state_dict().items())
    assert all(p.requires_grad for p in merged["a"].parameters())


def test_models_that_do_not_begin_alike_are_refused():
    _, models = starts()
    models["b"] = moved(models["b"], 5)
    with pytest.raises(UsageError, match=r"ATM: the models to begin with differ in 'body"):
        atm(models, TASKS, tune)
    with pytest.raises(UsageError, match="ColD Fusion: rounds is 0"):
        cold_fusion(starts()[1], TASKS, tune, rounds=0)
