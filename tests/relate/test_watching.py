"""Methods that watch training see what they say, leave everything as it was, and can be resumed."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from polytask.errors import DataError, RunError, UsageError
from polytask.relate import TAG, GradientCosine, Watch

TASKS = ("sea", "sky", "land")

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), capturable=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


class Model(nn.Module):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(4, 6),
            *([nn.BatchNorm1d(6)] if norm else []),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(6, 5),
            nn.Tanh(),
        )
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})

    def losses(self, x, y, tasks=TASKS):
        features = self.trunk(x)
        return {
            t: (self.heads[t](features)[:, 0] - y[:, TASKS.index(t)]).square().mean() for t in tasks
        }


def made(optimiser="adam", **settings):
    torch.manual_seed(0)
    model = Model(**settings).double()
    return model, OPTIMISERS[optimiser](model.parameters())


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        yield x, torch.stack([x[:, 0], x[:, 0] + 0.3 * x[:, 1], -x[:, 2] * x[:, 0]], 1)


def step(model, optimiser, x, y, watch=None, tasks=TASKS):
    losses = model.losses(x, y, tasks)
    if watch is not None:
        watch.observe(losses, again=lambda: model.losses(x, y, tasks))
    optimiser.zero_grad()
    sum(losses.values()).backward()
    optimiser.step()


def trained(optimiser, steps, **settings):
    model, rule = made(optimiser, **settings)
    for x, y in batches(steps):
        step(model, rule, x, y)
    return model, rule


def after_a_step(model, optimiser, x, y, task):
    """Return all losses after deep copies of model and optimiser step on a task; None: on none."""
    both = copy.deepcopy({"model": model, "optimiser": optimiser})
    other, rule = both["model"], both["optimiser"]
    rule.zero_grad()
    losses = other.losses(x, y)
    (losses[task] if task else 0 * losses["sea"]).backward()
    for head in other.heads.parameters():
        head.grad = None  # only what is shared steps
    rule.step()
    return torch.stack([loss.detach() for loss in other.losses(x, y).values()])


def by_hand(model, optimiser, x, y, against="idle"):
    """Return Z by deep copies."""
    now_T = torch.stack([loss.detach() for loss in model.losses(x, y).values()])
    before_T = after_a_step(model, optimiser, x, y, None) if against == "idle" else now_T
    return torch.stack(
        [(before_T - after_a_step(model, optimiser, x, y, task)) / now_T for task in TASKS]
    )


@pytest.mark.parametrize("against", ["idle", "now"])
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_tag_is_a_look_ahead_with_the_optimisers_own_step(optimiser, steps, against):
    model, rule = trained(optimiser, steps)
    ((x, y),) = batches(1, seed=2)
    watch = TAG(model, model.trunk.parameters(), rule, TASKS, sources=3, against=against)
    assert isinstance(watch, Watch)
    assert watch.observe(model.losses(x, y), again=lambda: model.losses(x, y))
    found = watch.affinity()
    expected = by_hand(model, rule, x, y, against)
    torch.testing.assert_close(found.values_TT, expected, rtol=1e-9, atol=1e-12)
    assert found.error_TT.isnan().all()  # of one look


@pytest.mark.parametrize("optimiser", ["momentum", "adamw"])
@pytest.mark.parametrize("how", [{}, {"first_order": True}, {"sources": 3, "against": "now"}])
def test_a_watched_run_is_the_same_run_to_the_last_bit(optimiser, how):
    """With batch-norm, dropout, a scheduler and hooks: nothing may notice that one looked."""
    ends = []
    for watched in (False, True):
        model, rule = made(optimiser, dropout=0.3, norm=True)
        schedule = torch.optim.lr_scheduler.StepLR(rule, 2, gamma=0.5)
        counted = []
        rule.register_step_post_hook(lambda *_, counted=counted: counted.append(1))
        watches = [
            TAG(model, model.trunk.parameters(), rule, TASKS, every=1, **how),
            GradientCosine(model.trunk.parameters(), TASKS, every=1),
        ]
        torch.manual_seed(3)
        for x, y in batches(6):
            losses = model.losses(x, y)
            for watch in watches if watched else []:
                watch.observe(losses, again=lambda model=model, x=x, y=y: model.losses(x, y))
            rule.zero_grad()
            sum(losses.values()).backward()
            rule.step()
            schedule.step()
        ends.append((model.state_dict(), rule.state_dict(), torch.get_rng_state(), counted,
                     [p.grad for p in model.parameters()]))  # fmt: skip
        if watched:
            assert not watches[1].affinity().missing()
    plain, watched = ends
    assert plain[0].keys() == watched[0].keys()
    assert all(torch.equal(value, watched[0][name]) for name, value in plain[0].items())
    assert len(plain[3]) == len(watched[3]) == 6
    assert torch.equal(plain[2], watched[2])
    assert all(torch.equal(a, b) for a, b in zip(plain[4], watched[4], strict=True))
    for number, state in plain[1]["state"].items():
        for key, value in state.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(watched[1]["state"][number][key])
            )
    assert plain[1]["param_groups"] == watched[1]["param_groups"]


@pytest.mark.parametrize("against", ["idle", "now"])
def test_dropout_is_the_same_before_and_after_the_step(against):
    """Else a step of length 0 would seem to help or hurt."""
    model, _ = made(dropout=0.5)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = TAG(model, model.trunk.parameters(), still, TASKS, sources=3, against=against)
    ((x, y),) = batches(1)
    watch.observe(model.losses(x, y), again=lambda: model.losses(x, y))
    assert torch.equal(watch.affinity().values_TT, torch.zeros(3, 3).double())


def test_batch_norm_in_training_mode_is_looked_at_as_it_trains():
    model, rule = made("sgd", norm=True)
    ((x, y),) = batches(1)
    other = copy.deepcopy({"model": model, "rule": rule})
    expected = by_hand(other["model"], other["rule"], x, y)
    watch = TAG(model, model.trunk.parameters(), rule, TASKS, sources=3)
    watch.observe(model.losses(x, y), again=lambda: model.losses(x, y))
    torch.testing.assert_close(watch.affinity().values_TT, expected, rtol=1e-9, atol=1e-12)


def test_sources_take_turns_and_see_what_all_at_once_see():
    """The model stands still, so that every look sees the same."""
    model, rule = trained("adam", 3)
    ((x, y),) = batches(1, seed=2)
    whole = TAG(model, model.trunk.parameters(), rule, TASKS, sources=3)
    turns = TAG(model, model.trunk.parameters(), rule, TASKS, every=2)
    whole.observe(model.losses(x, y), again=lambda: model.losses(x, y))
    looks = [turns.observe(model.losses(x, y), again=lambda: model.losses(x, y)) for _ in range(6)]
    assert looks == [True, False] * 3
    torch.testing.assert_close(turns.affinity().values_TT, whole.affinity().values_TT)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_first_order_form_is_the_limit_of_small_steps(optimiser):
    model, rule = trained(optimiser, 5)
    ((x, y),) = batches(1, seed=2)
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        rule.param_groups[0]["lr"] = lr
        both = [
            TAG(model, model.trunk.parameters(), rule, TASKS, sources=3, first_order=first)
            for first in (False, True)
        ]
        for watch in both:
            watch.observe(model.losses(x, y), again=lambda: model.losses(x, y))
        exact, first = (watch.affinity().values_TT for watch in both)
        errors.append(float((first - exact).norm() / exact.norm()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-2


def test_gradient_cosine_is_that_of_flat_gradients():
    model, _ = made()
    found = []
    watch = GradientCosine(model.trunk.parameters(), TASKS, every=1)
    for x, y in batches(3):
        losses = model.losses(x, y)
        rows = []
        for task in TASKS:
            grads = torch.autograd.grad(
                losses[task], list(model.trunk.parameters()), retain_graph=True
            )
            rows.append(torch.cat([g.reshape(-1) for g in grads]))
        unit = torch.nn.functional.normalize(torch.stack(rows))
        found.append(unit @ unit.T)
        watch.observe(losses)
    found = torch.stack(found)
    affinity = watch.affinity()
    torch.testing.assert_close(affinity.values_TT, found.mean(0))
    torch.testing.assert_close(affinity.error_TT, found.std(0) / 3**0.5, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "first order", "cosine"])
def test_a_stopped_watch_goes_on_as_if_it_had_not_been_stopped(kind):
    def watch_of(model, rule):
        shared = list(model.trunk.parameters())
        if kind == "cosine":
            return GradientCosine(shared, TASKS, every=2, at_once=2, seed=7)
        return TAG(model, shared, rule, TASKS, every=2, sources=2, seed=7,
                   first_order=kind == "first order")  # fmt: skip

    model, rule = made()
    whole, parts = watch_of(model, rule), watch_of(model, rule)
    for n, (x, y) in enumerate(batches(9)):
        if n == 5:
            saved = OrderedDict((k, v.clone()) for k, v in parts.state_dict().items())
            parts = watch_of(model, rule)
            parts.load_state_dict(saved)
        losses = model.losses(x, y)
        for watch in (whole, parts):
            watch.observe(losses, again=lambda x=x, y=y: model.losses(x, y))
        rule.zero_grad()
        sum(losses.values()).backward()
        rule.step()
    assert whole.affinity() == parts.affinity()
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())


def test_absent_tasks_and_broken_losses_are_left_out():
    model, rule = made()
    watches = [
        TAG(model, model.trunk.parameters(), rule, TASKS, every=1, sources=3),
        GradientCosine(model.trunk.parameters(), TASKS, every=1),
    ]
    ((x, y),) = batches(1)
    y[0, 2] = torch.nan
    for watch in watches:
        watch.observe(model.losses(x, y), again=lambda: model.losses(x, y))
        two = TASKS[:2]
        watch.observe(model.losses(x, y, two), again=lambda: model.losses(x, y, ("sea", "sky")))
        missing = watch.affinity().missing()
        assert set(missing) == {("sea", "land"), ("sky", "land"), ("land", "sea"), ("land", "sky")}
        assert not watch.affinity().error_TT[:2, :2].isnan().any()


def test_a_step_that_diverges_is_left_out_and_said():
    model, _ = made()
    far = torch.optim.SGD(model.parameters(), lr=1e200)
    watch = TAG(nn.ModuleList([model]), list(model.trunk.parameters()), far, TASKS, sources=3)
    ((x, y),) = batches(1)

    def losses():
        return {
            t: v * (1 + model.trunk[0].weight.square().sum()) for t, v in model.losses(x, y).items()
        }

    watch.observe(losses(), again=losses)
    assert len(watch.affinity().missing()) == 6
    assert "9 losses after a step were not finite" in watch.affinity().notes[-1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, r: TAG(m, m.trunk.parameters(), r, ["sea"]), UsageError, "at least two tasks"),
        (lambda m, r: TAG(m, [], r, TASKS), UsageError, "no shared parameter trains"),
        (lambda m, r: TAG(m, nn.Linear(1, 1).parameters(), r, TASKS), UsageError, "not one of the"),
        (lambda m, r: TAG(m, m.parameters(), torch.optim.LBFGS(m.parameters()), TASKS), UsageError,
         "LBFGS evaluates losses inside its step"),
        (lambda m, r: TAG(m, m.trunk.parameters(), r, TASKS, sources=4), UsageError, "4 tasks at"),
        (lambda m, r: TAG(m, m.trunk.parameters(), r, TASKS, every=0), UsageError, "every is 0"),
        (lambda m, r: TAG(m, m.trunk.parameters(), r, TASKS, against="x"), UsageError, "is 'x'"),
        (lambda m, r: TAG(m, m.trunk.parameters(), r, TASKS, sources=1, first_order=True),
         UsageError, "give >= 2"),
        (lambda m, r: GradientCosine(m.trunk.parameters(), TASKS, at_once=1), UsageError,
         "least 2"),
    ],
)  # fmt: skip
def test_wrong_settings_are_answered_with_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(*made())


def test_wrong_losses_are_answered_with_what_to_do():
    model, rule = made()
    ((x, y),) = batches(1)
    losses = model.losses(x, y)

    def look(given, again=lambda: losses, **how):
        return TAG(model, model.trunk.parameters(), rule, TASKS, **how).observe(given, again)

    with pytest.raises(UsageError, match=r"Unknown task 'see'\. Did you mean 'sea'"):
        look({"see": losses["sea"]})
    with pytest.raises(DataError, match=r"by their ratio, and that of 'sea' is -"):
        look({**losses, "sea": losses["sea"] - 10})
    with pytest.raises(UsageError, match="give a scalar"):
        look({**losses, "sea": losses["sea"][None]})
    with pytest.raises(UsageError, match="has no graph to pass back through"):
        look({task: loss.detach() for task, loss in losses.items()})
    with pytest.raises(UsageError, match=r"observe\(losses, again=\.\.\.\)"):
        look(losses, again=None)
    with pytest.raises(RunError, match="not of 3 tasks"):
        GradientCosine(model.trunk.parameters(), TASKS).load_state_dict(
            GradientCosine(model.trunk.parameters(), TASKS[:2]).state_dict()
        )
