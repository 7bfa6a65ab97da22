"""Wrappers: each against a direct computation in float64, and what cannot stand around what."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polytask.balance import (
    FAMO,
    MGDA,
    Balancer,
    CAGrad,
    ConFIG,
    Equal,
    EveryN,
    FeatureLevel,
    GradDrop,
    GradNorm,
    IGBv1,
    MoCo,
    PCGrad,
    Rows,
    SampledRows,
    TrimmedMean,
    Uncertainty,
    UPGrad,
    Weighed,
)
from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.parsing import parse
from polytask.testing import check_wrapper

WRAPPERS = [row.name for row in METHODS if row.wraps and row.room == "balance"]


def whole(model, inputs, targets):
    """The function that computes the toy's losses again."""

    def again(rows, tasks):
        return model.losses(rows(inputs), {t: rows(targets[t]) for t in tasks})

    return again


def flat(parameters):
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in parameters])  # fmt: skip


@pytest.mark.parametrize("name", sorted({*WRAPPERS} - {"fuller"}))
@pytest.mark.parametrize("inner", ["pcgrad", "mgda", "aligned-mtl", "gradnorm"])
def test_every_wrapper_of_the_catalog_keeps_the_contract(name, inner):
    check_wrapper(parse(f"{inner}+{name}").build_balance(0))


@pytest.mark.parametrize("text", ["igb-v1+cagrad", "uncertainty+pcgrad+every-n:n=2",
                                  "mgda+feature-level+every-n:n=2", "dwa+graddrop"])  # fmt: skip
def test_every_sort_of_nest_keeps_the_contract(text):
    check_wrapper(parse(text).build_balance(0))


