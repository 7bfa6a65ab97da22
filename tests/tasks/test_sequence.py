"""SequenceLabels: span F1 equal to seqeval's, whatever the tags, gaps and batches."""

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score

from polytask.errors import DataError
from polytask.tasks import IGNORE, SequenceLabels

NAMES = ("B-city", "O", "I-city", "B-time", "I-time")
TAGS = st.sampled_from(range(len(NAMES)))
SENTENCES = st.lists(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.lists(TAGS, min_size=n, max_size=n), st.lists(TAGS, min_size=n, max_size=n)
        )
    ),
    min_size=1,
    max_size=6,
)


def measured(sentences: list[tuple[list[int], list[int]]], gaps: random.Random) -> float:
    """Return our span F1 of (predicted, meant) tags, padded, with unlabelled positions between."""
    kind = SequenceLabels(len(NAMES), NAMES)
    metric = kind.metrics()[0]
    assert (metric.name, metric.direction) == ("span F1", "max")
    meter = metric.build()
    for chunk in (sentences[:2], sentences[2:]):
        if not chunk:
            continue
        rows = []
        for predicted, meant in chunk:
            row = []
            for p, m in zip(predicted, meant, strict=True):
                while gaps.random() < 0.3:  # a word piece: predicted, but without a label
                    row.append((gaps.randrange(len(NAMES)), IGNORE))
                row.append((p, m))
            rows.append(row)
        longest = max(map(len, rows)) + 1
        padded = torch.tensor([row + [(1, IGNORE)] * (longest - len(row)) for row in rows])
        output = torch.nn.functional.one_hot(padded[..., 0], len(NAMES)).float()
        meter.update(*kind.scores(output, padded[..., 1]))
    return float(meter.compute())


@settings(max_examples=150, deadline=None)
@given(sentences=SENTENCES, seed=st.integers(0, 2**31))
@example(sentences=[([0, 2, 2], [0, 2, 1])], seed=0)  # right begin, wrong end
@example(sentences=[([2, 4, 4], [0, 3, 4])], seed=0)  # spans that begin with I
@example(sentences=[([0, 0, 2], [0, 2, 2])], seed=0)  # one span cut in two
def test_span_f1_equals_seqeval(sentences: list[tuple[list[int], list[int]]], seed: int) -> None:
    meant = [[NAMES[i] for i in row] for _, row in sentences]
    predicted = [[NAMES[i] for i in row] for row, _ in sentences]
    found = measured(sentences, random.Random(seed))
    spans = any(name != "O" for row in (*meant, *predicted) for name in row)
    if not spans:  # seqeval warns and answers 0; there is no score of nothing
        assert found != found
        return
    assert found == pytest.approx(f1_score(meant, predicted, zero_division=0))


def test_half_the_spans() -> None:
    """Worked by hand: 2 spans meant, 2 predicted, 1 of them right: F1 is 1/2."""
    assert measured([([0, 2, 1, 3], [0, 2, 1, 0])], random.Random(0)) == 0.5


@pytest.mark.parametrize("names", [(), ("NOUN", "VERB", "X"), ("O", "B-x", "E-x"), ("O", "O", "O")])
def test_other_names_are_measured_by_token(names: tuple[str, ...]) -> None:
    kind = SequenceLabels(3, names)
    (metric,) = kind.metrics()
    assert metric.name == "token accuracy"
    target = torch.tensor([[0, 1, 2, IGNORE], [IGNORE] * 4, [2, 2, IGNORE, IGNORE]])
    guess = torch.tensor([[0, 1, 0, 0], [0] * 4, [2, 0, 0, 0]])
    meter = metric.build()
    meter.update(*kind.scores(torch.nn.functional.one_hot(guess, 3).float(), target))
    assert float(meter.compute()) == pytest.approx(3 / 5)


def test_what_it_refuses() -> None:
    kind = SequenceLabels(5, NAMES)
    with pytest.raises(DataError, match=r"'slots' \(sequence labels\).* got 5 in row 0; recode"):
        kind.check(torch.tensor([[0, 5]]), "slots", "test")
    with pytest.raises(DataError, match=r"every label is class 1 \('O'\); add"):
        kind.fit(torch.ones(2, 3, dtype=torch.long), "slots")
    fitted = kind.fit(torch.tensor([[0, 1, IGNORE]]), "slots")
    fitted.check(torch.tensor([[3, 4]]), "slots", "test")  # unseen in train: counts in the score
