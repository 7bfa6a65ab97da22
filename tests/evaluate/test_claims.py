"""The ledger: the rule that decides, its error rates, the files, and the page."""

import json
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import DataError, RunError, UsageError
from polytask.evaluate import interval
from polytask.evaluate.claims import Claim, Effect, decide, decide_against_all, load, markdown, save


def around(low, high):
    """Return three differences whose 95 % interval is (low, high)."""
    middle = (low + high) / 2
    one = (high - low) / 2 / 2.4841377118  # t(0.975, 2) / sqrt(3), for differences m - 1, m, m + 1
    values = [middle - one, middle, middle + one]
    assert interval(values) == pytest.approx((low, high))
    return values


@pytest.mark.parametrize(
    ("low", "high", "margin", "outcome"),
    [
        (0.5, 2.0, 1.0, "seen"),
        (0.5, 2.0, 0.0, "seen"),
        (1.5, 2.0, 1.0, "seen"),
        (0.2, 0.8, 1.0, "not seen"),  # sure, and too small to matter
        (-0.5, 0.8, 1.0, "not seen"),
        (-5.0, 0.8, 1.0, "not seen"),
        (-3.0, -1.0, 0.0, "not seen"),
        (-0.5, 2.0, 1.0, "undecided"),
        (-0.5, 0.1, 0.0, "undecided"),
    ],
)
def test_a_claim_of_improvement(low, high, margin, outcome):
    assert decide(around(low, high), "greater", margin) == outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.5, 0.9, "seen"),
        (0.2, 0.8, "seen"),  # significantly different, and equal for all that matters
        (-0.5, 1.2, "undecided"),
        (-5.0, 5.0, "undecided"),  # no significant difference is not equality
        (1.1, 3.0, "not seen"),
        (-3.0, -1.1, "not seen"),
    ],
)
def test_a_claim_of_equality(low, high, outcome):
    assert decide(around(low, high), "equal", 1.0) == outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.9, 0.5, "seen"),
        (2.0, 5.0, "seen"),  # how much better is no matter
        (-1.1, 0.5, "undecided"),
        (-3.0, -0.9, "undecided"),
        (-3.0, -1.1, "not seen"),
    ],
)
def test_a_claim_of_being_no_worse(low, high, outcome):
    assert decide(around(low, high), "no worse", 1.0) == outcome


def test_a_claim_against_all_rivals():
    ahead, behind = around(0.5, 2.0), around(-3.0, -0.1)
    assert decide_against_all({"a": ahead, "b": ahead}, "greater", 0.1) == ("seen", "a")
    # One rival that is not beaten is enough to leave the claim open ...
    assert decide_against_all({"a": ahead, "b": behind}, "no worse", 0.1) == ("undecided", "b")
    # ... and one that is ahead beyond what the number of rivals explains, to refuse it.
    assert decide_against_all({"b": behind}, "greater", 0.1)[0] == "not seen"
    assert decide_against_all({"a": ahead, "b": behind}, "greater", 0.1)[0] == "undecided"
    surely = around(-3.0, -2.0)
    assert decide_against_all({"a": ahead, "b": surely}, "greater", 0.1) == ("not seen", "b")
    with pytest.raises(UsageError, match="at least one"):
        decide_against_all({}, "greater", 0.1)


def test_many_rivals_do_not_refuse_a_claim_by_chance():
    """Nine rivals, each just short of being beaten by the margin of 1: refused in at most 2.5 %."""
    rng = np.random.default_rng(5)
    refused = 0
    for draws in rng.normal(1.0, 0.6, size=(300, 9, 3)):
        rivals = {str(i): list(d) for i, d in enumerate(draws)}
        refused += decide_against_all(rivals, "greater", 1.0)[0] == "not seen"
    assert refused <= 300 * 0.025 + 3 * math.sqrt(300 * 0.025 * 0.975)


