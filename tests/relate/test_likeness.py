"""Affinities of models and data are what closed forms and other packages say."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from polytask.errors import DataError, UsageError
from polytask.relate import (
    DataMaps,
    attribute,
    attributions,
    cka,
    label_correlation,
    rsa,
    task_vectors,
    transfer,
)

NAN = float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_cka_sees_through_turns_and_scales_and_the_plain_one_is_the_known_formula():
    one = normal(60, 8)
    turn = torch.linalg.qr(normal(8, 8, seed=1)).Q
    features = {"a": one, "b": 3 * one @ turn + 5, "c": normal(60, 30, seed=2)}
    found = cka(features)
    assert found.of("a", "b") == pytest.approx(1)
    assert not found.zero
    plain = cka(features, unbiased=False)
    x, y = one - one.mean(0), features["c"] - features["c"].mean(0)
    expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain.of("a", "c") == pytest.approx(float(expected))


def test_unbiased_cka_of_unrelated_features_is_0_on_average_and_the_plain_one_is_not():
    pairs = [
        cka({"a": normal(40, 50, seed=s), "b": normal(40, 50, seed=99 + s)}) for s in range(20)
    ]
    values = torch.tensor([p.of("a", "b") for p in pairs])
    assert abs(values.mean()) < 3 * values.std() / 20**0.5
    # and its own error is about as large as its spread over data sets
    errors = torch.tensor([float(p.error_TT[0, 1]) for p in pairs])
    assert 0.5 < float(errors.mean() / values.std()) < 2
    plain = cka({"a": normal(40, 50), "b": normal(40, 50, seed=99)}, unbiased=False)
    assert plain.of("a", "b") > 0.4


def test_rsa_is_spearman_of_one_minus_pearson():
    features = {"a": normal(24, 6), "b": normal(24, 9, seed=1), "c": normal(24, 6).exp()}
    found = rsa(features)
    upper = np.triu_indices(24, 1)
    apart = {t: 1 - np.corrcoef(f.numpy())[upper] for t, f in features.items()}
    for i, j in (("a", "b"), ("a", "c"), ("b", "c")):
        expected = scipy.stats.spearmanr(apart[i], apart[j]).statistic
        assert found.of(i, j) == pytest.approx(expected)
        assert found.of(j, i) == found.of(i, j)


def test_attributions_of_linear_models_are_their_weights_times_the_input():
    x = normal(30, 5)
    first, second = nn.Linear(5, 1).double(), nn.Linear(5, 1).double()
    maps = {"a": attribute(first, x), "b": attribute(second, x)}
    torch.testing.assert_close(maps["a"], x * first.weight.detach())
    saliency = attribute(first, x, form="saliency")
    torch.testing.assert_close(saliency, first.weight.detach().abs().expand(30, 5))
    found = attributions(maps)
    cosine_N = torch.cosine_similarity(maps["a"], maps["b"])
    assert found.of("a", "b") == pytest.approx(float(cosine_N.mean()))
    assert float(found.error_TT[0, 1]) == pytest.approx(float(cosine_N.std()) / 30**0.5)
    assert found.of("a", "a") == pytest.approx(1)


def test_attribution_of_several_outputs_is_that_of_the_chosen_class_and_empty_rows_do_not_count():
    model = nn.Linear(4, 3).double()
    x = normal(25, 4)
    chosen = model(x).argmax(1)
    torch.testing.assert_close(attribute(model, x), x * model.weight.detach()[chosen])
    maps = normal(25, 4)
    other = maps.clone()
    other[:5] = 0
    assert attributions({"a": maps, "b": other}).of("a", "b") == pytest.approx(1)


def test_data_maps_are_mean_and_spread_over_epochs_and_resume():
    seen_END = torch.rand(6, 2, 30, generator=torch.Generator().manual_seed(0)).double()
    maps, again = DataMaps(["a", "b"], 30), DataMaps(["a", "b"], 30)
    for e, seen_TN in enumerate(seen_END):
        if e == 3:
            again.load_state_dict(maps.state_dict())
        for each in (maps, again) if e >= 3 else (maps,):
            for t, task in enumerate(("a", "b")):
                rows = torch.randperm(30, generator=torch.Generator().manual_seed(e))
                rows = rows[rows != 7] if task == "b" else rows
                each.observe(task, rows, seen_TN[t, rows])
    expected = torch.stack([seen_END.mean(0), seen_END.std(0, correction=0)], 2)
    expected[1, 7] = NAN
    torch.testing.assert_close(maps.maps(), expected, equal_nan=True)
    torch.testing.assert_close(again.maps(), maps.maps(), equal_nan=True)
    assert maps.complete().shape == (2, 29, 2)
    both = expected[:, torch.arange(30) != 7]
    flat = (both - both.mean(1, keepdim=True)).flatten(1).numpy()
    assert maps.affinity().of("a", "b") == pytest.approx(np.corrcoef(flat)[0, 1])


def test_task_vectors_are_compared_by_their_cosine():
    base = {"w": normal(4, 3), "b": normal(3, seed=1), "steps": torch.tensor(3)}
    change = {t: {"w": normal(4, 3, seed=s), "b": normal(3, seed=s + 1)}
              for s, t in ((5, "x"), (9, "y"))}  # fmt: skip
    tuned = {t: {n: base[n] + c for n, c in d.items()} for t, d in change.items()}
    tuned["same"] = dict(base)
    found = task_vectors(base, tuned)
    flat = {t: torch.cat([c["w"].reshape(-1), c["b"]]) for t, c in change.items()}
    expected = torch.cosine_similarity(flat["x"], flat["y"], dim=0)
    assert found.of("x", "y") == pytest.approx(float(expected))
    assert set(found.missing()) == {("x", "same"), ("y", "same"), ("same", "x"), ("same", "y")}
    without = [
        torch.cosine_similarity(*(change[t][n].reshape(-1) for t in ("x", "y")), dim=0)
        for n in ("b", "w")
    ]
    spread = (without[0] - without[1]).abs() / 2  # the jackknife of two parts
    assert float(found.error_TT[0, 1]) == pytest.approx(float(spread))
    with pytest.raises(UsageError, match=r"'w' has shape \(4, 3\) in the base and nothing for 'z'"):
        task_vectors(base, {**tuned, "z": {"b": base["b"]}})


def test_label_correlation_is_pearsons_over_rows_that_have_both():
    labels_NT = 1e6 + normal(80, 4)
    labels_NT[:, 1] -= 2 * labels_NT[:, 0]
    labels_NT[::3, 1] = NAN
    labels_NT[75:, 2] = NAN
    labels_NT[:72, 3] = NAN
    found = label_correlation(tuple("abcd"), labels_NT)
    signed = label_correlation(tuple("abcd"), labels_NT, signed=True)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        both = ~(labels_NT[:, i].isnan() | labels_NT[:, j].isnan())
        r = np.corrcoef(labels_NT[both][:, [i, j]].numpy().T)[0, 1]
        assert signed.values_TT[i, j] == pytest.approx(r, abs=1e-9)
        assert found.values_TT[j, i] == pytest.approx(abs(r), abs=1e-9)
        error = (1 - r**2) / math.sqrt(int(both.sum()) - 1)
        assert found.error_TT[i, j] == pytest.approx(error)
    assert {("a", "d"), ("d", "c")} <= set(found.missing())  # 8 rows, fewer than 10
    assert found.notes == ("3 pairs have fewer than 10 rows in common and no value",)


def test_a_task_whose_labels_do_not_vary_has_no_correlation():
    labels_NT = normal(30, 3)
    labels_NT[:, 2] = 0.1
    found = label_correlation(tuple("abc"), labels_NT)
    assert len(found.missing()) == 4
    assert found.of("a", "b") == found.of("a", "b")


def test_transfer_is_the_mean_of_paired_gains_and_goes_on_where_it_stopped(tmp_path):
    asked = []

    def trial(source, target, seed):
        if len(asked) == 10 and source is not None and not seen:
            raise KeyboardInterrupt
        asked.append((source, target, seed))
        base = {"a": 2.0, "b": 4.0, "c": 0.5}[target] + seed
        gain = {("a", "b"): 0.5, ("b", "a"): -0.1}.get((source, target), 0.0)
        return base * (1 + gain + 0.01 * seed * (source is not None))

    seen = []
    with pytest.raises(KeyboardInterrupt):
        transfer("abc", trial, (0, 1), higher_is_better={"a": True, "b": False, "c": True},
                 keep=tmp_path / "trials.json")  # fmt: skip
    seen.append(1)
    told = []
    found = transfer("abc", trial, (0, 1), higher_is_better={"a": True, "b": False, "c": True},
                     keep=tmp_path / "trials.json", tell=lambda *n: told.append(n))  # fmt: skip
    assert len(asked) == len(set(asked)) == 18
    assert told[-1] == (18, 18)
    assert found.of("a", "b") == pytest.approx(-0.505)  # lower is better there
    assert found.of("b", "a") == pytest.approx(-0.095)
    assert float(found.error_TT[0, 1]) == pytest.approx(0.01 / 2)


def test_a_trial_that_diverged_is_left_out_and_few_pairs_may_be_asked():
    def trial(source, target, seed):
        return NAN if (source, seed) == ("a", 1) else 1.0 + (source == "a")

    found = transfer("ab", trial, (0, 1), pairs=[("a", "b")])
    assert found.of("a", "b") == 1.0
    assert found.missing() == (("b", "a"),)
    assert found.notes == ("1 trials were not finite and are left out",)
    with pytest.raises(DataError, match="score of 'b' alone is 0 with seed 0"):
        transfer("ab", lambda s, t, r: 0.0, (0,), pairs=[("a", "b")])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cka({"a": normal(30, 3)}), UsageError, "at least two tasks"),
        (lambda: cka({"a": normal(30, 3), "b": normal(29, 3)}), UsageError, "same inputs"),
        (lambda: cka({"a": normal(9, 3), "b": normal(9, 3)}), DataError, "9 rows.*at least 20"),
        (lambda: rsa({"a": normal(9, 3), "b": normal(9, 3)}), DataError, "9 rows.*at least 20"),
        (lambda: rsa({"a": normal(30, 3) * NAN, "b": normal(30, 3)}), DataError, "not all finite"),
        (lambda: attributions({"a": normal(30, 3), "b": normal(30, 4)}), UsageError, "one shape"),
        (lambda: attributions({"a": normal(9, 3), "b": normal(9, 3)}), DataError, "9 rows"),
        (lambda: attribute(nn.Linear(3, 1), normal(2, 3).float(), form="x"), UsageError, "form is"),
        (lambda: DataMaps(["a", "b"], 30).affinity(), DataError, "0 rows in common"),
        (lambda: DataMaps(["a", "b"], 30).complete(), DataError, "no row was seen"),
        (lambda: DataMaps(["a", "b"], 9).observe("a", torch.tensor([1, 1]), torch.ones(2)),
         UsageError, r"2 rows \(1 different ones\)"),
        (lambda: DataMaps(["a", "b"], 9).observe("a", torch.tensor([1]), torch.tensor([1.5])),
         UsageError, r"lie in \[0, 1\]"),
        (lambda: label_correlation("ab", normal(5, 3)), UsageError, r"give \(N, 2\)"),
        (lambda: task_vectors({"n": torch.tensor(1)}, {"a": {}, "b": {}}), UsageError, "no float"),
        (lambda: transfer("ab", lambda s, t, r: 1.0, ()), UsageError, "seeds are"),
        (lambda: transfer("ab", lambda s, t, r: 1.0, (0,), pairs=[("a", "z")]), UsageError, "'z'"),
    ],
)  # fmt: skip
def test_too_few_rows_and_wrong_use_are_answered(call, error, message):
    with pytest.raises(error, match=message):
        call()
