"""Wrappers over micro-batches and over two processes make the updates of one batch in one process.

Where rows are drawn, each share draws of its own: the one process is then given the rows that all
shares draw together. This file is also the program of each process.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polytask.balance import (
    FAMO,
    MGDA,
    AlignedMTL,
    Balancer,
    CAGrad,
    Equal,
    EveryN,
    FeatureLevel,
    FlatRegions,
    Fuller,
    GradDrop,
    IGBv1,
    LookAhead,
    PCGrad,
    Rows,
    SampledRows,
    TrimmedMean,
    Uncertainty,
    Weighed,
    Wrapper,
    sum_gradients,
)
from polytask.errors import PolytaskError, UsageError

METHODS: dict[str, Callable[[], Wrapper]] = {
    "every-n": lambda: EveryN(PCGrad(), n=2),
    "every-n, feature level": lambda: EveryN(FeatureLevel(MGDA()), n=2),
    "every-n, sampled rows": lambda: EveryN(SampledRows(MGDA(), 0.5), n=3),
    "feature level": lambda: FeatureLevel(AlignedMTL()),
    "sampled rows": lambda: SampledRows(CAGrad(), 0.5, seed=3),
    "sampled rows, all": lambda: SampledRows(MGDA(), 1.0),
    "flat regions": lambda: FlatRegions(PCGrad()),
    "flat regions, losses": lambda: FlatRegions(Uncertainty(), rho=0.1),
    "flat regions, rows": lambda: FlatRegions(GradDrop()),
    "look-ahead": lambda: LookAhead(MGDA(), lr=0.1, inner=0.5),
    "look-ahead, losses": lambda: LookAhead(Uncertainty(), lr=0.1, inner=0.7, seed=1),
    "look-ahead, rows": lambda: LookAhead(TrimmedMean(), lr=0.1, inner=0.5),
    "fuller": lambda: Fuller(MGDA()),
    "weighed": lambda: Weighed(CAGrad(), by=Uncertainty()),
    "weighed, rows": lambda: Weighed(GradDrop(), by=Uncertainty()),
    "weighed, sampled rows": lambda: Weighed(SampledRows(PCGrad(), 0.5), by=Uncertainty()),
    "weighed, flat regions": lambda: Weighed(FlatRegions(PCGrad()), by=Uncertainty()),
    "weighed, every-n": lambda: Weighed(EveryN(MGDA(), n=2), by=Uncertainty()),
}
WHOLE: dict[str, Callable[[], Wrapper]] = {
    "feature level, rows": lambda: FeatureLevel(GradDrop()),
    "fuller, rows": lambda: Fuller(TrimmedMean()),
    "weighed, famo": lambda: Weighed(CAGrad(), by=FAMO()),
    "weighed, igb": lambda: Weighed(EveryN(CAGrad(), n=2), by=IGBv1()),
}
"""Those that take no micro-batches."""

BARE = ("feature level", "fuller", "every-n, feature level")
"""Those that also do without `again`."""

TASKS = ("a", "b", "c")
STEPS = 4
ROWS = 13


class Model(nn.Module):
    """Two branches that meet in one layer, and a head of two layers per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 3)
        self.join = nn.Linear(7, 5)
        self.heads = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)) for t in TASKS}
        )
        self.double()

    def branches(self) -> dict[str, list[nn.Parameter]]:
        return {"left": list(self.left.parameters()), "right": list(self.right.parameters())}

    def shared(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("heads")]

    def forward(self, x: Tensor, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
        both = torch.cat([self.left(x[:, :3]).tanh(), self.right(x[:, 3:]).tanh()], 1)
        features = self.join(both).tanh()
        return {t: self.heads[t](features)[:, 0] for t in tasks}


def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield inputs and targets, of which NaN is no label."""
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        inputs = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
        targets = {
            t: torch.randn(ROWS, generator=generator, dtype=torch.float64) * (1 + i)
            for i, t in enumerate(TASKS)
        }
        targets["b"][7:] = torch.nan  # labels in the first process alone
        if step in (0, 3):
            targets["c"][:] = torch.nan  # nowhere: its first labels come between two looks
        if step == 2:
            targets["a"][:7] = torch.nan  # in the second alone
        yield inputs, targets


def drawn(rows: Rows, shares: Sequence[Tensor], parts: int) -> list[Tensor]:
    """Return the rows of the batch that each share draws where one is asked for `rows`."""
    found = []
    for n, share in enumerate(shares):
        rank, part = divmod(n, parts)
        own = () if n == 0 else (part, rank)
        draw = (*rows.draw[:2], *own) if rows.draw else ()
        found.append(share[Rows(draw, rows.start, rows.stop)(torch.arange(len(share)))])
    return found


def losses(
    model: nn.Module,
    inputs: Tensor,
    targets: dict[str, Tensor],
    rows: Tensor,
    every: Tensor,
    tasks: Sequence[str] = TASKS,
) -> dict[str, Tensor]:
    """Return the sums over `rows` of the squared errors, over the labels in the rows `every`."""
    outputs, result = model(inputs[rows], tasks), {}
    for task in tasks:
        here = ~targets[task][rows].isnan()
        if bool(here.any()):
            error = outputs[task][here] - targets[task][rows][here]
            result[task] = error.square().sum() / (~targets[task][every].isnan()).sum()
    return result


def train(
    name: str, world: int = 1, parts: int = 1, rank: int | None = None, looks: bool = True,
    ddp: bool = False,
) -> dict[str, list[float]]:  # fmt: skip
    """Return what a few updates leave: parameters, weights used, state.

    world, parts: into how many shares the rows are cut. rank: whose shares these are; None: one
    process and one batch, that draws what the shares draw.
    """
    bare = Model()
    model = DistributedDataParallel(bare) if ddp else bare
    method = (METHODS | WHOLE)[name]()
    balancer = Balancer(method, bare.shared(), TASKS, steps_per_epoch=2, branches=bare.branches())
    trained = [*bare.parameters(), *balancer.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    shares = torch.arange(ROWS).tensor_split(world * parts)
    mine = [torch.arange(ROWS)] if rank is None else shares[rank * parts : (rank + 1) * parts]
    used = []

    def quietly() -> contextlib.AbstractContextManager[None]:
        return model.no_sync() if ddp else contextlib.nullcontext()

    for inputs, targets in batches():
        optimiser.zero_grad()
        for n, own in enumerate(mine):

            def again(rows, tasks, n=n, inputs=inputs, targets=targets):
                found = drawn(rows, shares, parts)
                every = torch.cat(found)
                taken = every if rank is None else found[rank * parts + n]
                with quietly():
                    return losses(model, inputs, targets, taken, every, tasks)

            with quietly():
                given = losses(model, inputs, targets, own, torch.arange(ROWS))
            weights = balancer.backward(
                given, accumulate=n + 1 < len(mine), again=again if looks else None
            )
        used += [weights.get(t, 0.0) for t in TASKS]
        sum_gradients(trained)
        optimiser.step()
        if balancer.observes:
            with torch.no_grad():
                rows = torch.cat(list(mine))
                balancer.observe(losses(bare, inputs, targets, rows, torch.arange(ROWS)))
    saved = balancer.state_dict().items()
    # What the engine found out about graphs is no number of the method.
    state = [v.double().flatten().nan_to_num() for k, v in saved if not k.startswith("engine.")]
    return {
        "parameters": torch.cat([p.detach().flatten() for p in trained]).tolist(),
        "used": used,
        "state": torch.cat(state).tolist(),
    }


def check(found: dict, name: str, world: int, parts: int) -> None:
    whole = train(name, world, parts)
    # Log-variances are kept in float32, whatever the model is in.
    exact = "Uncertainty" not in repr((METHODS | WHOLE)[name]())
    close = {"rtol": 1e-8, "atol": 1e-9} if exact else {"rtol": 1e-5, "atol": 1e-6}
    for what, expected in whole.items():
        pair = (torch.tensor(v, dtype=torch.float64) for v in (found[what], expected))
        torch.testing.assert_close(*pair, **close, msg=lambda text, what=what: f"{what}: {text}")


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_are_the_whole_batch(name, parts):
    check(train(name, 1, parts, 0), name, 1, parts)


@pytest.mark.parametrize("name", BARE)
def test_micro_batches_that_cannot_be_computed_again_are_the_whole_batch_too(name):
    check(train(name, 1, 3, 0, looks=False), name, 1, 3)


ALONE = (
    "every-n, feature level",
    "sampled rows, all",
    "flat regions, losses",
    "weighed, rows",
    "weighed, sampled rows",
    "weighed, every-n",
)
"""Those that two processes need not be started for: made of parts that others have."""

RUNS = [
    *((name, 2) for name in METHODS if name not in ALONE),
    *((name, 1) for name in WHOLE),
]
DDP = ("every-n", "feature level", "sampled rows", "flat regions", "look-ahead", "fuller")
"""Those whose processes wrap the model in DistributedDataParallel."""


@pytest.fixture(scope="module")
def pair(run_pair) -> list[dict]:
    return run_pair(__file__)


@pytest.mark.parametrize(("name", "parts"), RUNS)
def test_two_processes_are_one(pair, name, parts):
    for result in pair:
        check(result[f"{name} {parts}"], name, 2, parts)
    assert pair[0][f"{name} {parts}"] == pair[1][f"{name} {parts}"]


# -- what cannot be -------------------------------------------------------------------------------


def one_batch() -> tuple[Model, dict[str, Tensor], Callable]:
    model, (inputs, targets) = Model(), next(batches())
    rows = torch.arange(ROWS)
    given = losses(model, inputs, targets, rows, rows)
    return (
        model,
        given,
        lambda taken, tasks: losses(model, inputs, targets, taken(rows), taken(rows), tasks),
    )


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: FeatureLevel(GradDrop()), "passes a direction of its own to the features"),
        (lambda: Fuller(TrimmedMean()), r"accumulate=True does not work with it\. Take a smaller"),
        (lambda: Weighed(CAGrad(), by=IGBv1()), "IGBv1 weighs by the whole step's losses"),
    ],
)
def test_methods_that_cannot_take_micro_batches_say_what_to_do(build, said):
    model, given, again = one_batch()
    balancer = Balancer(build(), model.shared(), TASKS, 2, branches=model.branches())
    with pytest.raises(UsageError, match=said):
        balancer.backward(given, accumulate=True, again=again)
    assert all(p.grad is None for p in model.parameters())
    balancer.state_dict()  # nothing is left that would have to be finished
    balancer.backward(given, again=again)


@pytest.mark.parametrize("build", [lambda: SampledRows(MGDA()), lambda: FlatRegions(Equal())])
def test_a_micro_batch_that_is_computed_again_with_other_tasks_is_refused(build):
    model, given, again = one_batch()
    balancer = Balancer(build(), model.shared(), TASKS)
    fewer = lambda rows, tasks: {t: v for t, v in again(rows, tasks).items() if t != "a"}  # noqa: E731
    balancer.backward(given, accumulate=True, again=fewer)
    with pytest.raises(UsageError, match=r"with all rows gave losses of b; those given .* a, b\."):
        balancer.backward(again(Rows(), TASKS), again=again)


@pytest.mark.parametrize("name", ["every-n", "flat regions", "look-ahead", "sampled rows"])
def test_losses_that_nobody_asked_for_count_nothing(name):
    """An `again` that gives the losses of all tasks, whatever it is asked for."""
    found = []
    for whole in (False, True):
        model, given, again = one_batch()
        balancer = Balancer(METHODS[name](), model.shared(), TASKS)
        given.pop("b")
        balancer.backward(
            given, again=lambda rows, tasks, w=whole, a=again: a(rows, TASKS if w else tasks)
        )
        found.append([None if p.grad is None else p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("name", ["every-n", "feature level", "sampled rows", "weighed"])
def test_an_update_that_is_left_out_leaves_nothing_of_its_micro_batches(name):
    model, _, again = one_batch()
    balancer = Balancer(METHODS[name](), model.shared(), TASKS, nonfinite="skip")
    for broken in (1.0, torch.nan, 1.0):  # of every-n the second is between two looks
        model.zero_grad()
        state = {n: v.clone() for n, v in balancer.state.items()}
        balancer.backward(again(Rows(), TASKS), accumulate=True, again=again)
        last = {t: loss * broken for t, loss in again(Rows(), TASKS).items()}
        if broken != broken:
            with pytest.warns(RuntimeWarning, match="left the whole update out"):
                assert not balancer.backward(last, again=again)
            assert all(p.grad is None for p in model.parameters())
            assert all(torch.equal(v.nan_to_num(), balancer.state[n].nan_to_num())
                       for n, v in state.items())  # fmt: skip
        else:
            assert balancer.backward(last, again=again)
            assert all(bool(p.grad.isfinite().all()) for p in model.shared())


def test_without_again_a_micro_batch_is_refused_as_a_batch_is():
    model, given, _ = one_batch()
    with pytest.raises(UsageError, match=r"computes losses again; give balancer\.backward"):
        Balancer(LookAhead(MGDA()), model.shared(), TASKS).backward(given, accumulate=True)


def refusals(rank: int) -> dict[str, str]:
    """Return what processes are told when one of them does wrong, in step with each other."""

    def told(method: Wrapper, wrong: str) -> str:
        bare = Model()
        model = DistributedDataParallel(bare) if "synced" in wrong else bare
        inputs, targets = next(batches())
        if wrong != "synced parts":  # there the head of "c" has no gradient to wait for
            targets = dict.fromkeys(TASKS, targets["a"])
        own = torch.arange(ROWS).tensor_split(2)[rank]

        def again(rows: Rows, tasks: Sequence[str]) -> dict[str, Tensor]:
            taken = rows(own)
            given = losses(model, inputs, targets, taken, taken, tasks)
            if wrong == "nan" and rank == 1:
                given = {t: loss * torch.nan for t, loss in given.items()}
            if wrong == "other parameters" and rank == 1:
                given = {t: loss + extra.square().sum() for t, loss in given.items()}
            return given

        extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
        given = again(Rows(), TASKS) if wrong != "nan" else losses(model, inputs, targets, own, own)
        balancer = Balancer(method, bare.shared(), TASKS, branches=bare.branches())
        try:
            for _ in range(2 if wrong == "synced parts" else 0):
                balancer.backward(given, accumulate=True, again=again)
                given = again(Rows(), TASKS)
            balancer.backward(given, again=again)
        except PolytaskError as error:
            return str(error)
        return "nothing"

    return {
        "nan, sampled rows": told(SampledRows(MGDA()), "nan"),
        "nan, flat regions": told(FlatRegions(MGDA()), "nan"),
        "nan, look-ahead": told(LookAhead(MGDA()), "nan"),
        "other parameters, flat regions": told(FlatRegions(MGDA()), "other parameters"),
        "synced, sampled rows": told(SampledRows(MGDA()), "synced"),
        "synced parts, sampled rows": told(SampledRows(MGDA()), "synced parts"),
    }


def test_processes_are_told_together_what_went_wrong_in_one(pair):
    for result in pair:
        for case, said in result["refusals"].items():
            wrong, _ = case.split(", ")
            if wrong == "nan":
                assert "At step 0 the loss of task 'a' is nan" in said
            elif "synced" in wrong:
                assert "forward pass under `with model.no_sync():`" in said
            else:
                assert "a task's losses reach other parameters of its own in one process" in said


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    result: dict = {
        f"{name} {parts}": train(name, 2, parts, rank, ddp=name in DDP) for name, parts in RUNS
    }
    print(json.dumps(result | {"refusals": refusals(rank)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