@dataclass(frozen=True)
class Faulty(EveryN):
    """EveryN with one fault."""

    fault: str = ""

    def update(self, turn, state):
        if self.fault == "parameters":
            turn.shared[0].data += 1.0
        if self.fault == "state":
            state["weights_T"].fill_(1.0)
        if self.fault == "chance":
            replace(turn, retain=True).add_weighted(torch.rand(len(turn.at)))
        found = super().update(turn, state)
        if self.fault == "forgets":
            found.state["weights_T"] = torch.rand_like(found.state["weights_T"])
        return found


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("parameters", "it left a parameter changed"),
        ("state", "it changed the state it was given"),
        ("chance", "it is not repeatable"),
        ("forgets", "taken up from its state it goes another way|not repeatable"),
    ],
)
def test_the_checker_names_the_broken_rule(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_wrapper(Faulty(PCGrad(), n=2, fault=fault))


# -- every n-th update ---------------------------------------------------------------------------


def test_every_n_looks_at_each_nth_update_and_reuses_the_weights_between(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(EveryN(MGDA(), n=3), model.shared(), model.heads)
    exact = Balancer(MGDA(), model.shared(), model.heads)
    seen = []
    for step in range(5):
        losses = model.losses(inputs * (1 + step), targets)
        used = balancer.backward(losses)
        seen.append(dict(used))
        ours = model.grads()
        assert ("weights of the last look" in balancer.engine) == (step % 3 != 0)
        # the shared parameters' gradient is that of the weighted losses, heads' of the plain ones
        losses = model.losses(inputs * (1 + step), targets)
        sum(used[t] * losses[t] for t in losses).backward()
        weighted = model.grads()
        sum(model.losses(inputs * (1 + step), targets).values()).backward()
        plain = model.grads()
        for name, grad in ours.items():
            expected = (plain if "heads" in name else weighted)[name]
            assert (grad is None) == (expected is None)
            if grad is not None:
                torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
        if step % 3 == 0:
            direct = exact.backward(model.losses(inputs * (1 + step), targets))
            assert dict(direct) == pytest.approx(dict(used), rel=1e-9)
            model.grads()
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4]


def test_every_n_looks_early_for_a_task_that_has_no_weight_and_keeps_an_absent_tasks(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(EveryN(MGDA(), n=100), model.shared(), model.heads)
    *known, new = model.heads
    first = balancer.backward({t: loss for t, loss in model.losses(inputs, targets).items()
                               if t in known})  # fmt: skip
    alone = balancer.backward({known[0]: model.losses(inputs, targets)[known[0]]})
    assert alone[known[0]] == first[known[0]]
    assert "last look" in balancer.engine
    looked = balancer.backward(model.losses(inputs, targets))
    assert "last look" not in balancer.engine
    assert new in looked
    again = balancer.backward(model.losses(inputs * 2, targets))
    assert dict(again) == dict(looked)


def test_every_n_of_one_is_the_method(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    wrapped, plain = (
        Balancer(m, model.shared(), model.heads) for m in (EveryN(PCGrad(), 1), PCGrad())
    )
    for _ in range(3):
        assert dict(wrapped.backward(model.losses(inputs, targets))) == dict(
            plain.backward(model.losses(inputs, targets))
        )


# -- features ------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Eight linear heads on one encoder; targets for all rows."""

    def __init__(self, tasks=4, rows=12):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(tasks))
        self.double()
        self.x = torch.randn(rows, 5, dtype=torch.float64)
        self.y = torch.randn(tasks, rows, dtype=torch.float64) * torch.arange(1, tasks + 1)[:, None]

    def losses(self, features=None):
        features = self.encoder(self.x) if features is None else features
        return [F.mse_loss(h(features)[:, 0], y) for h, y in zip(self.heads, self.y, strict=True)]


def features_of(model):
    """Return the features and each task's gradient there, (K, N), by autograd alone."""
    features = model.encoder(model.x)
    leaf = features.detach().requires_grad_()
    rows = [torch.autograd.grad(loss, leaf)[0].flatten() for loss in model.losses(leaf)]
    return features, torch.stack(rows)


def test_aligned_mtl_ub_is_the_svd_of_the_features_gradients():
    """Algorithm 1 of Aligned-MTL with Z = dL/d(features): U V' of the gradient matrix times the
    smallest singular value, by numpy's SVD rather than the eigenvectors of a Gramian."""
    model = Wide()
    features, rows_KN = features_of(model)
    u, s, vt = torch.linalg.svd(rows_KN.T, full_matrices=False)
    direction_N = s[-1] * (u @ vt).sum(1)
    expected = torch.autograd.grad(
        features, list(model.encoder.parameters()), direction_N.view_as(features)
    )
    balancer = Balancer(
        parse("aligned-mtl+feature-level").build_balance(0), model.encoder.parameters()
    )
    balancer.backward(model.losses())
    for parameter, grad in zip(model.encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    assert balancer.engine.startswith("feature level")
    own = [h.weight.grad.clone() for h in model.heads]
    model.zero_grad()
    sum(model.losses()).backward()
    for head, grad in zip(model.heads, own, strict=True):
        torch.testing.assert_close(head.weight.grad, grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "method", [MGDA(), PCGrad(), UPGrad(), GradDrop(), ConFIG(), TrimmedMean()]
)
def test_feature_level_asks_the_method_with_the_gradients_at_the_features(method, signal):
    model = Wide()
    features, rows_KN = features_of(model)
    answer = method(
        signal(rows_KN, losses=tuple(v.item() for v in model.losses())), method.start(4)
    )
    direction_N = answer.direction_P
    if direction_N is None:
        direction_N = answer.weights_K @ rows_KN
    parameters = list(model.encoder.parameters())
    expected = torch.autograd.grad(features, parameters, direction_N.view_as(features))
    Balancer(FeatureLevel(method), parameters).backward(model.losses())
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-8, atol=1e-10)


def test_feature_level_adds_to_gradients_that_are_there_already():
    model = Wide()
    balancer = Balancer(FeatureLevel(MGDA()), model.encoder.parameters())
    balancer.backward(model.losses())
    once = {n: p.grad.clone() for n, p in model.named_parameters()}
    balancer.backward(model.losses())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-9, atol=1e-12)


def test_feature_level_passes_the_encoder_once():
    model = Wide()
    passes = []
    model.encoder[1].register_full_backward_hook(lambda *_: passes.append(1))
    Balancer(FeatureLevel(MGDA()), model.encoder.parameters()).backward(model.losses())
    assert len(passes) == 1


def test_without_common_features_the_error_says_what_to_do():
    model = Wide()
    balancer = Balancer(FeatureLevel(MGDA()), model.encoder.parameters())
    with pytest.raises(UsageError, match=r"no features in common.*one forward pass"):
        balancer.backward([model.losses()[0], model.losses()[1]], tasks=["0", "1"])
    decayed = [loss + model.encoder[0].weight.square().sum() for loss in model.losses()]
    balancer = Balancer(FeatureLevel(MGDA()), model.encoder.parameters())
    with pytest.raises(UsageError, match="no loss on the shared parameters themselves"):
        balancer.backward(decayed)


# -- a sample of the rows ------------------------------------------------------------------------


def test_a_sample_of_all_rows_is_the_exact_method(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    exact = Balancer(MGDA(), model.shared(), model.heads)
    sampled = Balancer(SampledRows(MGDA(), fraction=1.0), model.shared(), model.heads)
    expected = exact.backward(model.losses(inputs, targets))
    direct = model.grads()
    got = sampled.backward(model.losses(inputs, targets), again=whole(model, inputs, targets))
    assert dict(got) == pytest.approx(dict(expected), rel=1e-8)
    for name, grad in model.grads().items():
        if direct[name] is not None:
            torch.testing.assert_close(grad, direct[name], rtol=1e-8, atol=1e-10)


def test_a_sample_takes_its_gramian_from_the_rows_drawn_and_its_update_from_all():
    model = Wide(rows=40)
    balancer = Balancer(SampledRows(MGDA(), fraction=0.25, seed=3), model.encoder.parameters())
    drawn = []

    def again(rows, tasks):
        drawn.append(rows.indices(40))
        features = model.encoder(rows(model.x))
        return [
            F.mse_loss(h(features)[:, 0], rows(y))
            for h, y in zip(model.heads, model.y, strict=True)
        ]

    used = balancer.backward(model.losses(), again=again)
    (taken,) = drawn
    assert len(taken) == 10
    assert len(set(taken.tolist())) == 10
    parameters = list(model.encoder.parameters())
    rows = []
    for head, y in zip(model.heads, model.y, strict=True):
        loss = F.mse_loss(head(model.encoder(model.x[taken]))[:, 0], y[taken])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    rows_KP = torch.stack(rows)
    weights_K = torch.tensor([used[t] for t in used], dtype=torch.float64)
    # MGDA's answer is the shortest convex combination: no vertex is closer to it than itself
    shortest = weights_K @ rows_KP
    assert float(weights_K.sum()) == pytest.approx(1)
    assert bool((rows_KP @ shortest >= shortest @ shortest * (1 - 1e-6)).all())
    ours = flat(parameters)
    model.zero_grad()
    sum(w * loss for w, loss in zip(weights_K, model.losses(), strict=True)).backward()
    torch.testing.assert_close(ours, flat(parameters), rtol=1e-9, atol=1e-12)


def test_rows_are_drawn_without_replacement_and_anew_at_every_step():
    rows = [Rows((0, step), 0.0, 0.5).indices(100) for step in range(2)]
    assert all(len(set(r.tolist())) == 50 for r in rows)
    assert not torch.equal(*rows)
    first, rest = Rows((0, 0), 0.0, 0.8).indices(10), Rows((0, 0), 0.8, 1.0).indices(10)
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(10))
    tensor = torch.arange(10)
    assert Rows()(tensor) is tensor
    assert len(Rows((0,), 0.0, 0.01).indices(3)) == 1
    assert len(Rows((0,), 0.99, 1.0).indices(3)) == 1
    assert len(Rows((0,), 0.0, 0.5).indices(0)) == 0


def test_a_task_without_a_label_in_the_sample_keeps_its_weight_or_gets_the_mean(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    lacking = set()

    def again(rows, tasks):
        losses = model.losses(inputs, targets)
        return {t: losses[t] for t in tasks if t not in lacking}

    names = list(model.heads)
    balancer = Balancer(SampledRows(MGDA(), fraction=0.5), model.shared(), names)
    lacking.add(names[2])
    first = balancer.backward(model.losses(inputs, targets), again=again)
    assert first[names[2]] == pytest.approx((first[names[0]] + first[names[1]]) / 2)
    lacking.clear()
    second = balancer.backward(model.losses(inputs, targets), again=again)
    lacking.update(names[1:])
    third = balancer.backward(model.losses(inputs, targets), again=again)
    assert third[names[1]] == second[names[1]]
    assert third[names[0]] == pytest.approx(1.0)


def test_without_again_the_error_shows_how_to_give_it(toy):
    model, inputs, targets = toy()
    balancer = Balancer(SampledRows(PCGrad()), model.shared(), model.heads)
    assert balancer.looks_again
    with pytest.raises(UsageError, match=r"SampledRows\(PCGrad\) computes losses again.*again="):
        balancer.backward(model.losses(inputs, targets))


# -- losses weighed first ------------------------------------------------------------------------


def test_weighed_losses_reach_the_method_as_a_scaled_gramian(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    names = list(model.heads)
    by = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)

    @dataclass(frozen=True)
    class By(Equal):
        def __call__(self, signal, state):
            found = super().__call__(signal, state)
            return type(found)(state, by[signal.index_K])

    losses = model.losses(inputs, targets)
    rows_KP = torch.stack([torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(model.shared(), torch.autograd.grad(loss, model.shared(), retain_graph=True,
                                                            allow_unused=True), strict=True)])
        for loss in losses.values()])  # fmt: skip
    asked = []

    @dataclass(frozen=True)
    class Spy(MGDA):
        def __call__(self, signal, state):
            asked.append(signal)
            return super().__call__(signal, state)

    balancer = Balancer(Weighed(Spy(), by=By()), model.shared(), names)
    used = balancer.backward(losses)
    expected_KK = by[:, None] * (rows_KP @ rows_KP.T) * by
    torch.testing.assert_close(asked[0].gram_KK, expected_KK, rtol=1e-10, atol=1e-12)
    weights_K = torch.tensor([used[t] for t in names], dtype=torch.float64)
    torch.testing.assert_close(flat(model.shared()), weights_K @ rows_KP, rtol=1e-9, atol=1e-12)
    heads = {n: model.heads[n].weight.grad.clone() for n in names}
    model.zero_grad()
    sum(model.losses(inputs, targets).values()).backward()
    for t, name in enumerate(names):
        torch.testing.assert_close(heads[name], by[t] * model.heads[name].weight.grad)