def test_differences_without_spread():
    assert decide([0.0, 0.0], "greater", 0.0) == "not seen"
    assert decide([1.0, 1.0], "greater", 1.0) == "seen"
    assert decide([1.0, 1.0], "equal", 1.0) == "not seen"
    assert decide([0.0, 0.0], "equal", 0.1) == "seen"


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.randoms(), st.floats(0.01, 3))
def test_equality_has_no_side_and_seeds_no_order(differences, random, margin):
    shuffled = list(differences)
    random.shuffle(shuffled)
    for expected in ("greater", "equal"):
        assert decide(shuffled, expected, margin) == decide(differences, expected, margin)
    mirrored = [-d for d in differences]
    assert decide(mirrored, "equal", margin) == decide(differences, "equal", margin)
    both = {decide(differences, "greater", margin), decide(mirrored, "greater", margin)}
    assert both != {"seen"}


@pytest.mark.parametrize(
    ("truth", "expected", "wrong"),
    [
        (0.0, "greater", "seen"),
        (1.0, "greater", "not seen"),
        (1.0, "equal", "seen"),
        (0.99, "equal", "not seen"),
        (-1.0, "no worse", "seen"),
        (-0.99, "no worse", "not seen"),
    ],
)
def test_wrong_decisions_are_as_rare_as_promised(truth, expected, wrong):
    """At the edge of each hypothesis, margin 1, 3 seeds: at most 2.5 % wrong (4000 draws)."""
    rng = np.random.default_rng(3)
    draws = rng.normal(truth, 0.6, size=(4000, 3))
    rate = np.mean([decide(list(row), expected, 1.0) == wrong for row in draws])
    assert rate < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 4000)


def test_what_decide_refuses():
    assert decide([1.0], "greater", 0.0) == "undecided"
    with pytest.raises(UsageError, match="Difference 1 of a claim is nan"):
        decide([1.0, math.nan], "greater", 0.0)
    with pytest.raises(UsageError, match=r"margin of a claim of 'equal' is 0\.0; .* number > 0"):
        decide([1.0, 2.0], "equal", 0.0)
    with pytest.raises(UsageError, match=r"is -1; .* number >= 0"):
        decide([1.0, 2.0], "greater", -1)
    with pytest.raises(UsageError, match="is nan"):
        decide([1.0, 2.0], "greater", math.nan)


GIVEN = {
    "system": "pcgrad",
    "paper": "arXiv:2001.06782",
    "claim": "beats equal weights",
    "setting": "digits2, margin 1 %",
    "seeds": [0, 1, 2],
    "outcome": "seen",
    "effect": {"value": 1.5, "unit": "% delta-m"},
    "interval": [0.5, 2.5],
    "reason": None,
    "command": "python run.py --seeds 3",
    "versions": {"torch": "2.13.0"},
}


def written(folder, *records, at="one"):
    (folder / at).mkdir(parents=True)
    (folder / at / "claims.json").write_text(json.dumps(list(records)))
    return folder


