"""Few experts of many: the chosen multiplied alone are all of them with zeros among the weights."""

import pytest
import torch

from polytask.adapt import Arrow, MoSLD, Rows, SMoRA, Softmax, adapt
from polytask.adapt.experts import PIECE, plus_spread
from polytask.adapt.selection import Few

from .rowwise import TASKS, model, moved


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 2 * PIECE // 3 + 1])
def test_the_chosen_alone_are_the_same_sum(tokens, shared, dtype, close):
    """Pieces of the tokens, y with other strides, rows without a task, and down factors of all."""
    experts, rank, wide, draw = 12, 3, 5, torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    y, up_SO = drawn(tokens, 3, wide).transpose(0, 1), drawn(experts * rank, wide)
    made = drawn(3, tokens, rank if shared else experts * rank)
    few = Softmax(0.7, top=3).few(drawn(3, tokens, 1, experts))
    rows = Rows(torch.tensor([0, -1, 2]))
    wanted = y.clone()
    for e, own in enumerate(up_SO.split(rank)):
        mine = made if shared else made[..., e * rank : (e + 1) * rank]
        weight = few.dense()[:, :, 0, e, None] * rows.here_B[:, None, None]
        wanted += 0.5 * weight * (mine @ own)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            came = plus_spread(y.clone(), made, up_SO, few, rows, 0.5)
        torch.testing.assert_close(came, wanted, rtol=close, atol=close)
        assert torch.equal(came[1], y[1]), "a row without a task"


@pytest.mark.parametrize(
    "method", [Arrow(12, 2, top=3), MoSLD(experts=12, rank=2, top=3), SMoRA(rank=12, top=3)]
)
def test_a_pass_without_gradients_is_that_with_them(method, monkeypatch):
    """And is the one that multiplies the chosen alone: its look-ups are counted."""
    adapted = moved(adapt(model(), method, TASKS)).eval()
    x, index_B = torch.randn(5, 4, 6, dtype=torch.float64), torch.tensor([0, 2, -1, 1, 2])
    seen, bag = [], torch.nn.functional.embedding_bag
    monkeypatch.setattr(
        torch.nn.functional, "embedding_bag", lambda *a, **k: (seen.append(1), bag(*a, **k))[1]
    )
    with adapted.tasks(index_B):
        wanted = adapted(x)
        assert not seen
        with torch.no_grad():
            came = adapted(x)
    assert len(seen) == 2
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-12)


def test_equal_scores_are_those_that_topk_names():
    scores = torch.zeros(2, 6)
    few = Softmax(top=2).few(scores)
    assert isinstance(few, Few)
    assert torch.equal(few.weights, torch.full((2, 2), 0.5))
    assert torch.equal(few.dense() > 0, torch.zeros(2, 6).scatter(1, few.chosen, 1.0) > 0)
    assert Softmax(top=6).few(scores) is None
