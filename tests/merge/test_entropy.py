"""Objectives without labels: entropies by kind, a teacher's answers, kinds without classes."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from polytask.errors import UsageError
from polytask.merge.classes import disagreement, entropy, log_probabilities
from polytask.tasks import (
    Binary,
    DenseLabels,
    DenseRegression,
    Multiclass,
    Multilabel,
    Regression,
    SequenceLabels,
    Task,
)


def test_entropies_are_those_of_torch_distributions():
    torch.manual_seed(0)
    z = torch.randn(5, 3, dtype=torch.float64)
    cases = [
        (Multiclass(3), z, Categorical(logits=z)),
        (Binary(), z[:, :1], Bernoulli(logits=z[:, :1])),
        (Multilabel(3), z, Bernoulli(logits=z)),
        (SequenceLabels(3), z[:, None].expand(-1, 4, -1), Categorical(logits=z)),
        (DenseLabels(3), z[:, :, None, None].expand(-1, -1, 2, 2), Categorical(logits=z)),
    ]
    for kind, output, truth in cases:
        got = entropy(Task("t", kind), output, "test")
        torch.testing.assert_close(got, truth.entropy().mean())
        log_BRC = log_probabilities(Task("t", kind), output, "test")
        torch.testing.assert_close(log_BRC.exp().sum(2), torch.ones(log_BRC.shape[:2]).double())


def test_sure_answers_have_no_entropy_and_a_finite_gradient():
    for kind, output in ((Multiclass(2), [[200.0, -200.0]]), (Binary(), [[-500.0]])):
        z = torch.tensor(output, requires_grad=True)
        found = entropy(Task("t", kind), z, "test")
        found.backward()
        assert found.item() == pytest.approx(0, abs=1e-30)
        assert torch.isfinite(z.grad).all()


def test_disagreement_is_the_cross_entropy_to_the_teachers_classes():
    torch.manual_seed(1)
    z, teacher = torch.randn(6, 4), torch.randn(6, 4)
    task = Task("t", Multiclass(4))
    log_BRC, teacher_BRC = (log_probabilities(task, x, "test") for x in (z, teacher))
    loss, used = disagreement(log_BRC, teacher_BRC)
    expected = torch.nn.functional.cross_entropy(z, teacher.argmax(1))
    torch.testing.assert_close(loss, expected)
    assert used == 1


def test_rows_where_the_teacher_differs_and_is_less_sure_are_left_out():
    task = Task("t", Multiclass(2))
    student = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.1, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.0, 3.0]])  # same; less sure; surer
    log_BRC = log_probabilities(task, student, "test")
    teacher_BRC = log_probabilities(task, teacher, "test")
    loss, used = disagreement(log_BRC, teacher_BRC, only_trusted=True)
    assert used.item() == pytest.approx(2 / 3)
    rows = torch.nn.functional.cross_entropy(student, torch.tensor([0, 1, 1]), reduction="none")
    torch.testing.assert_close(loss, (rows[0] + rows[2]) / 2)
    loss, used = disagreement(log_BRC[1:2], teacher_BRC[1:2], only_trusted=True)
    assert (loss.item(), used.item()) == (0, 0)
    loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("kind", [Regression(), DenseRegression()])
def test_kinds_without_classes_are_refused_by_name(kind):
    with pytest.raises(UsageError) as caught:
        entropy(Task("price", kind), torch.zeros(2, 1), "AdaMerging")
    said = str(caught.value)
    assert "task 'price' is of the kind" in said
    assert "AdaMerging reads" in said
    assert "RegMean without labels, SelfPositioning or ATLAS with labels" in said