def test_what_is_saved_is_loaded(tmp_path):
    (claim,) = load(written(tmp_path, GIVEN, at="balance/pcgrad"))
    assert claim.effect == Effect(1.5, "% delta-m")
    assert (claim.interval, claim.seeds) == ((0.5, 2.5), (0, 1, 2))
    assert (claim.room, claim.experiment, claim.reason) == ("balance", "balance/pcgrad", "")
    save(tmp_path / "balance/pcgrad", [claim])
    assert load(tmp_path) == (claim,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"outcome": "confirmed"}, "outcome is 'confirmed'; give one of 'seen'"),
        ({"claims": "x"}, "Unknown field of a claim 'claims'. Did you mean 'claim'?"),
        ({"seeds": [0, 0]}, "a seed occurs twice"),
        ({"seeds": [0, True]}, "seeds must be a list of ints; it is [0, True]"),
        ({"seeds": []}, "it has no seeds"),
        ({"versions": {}}, "it has no versions"),
        ({"versions": ["2"]}, "versions must be an object of texts"),
        ({"effect": None}, "outcome 'seen' rests on an effect and an interval"),
        ({"effect": 1.5}, 'effect must be null or {"value": number, "unit": text}; it is 1.5'),
        ({"effect": {"value": 9, "unit": "%"}}, "9.0 is not inside its interval [0.5, 2.5]"),
        ({"interval": [2.5]}, "interval must be null or [low, high]"),
        ({"interval": [2.5, 0.5]}, "not inside its interval"),
        ({"paper": " "}, "paper is empty"),
        ({"command": None}, "command is empty"),
        ({"claim": "a\nb"}, "claim has several lines"),
        ({"system": 3}, "system must be a text; it is 3"),
        ({"outcome": "not testable"}, "not testable and yet has an effect"),
        (
            {"outcome": "not testable", "effect": None, "interval": None},
            "not testable and gives no reason",
        ),
        (
            {"outcome": "undecided", "effect": None, "interval": None},
            "neither effect nor reason",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, text):
    written(tmp_path, GIVEN, {**GIVEN, **change})
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert text in str(error.value)
    assert f"{tmp_path / 'one' / 'claims.json'}, record 1: " in str(error.value)


def test_a_bad_file_is_named(tmp_path):
    path = written(tmp_path, GIVEN) / "one" / "claims.json"
    missing = {k: v for k, v in GIVEN.items() if k not in ("reason", "effect")}
    path.write_text(json.dumps([missing]))
    with pytest.raises(DataError, match="the claim lacks effect, reason; write null"):
        load(tmp_path)
    path.write_text(json.dumps(GIVEN))
    with pytest.raises(DataError, match="must hold a list of claims; it holds an object"):
        load(tmp_path)
    path.write_text(json.dumps(["x"]))
    with pytest.raises(DataError, match=r"record 0: a claim is an object .*; this is a text"):
        load(tmp_path)
    path.write_text("[{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        load(tmp_path)
    with pytest.raises(DataError, match="no folder of experiments"):
        load(tmp_path / "nowhere")


def test_the_page(tmp_path):
    other = {
        **GIVEN,
        "system": "Zoo",
        "outcome": "not testable",
        "effect": None,
        "interval": None,
        "seeds": [],
        "reason": "needs | a cluster\nof 8",
        "command": None,
        "versions": {},
    }
    written(tmp_path, other, {**GIVEN, "system": "uniform"}, at="b")
    page = markdown(load(written(tmp_path, GIVEN, at="a/long one")))
    assert page.startswith("# Claims ledger\n")
    assert "3 claims: 2 seen, 0 not seen, 0 undecided, 1 not testable." in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[1] for row in rows[2:]] == ["pcgrad", "uniform", "Zoo"]
    assert rows[2] == (
        "| balance | pcgrad | beats equal weights (arXiv:2001.06782) | digits2, margin 1 % "
        "| 0, 1, 2 | seen | +1.5 % delta-m [+0.5, +2.5] |  "
        "| [a/long one](../experiments/a/long%20one/): `python run.py --seeds 3` |"
    )
    assert "needs \\| a cluster of 8" in rows[4]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_an_empty_ledger_has_no_table(tmp_path):
    page = markdown(load(tmp_path))
    assert "0 claims: 0 seen" in page
    assert "\n|" not in page


def test_a_claim_checks_itself_without_a_file():
    with pytest.raises(DataError, match="Claim 'c' of 's': outcome 'not seen' rests on"):
        Claim("s", "p", "c", "x", (0,), "not seen", None, None, "", "run", {"torch": "2"})


def test_an_effect_of_equal_numbers_is_inside_its_interval():
    """Their mean, by fmean, is off by the last bit of these."""
    value = 14.137544753662656
    assert fmean([value] * 3) != value
    effect, bounds = Effect(fmean([value] * 3), "points"), interval([value] * 3)
    Claim("s", "p", "c", "x", (0, 1, 2), "not seen", effect, bounds, "", "run", {"torch": "2"})