def test_trained_weights_learn_as_they_do_alone(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    grads = []
    for build in (Uncertainty, lambda: Weighed(CAGrad(), by=Uncertainty())):
        balancer = Balancer(build(), model.shared(), model.heads)
        balancer.backward(model.losses(inputs, targets))
        (trained,) = balancer.parameters()
        grads.append(trained.grad)
    torch.testing.assert_close(*grads)
    saved = balancer.state_dict()
    assert [name for name in saved if name.startswith("trained.")] == ["trained.by.log_variance_T"]


def test_a_method_that_observes_can_weigh_for_another(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(Weighed(PCGrad(), by=FAMO()), model.shared(), model.heads)
    assert balancer.observes == "after"
    assert balancer.engine.endswith("one forward more")
    balancer.backward(model.losses(inputs, targets))
    with pytest.raises(UsageError, match="must see each batch's losses after the update"):
        balancer.backward(model.losses(inputs, targets))
    with torch.no_grad():
        halved = {t: loss * (0.5 if t == "task 0" else 1) for t, loss in
                  model.losses(inputs, targets).items()}  # fmt: skip
    before = balancer.state["by.logits_T"].clone()
    balancer.observe(halved)
    moved = balancer.state["by.logits_T"] - before
    assert moved[0] < 0 < moved[1]


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: EveryN(Equal()), "Equal looks at losses alone"),
        (lambda: EveryN(GradDrop()), "GradDrop answers with a direction"),
        (lambda: EveryN(FAMO()), "FAMO, which looks at other losses between updates"),
        (lambda: EveryN(EveryN(MGDA())), "EveryN cannot stand around EveryN; it goes around a m"),
        (lambda: EveryN(MGDA(), n=0), "n is 0; give a whole number >= 1"),
        (lambda: FeatureLevel(EveryN(MGDA())), "FeatureLevel cannot stand around EveryN"),
        (lambda: FeatureLevel(MoCo()).start(3), "MoCo: it remembers gradients"),
        (lambda: SampledRows(ConFIG()), None),
        (lambda: SampledRows(TrimmedMean()), "TrimmedMean answers with a direction"),
        (lambda: SampledRows(MGDA(), fraction=0), r"fraction is 0; give a number in \(0, 1\]"),
        (lambda: Weighed(Equal(), by=IGBv1()), "method is Equal, which does not look at gradients"),
        (lambda: Weighed(PCGrad(), by=MGDA()), "by is MGDA, which does not weigh by losses alone"),
        (lambda: Weighed(Weighed(PCGrad(), by=IGBv1()), by=IGBv1()), "weighed already"),
        (lambda: EveryN("pcgrad"), "str is no balance method"),
    ],
)
def test_nests_that_make_no_sense_are_refused(build, said):
    if said is None:
        build()
        return
    with pytest.raises(UsageError, match=said):
        build()


