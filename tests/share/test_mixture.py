"""Mixtures as rows and as numbers, and tasks' own experts that are stacked without a copy.

Shapes: R = rows, A = readers, E = experts of all, F = each reader's own, S = A * F, W = width.
"""

import copy

import pytest
import torch
from torch import nn

from polytask.share import PLE, TrunkModel
from polytask.share.experts import joined
from polytask.share.mixture import Mixture, mixed

R, A, E, W = 7, 3, 2, 5


def drawn(own: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(R, A, E + own), (E, R, W), *([(A * own, R, W)] if own else []), (A, W, 1)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def one_by_one(weights_RAX, experts_ERW, own_SRW, own: int) -> torch.Tensor:
    rows = []
    for a in range(A):
        parts = [weights_RAX[:, a, e, None] * experts_ERW[e] for e in range(E)]
        for f in range(own):
            parts.append(weights_RAX[:, a, E + f, None] * own_SRW[a * own + f])
        rows.append(sum(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("at", [None, [2, 0]], ids=["all", "some"])
@pytest.mark.parametrize("own", [0, 1, 2])
def test_rows_and_numbers_are_the_sums_with_their_gradients(own, at):
    """Experts before a head or after it: the product is linear, so both are the plain loop's."""
    inputs = drawn(own)
    *parts, vectors_AW1 = inputs
    mixture = Mixture(*parts)
    expected_ARW = one_by_one(parts[0], parts[1], parts[2] if own else None, own)
    if at is not None:
        mixture, expected_ARW, vectors_AW1 = mixture.of(at), expected_ARW[at], vectors_AW1[at]
    numbers_AR1 = mixture.numbers(vectors_AW1)
    expected_AR1 = expected_ARW @ vectors_AW1
    torch.testing.assert_close(mixture.rows(), expected_ARW, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(numbers_AR1, expected_AR1, rtol=1e-12, atol=1e-12)
    wish_AR1 = torch.randn_like(expected_AR1)
    wanted = torch.autograd.grad(expected_AR1, inputs, wish_AR1, retain_graph=True)
    by_rows = torch.autograd.grad(mixture.rows() @ vectors_AW1, inputs, wish_AR1, retain_graph=True)
    by_numbers = torch.autograd.grad(numbers_AR1, inputs, wish_AR1)
    for a, b, c in zip(wanted, by_rows, by_numbers, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c, a, rtol=1e-12, atol=1e-12)


def ple(tasks: int = 3) -> TrunkModel:
    torch.manual_seed(0)
    names = [f"t{i}" for i in range(tasks)]
    heads = {name: nn.Linear(4, 1) for name in names}
    return TrunkModel(nn.Identity(), PLE(names, 6, own=2, widths=(5, 4)), heads)


def weights_of(model: TrunkModel) -> list[torch.Tensor]:
    return [experts.weight_0 for experts in model.trunk.levels[0].own.values()]


def reads_the_parameters(model: TrunkModel) -> bool:
    with torch.no_grad():
        stacked = model.trunk.stack(model.tasks)["level0_own_0_weight"]
    assert torch.equal(stacked, torch.cat(weights_of(model)))
    return stacked.data_ptr() == weights_of(model)[0].data_ptr()


def added(model: TrunkModel) -> TrunkModel:
    from polytask.tasks import Binary, Task

    model.add_task(Task("new", Binary()))
    return model


def stepped(model: TrunkModel) -> TrunkModel:
    optimiser = torch.optim.Adam(model.parameters())
    sum(output.sum() for output in model(torch.randn(9, 6)).values()).backward()
    optimiser.step()
    return model


CHANGES = {
    "made": lambda model: model,
    "copied": copy.deepcopy,
    "in another type and back": lambda model: model.half().float(),
    "with one task more": added,
    "trained": stepped,
    "loaded": lambda model: (model.load_state_dict(ple().state_dict()), model)[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_own_experts_are_stacked_without_a_copy_whatever_happened(change):
    model = CHANGES[change](ple())
    assert reads_the_parameters(model)
    for p in weights_of(model):
        p.data.mul_(2)  # seen, though it counts no version up
    assert reads_the_parameters(model)
    assert len({id(p) for p in model.parameters()}) == sum(1 for _ in model.parameters())


def test_a_copy_shares_nothing_with_the_model():
    model = ple()
    other = copy.deepcopy(model)
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_parts_that_do_not_lie_in_order_are_copied():
    whole = torch.arange(24.0).view(6, 2, 2)
    first, second, third = whole[:2], whole[2:4], whole[4:]
    with torch.no_grad():
        for parts in ([second, first], [first, third], [first, first], [first.clone(), second]):
            assert torch.equal(joined(parts), torch.cat(parts))
        turned = [first, second.mT]
        assert torch.equal(joined(turned), torch.cat(turned))
        assert joined([second, third]).data_ptr() == second.data_ptr()
        assert torch.equal(joined([second, third]), whole[2:])
        narrow = [first, second[:1]]  # of unlike numbers
        assert torch.equal(joined(narrow), torch.cat(narrow))
    grown = joined([p.requires_grad_() for p in (first.clone(), second.clone())])
    assert grown.requires_grad


def test_under_vmap_and_in_export_nothing_looks_at_memory():
    model, x = ple(), torch.randn(4, 6)
    with torch.no_grad():
        expected = model(x)
        every = torch.func.vmap(lambda row: model(row[None])["t1"][0])(x)
        torch.testing.assert_close(every, expected["t1"])

        def called(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(model, parameters, (x,))["t1"]

        twice = {n: torch.stack([p, 2 * p]) for n, p in model.named_parameters()}
        torch.testing.assert_close(torch.func.vmap(called)(twice)[0], expected["t1"])
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x)["t1"], expected["t1"])


@pytest.mark.parametrize(
    ("readers", "experts", "width"), [(1, 1, 3), (3, 1, 3), (1, 3, 5), (1, 9, 5), (2, 3, 5)]
)
def test_few_experts_and_many_are_mixed_to_the_same_sums(readers, experts, width):
    """Around the sizes where element by element is quicker than a batched product."""
    torch.manual_seed(0)
    for times in (1, 400):
        weights_RAE = torch.randn(R, readers, experts, dtype=torch.float64, requires_grad=True)
        experts_ERW = torch.randn(
            experts, R, width * times, dtype=torch.float64, requires_grad=True
        )
        found = mixed(weights_RAE, experts_ERW)
        wanted = torch.einsum("rae,erw->arw", weights_RAE, experts_ERW)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        for a, b in zip(
            *(
                torch.autograd.grad(one.square().sum(), (weights_RAE, experts_ERW))
                for one in (found, wanted)
            ),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
