"""Adapters: rows of many tasks at once, against every task by itself.

Shapes: B = rows, L = tokens, T = tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from polytask.errors import UsageError
from polytask.testing.parts import hold

if TYPE_CHECKING:  # the room loads when something is checked
    from polytask.adapt import Adapted, Adapter, Method, Where

TASKS = ("a", "b", "c")
WIDTH = 8


def check_adapter(
    method: Method,
    where: Where | str | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Return nothing if `method` keeps the contract of `polytask.adapt.Method`.

    method: with its settings. where: the layers it goes to; None: all that it can change.
    given: what it needs of each of 6 rows beside its task, of 3 tasks.
    seed: of the made-up models.

    Tried in float64 on a small transformer and a small convolutional network, those of them that
    have layers for it: mixed rows against single tasks, rows without a task against the base, rows
    made again in backward, tasks added, changes of weights folded, gradients of absent tasks, the
    number of operators, and one compilation for all patterns of tasks. Raises AssertionError that
    names the broken rule and the model.
    """
    from polytask.adapt import adapt

    tried = 0
    for name, model, inputs in models(seed):
        try:
            probe = adapt(copy.deepcopy(model), method, TASKS, where)
        except UsageError as error:
            if "No layer of the model matches" not in str(error):
                raise
            continue
        tried += 1
        label = f"{type(method).__name__}, {name}"
        needy = any(adapter.needs_task for adapter in adapters_of(probe))
        case = Case(label, method, where, given, model, inputs, seed, not needy)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it rounds in another way
        try:
            _check_rows(case)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        _check_gradients(case)
        _check_again(case)
        _check_growth(case)
        _check_changes(case)
        _check_operators(case)
        _check_compiled(case)
    hold(
        tried > 0, type(method).__name__, "it can change no layer of the small models", "an adapter"
    )