def test_gradnorm_trains_its_own_parameters_inside_a_wrapper(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(EveryN(GradNorm(), n=2), model.shared(), model.heads)
    trained = balancer.parameters()
    assert trained
    balancer.backward(model.losses(inputs, targets))
    assert any(p.grad is not None for p in trained)
    for parameter in trained:
        parameter.grad = None
    balancer.backward(model.losses(inputs, targets))
    assert all(p.grad is None for p in trained)


# -- how far from the exact method ---------------------------------------------------------------


def test_measure_compares_with_the_exact_method_and_leaves_nothing_behind(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(FeatureLevel(MGDA()), model.shared(), model.heads)
    losses = model.losses(inputs, targets)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state, values = balancer.state_dict(), [p.detach().clone() for p in model.parameters()]
    found = balancer.measure(losses)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(values, model.parameters(), strict=True))
    after = balancer.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[key].nan_to_num(), after[key].nan_to_num()) for key in state)

    model.zero_grad()
    used = balancer.backward(losses)  # the graph is still there
    assert dict(used) == dict(found.weights)
    approximate = flat(model.shared())
    model.zero_grad()
    exact = Balancer(MGDA(), model.shared(), model.heads)
    assert dict(exact.backward(model.losses(inputs, targets))) == pytest.approx(
        dict(found.exact_weights)
    )
    direct = flat(model.shared())
    assert found.cosine == pytest.approx(float(F.cosine_similarity(approximate, direct, dim=0)))
    assert found.length == pytest.approx(float(approximate.norm() / direct.norm()))
    difference = found.gram_KK - found.exact_gram_KK
    assert found.gram_error == pytest.approx(float(difference.norm() / found.exact_gram_KK.norm()))
    assert 0 < found.shape_error <= found.gram_error
    assert found.cosine < 1 - 1e-6


def test_measure_finds_no_error_where_nothing_is_approximated(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    for method, again in (
        (PCGrad(), None),
        (EveryN(PCGrad(), 1), None),
        (SampledRows(PCGrad(), 1.0), whole(model, inputs, targets)),
        (Weighed(EveryN(CAGrad(), 1), by=IGBv1()), None),
    ):
        balancer = Balancer(method, model.shared(), model.heads, steps_per_epoch=1)
        found = balancer.measure(model.losses(inputs, targets), again=again)
        assert found.cosine == pytest.approx(1)
        assert found.length == pytest.approx(1)
        assert found.gram_error == pytest.approx(0, abs=1e-9)
        assert dict(found.weights) == pytest.approx(dict(found.exact_weights))


def test_measure_of_old_weights_has_no_gramian_to_compare(toy):
    model, inputs, targets = toy(dtype=torch.float64)
    balancer = Balancer(EveryN(MGDA(), 9), model.shared(), model.heads)
    balancer.backward(model.losses(inputs, targets))
    found = balancer.measure(model.losses(-inputs, targets))
    assert found.gram_KK is None
    assert found.gram_error != found.gram_error
    assert -1 <= found.cosine < 1 - 1e-6