def models(seed: int = 0) -> list[tuple[str, nn.Module, Tensor]]:
    """Return the models the contract is tried on, in evaluation mode, with inputs of 6 rows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text, picture = Text().double().eval(), Picture().double().eval()
    tokens = torch.randint(11, (6, 5), generator=generator)
    pictures = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
    return [("a transformer", text, tokens), ("a convolutional network", picture, pictures)]


def adapters_of(adapted: Adapted) -> list[Adapter]:
    """Return the adapters of all layers."""
    from polytask.adapt import Adapter

    return [module for module in adapted.parts.modules() if isinstance(module, Adapter)]


class Text(nn.Module):
    """Tokens (B, L) -> (B, WIDTH): an embedding, two blocks, a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed.mean(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        wider: Tensor = self.mlp(self.norm2(x))
        return x + wider


class Picture(nn.Module):
    """Pictures (B, 3, H, W) -> (B, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, WIDTH)
        self.deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular")

    def forward(self, pictures: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(pictures)))
        deep: Tensor = self.deep(x)
        return deep.mean((2, 3))


@dataclass(frozen=True)
class Case:
    """A method on a model. alone: rows without a task may stand beside others."""

    label: str
    method: Method
    where: Where | str | None
    given: Mapping[str, Tensor] | None
    model: nn.Module
    inputs: Tensor
    seed: int
    alone: bool

    @property
    def index_B(self) -> Tensor:
        return torch.tensor([0, 2, -1 if self.alone else 1, 1, 2, 0])

    def adapted(self, tasks: int = 3, moved: bool = True) -> Adapted:
        """Return the model adapted. moved: with adapters that have been trained a little."""
        from polytask.adapt import adapt

        names = TASKS + tuple(f"task {t}" for t in range(3, tasks))
        adapted = adapt(copy.deepcopy(self.model), self.method, names, self.where, self.seed)
        generator = torch.Generator().manual_seed(self.seed + 1)
        if moved:
            for parameter in adapted.parts.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data += 0.3 * noise
        return adapted

    def run(self, adapted: Adapted, index_B: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        own = {name: value if value.dim() < 2 else value[rows]
               for name, value in (self.given or {}).items()}  # fmt: skip
        with adapted.tasks(index_B[rows], given=own):
            output: Tensor = adapted.base(self.inputs[rows])
        return output

    def hold(self, kept: bool, rule: str) -> None:
        hold(kept, self.label, rule, "an adapter")


def _check_rows(case: Case) -> None:
    before = torch.get_rng_state()
    adapted, twin = case.adapted(), case.adapted()
    case.hold(torch.equal(before, torch.get_rng_state()), "building draws from torch's generator")
    mine, others = (dict(a.parts.state_dict()) for a in (adapted, twin))
    case.hold(all(torch.equal(v, others[n]) for n, v in mine.items()), "a seed gives two builds")
    with torch.no_grad():
        base = copy.deepcopy(case.model).requires_grad_(False)(case.inputs)
        together = case.run(adapted, case.index_B)
        for b, task in enumerate(case.index_B.tolist()):
            row = case.run(adapted, case.index_B, torch.tensor([b]))
            close = torch.allclose(together[b], row[0], rtol=1e-10, atol=1e-11)
            case.hold(close, f"row {b} of a mixed batch is not what it is alone")
            if task < 0:
                same = torch.equal(together[b], base[b])
                case.hold(same, "a row without a task is not the base's, bit for bit")
        first = case.index_B == 0
        turned = case.run(adapted, torch.where(first, 1, case.index_B))
        same = torch.allclose(turned[first], together[first])
        if any(getattr(module, "per_task", ()) for module in adapted.parts.modules()):
            case.hold(not same, "tasks make no difference")
        else:  # routed by what rows hold alone
            case.hold(same, "tasks make a difference, and nothing is named in per_task")
        with adapted.without():
            alike = torch.equal(adapted.base(case.inputs), base)
        case.hold(alike, "without() is not the base, bit for bit")


def _check_gradients(case: Case) -> None:
    adapted = case.adapted()
    index_B = torch.where(case.index_B == 1, 0, case.index_B)  # nobody has task 1
    torch.autograd.backward(case.run(adapted, index_B).square().sum())
    for name, parameter in adapted.parts.named_parameters():
        case.hold(parameter.grad is not None, f"{name} gets no gradient")
    for module in adapted.parts.modules():
        for name in getattr(module, "per_task", ()):
            stacked = getattr(module, name)
            case.hold(stacked.shape[0] == 3, f"{name} has no axis of tasks first")
            if isinstance(stacked, nn.Parameter) and stacked.grad is not None:
                case.hold(not stacked.grad[1].any(), f"{name}: a task without rows gets a gradient")
    frozen = all(p.grad is None or p.requires_grad for p in adapted.base.parameters())
    case.hold(frozen, "the frozen base gets gradients")


def _check_again(case: Case) -> None:
    plain, saving = case.adapted(), case.adapted()
    for adapted in (plain, saving):
        outputs = []
        for index_B in (case.index_B, case.index_B.roll(1)):
            own = dict(case.given or {})
            with adapted.tasks(index_B, given=own):
                if adapted is plain:
                    outputs.append(adapted.base(case.inputs))
                else:
                    outputs.append(checkpoint(adapted.base, case.inputs, use_reentrant=False))
        torch.autograd.backward(torch.stack(outputs).square().sum())
    for (name, mine), theirs in zip(
        plain.parts.named_parameters(), saving.parts.parameters(), strict=True
    ):
        assert mine.grad is not None
        assert theirs.grad is not None
        close = torch.allclose(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
        case.hold(close, f"{name}: checkpointing takes other rows when it runs again")


def _check_growth(case: Case) -> None:
    adapted = case.adapted()
    with torch.no_grad():
        before = case.run(adapted, case.index_B)
        kept = list(adapted.parameters())
        adapted.add_task("new", seed=7)
        same = torch.equal(case.run(adapted, case.index_B), before)
    case.hold(same, "a task added changes the others' output")
    case.hold(all(a is b for a, b in zip(kept, adapted.parameters(), strict=True)),
              "a task added replaces parameters")  # fmt: skip
    with adapted.task("new"):
        if not case.given:
            case.hold(bool(adapted.base(case.inputs).isfinite().all()), "a new task is not finite")


def _check_changes(case: Case) -> None:
    adapted = case.adapted()
    folds = all(adapter.folds for adapter in adapters_of(adapted))
    if not folds:
        try:
            adapted.change("a")
        except UsageError:
            return
        case.hold(False, "it does not fold, and gives a change of weights")
    before = {name: p.clone() for name, p in adapted.base.named_parameters()}
    with torch.no_grad():
        for task in TASKS:
            with adapted.task(task):
                wanted = adapted.base(case.inputs)
            with adapted.fold(task):
                folded = adapted.base(case.inputs)
            close = torch.allclose(wanted, folded, rtol=1e-9, atol=1e-10)
            case.hold(close, f"the change of {task!r}, folded in, is not its forward pass")
    after = adapted.base.named_parameters()
    case.hold(all(torch.equal(p, before[n]) for n, p in after), "unfolding leaves other weights")


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched to torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += 1
        return func(*args, **(kwargs or {}))


def _check_operators(case: Case) -> None:
    if case.given:
        return  # its shapes may be those of three tasks
    counts = []
    for tasks in (20, 60):
        adapted = case.adapted(tasks)
        with Count() as count:
            case.run(adapted, case.index_B)
        counts.append(count.number)
    case.hold(counts[0] == counts[1], f"{counts} operators with 20 and 60 tasks")


def _check_compiled(case: Case) -> None:
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        made.append(1)
        return graph

    torch._dynamo.reset()
    adapted = case.adapted()
    compiled = torch.compile(adapted.base, backend=backend, fullgraph=True)
    with torch.no_grad():
        for turn in range(4):
            index_B = case.index_B.roll(turn)
            own = dict(case.given or {})
            with adapted.tasks(index_B, given=own):
                wanted, came = adapted.base(case.inputs), compiled(case.inputs)
            close = torch.allclose(wanted, came, rtol=1e-9, atol=1e-10)
            case.hold(close, "compiled it gives something else")
    torch._dynamo.reset()
    case.hold(len(made) == 1, f"{len(made)} compilations for four patterns of tasks")
