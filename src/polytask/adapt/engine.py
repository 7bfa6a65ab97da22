"""Adapters on any module: the task of each row is a tensor, carried through a context.

    adapted = adapt(model, LoRA(rank=8), tasks=("a", "b"), where=("q_proj", "v_proj"), seed=0)
    with adapted.tasks(index_B):
        output = model(x)

The model stays the module it was: layers get hooks, torch's packed attention another class, that
of Hugging Face's models another view of its configuration. The operators of a pass depend on the
layers adapted and never on the number of tasks.

Shapes: B = rows of the batch, N = what a row has at a layer, T = tasks.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.adapt import hugging_face, hugging_face_attention
from polytask.adapt.attention import host, unhost
from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
from polytask.adapt.changes import Folded, changed, changes_of
from polytask.adapt.growing import grow, grow_optimiser
from polytask.adapt.place import Current, Place
from polytask.adapt.recompute import Span
from polytask.adapt.where import Where
from polytask.errors import RunError, UsageError, unknown


@dataclass(frozen=True)
class At:
    """A method and the layers it goes to."""

    method: Method
    where: Where | str | Sequence[str] | None = None


class Part(nn.Module):
    """The adapters of one method, by layer, and what they have in common."""

    def __init__(self, method: Method, where: Where, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.method, self.where, self.layers = method, where, tuple(layers)
        self.common: nn.Module | None = None
        self.adapters = nn.ModuleDict()

    def build(self, tasks: int, generator: torch.Generator) -> Part:
        """Return itself with adapters for T tasks, each where its layer's weights are."""
        self.common = self.method.common(self.layers, tasks, generator)
        for layer in self.layers:
            adapter = self.method.build(layer, tasks, generator, self.common)
            self.adapters[key(layer.path)] = adapter
        return self

    def fresh(self, tasks: int, generator: torch.Generator) -> Part:
        """Return a part like this one with adapters of its own, not attached to anything."""
        return Part(self.method, self.where, self.layers).build(tasks, generator)

    def at(self, path: str) -> Adapter:
        """Return the adapter of a layer."""
        adapter = self.adapters[key(path)]
        assert isinstance(adapter, Adapter)
        return adapter


class Adapted(nn.Module):
    """A base model with a few parameters for every task; `adapt` makes it.

    Calling it calls the base. Its `state_dict` holds the base's tensors as `base.NAME` and the
    adapters' as `parts.I.adapters./PATH.NAME`, with "/" for the dots of the layer's name.
    """

    base: nn.Module
    parts: nn.ModuleList

    def __init__(
        self,
        base: nn.Module,
        parts: Sequence[Part],
        names: Sequence[str],
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.base = base
        self.parts = nn.ModuleList(parts)
        self._names = _checked_names(names)
        self._at = {name: t for t, name in enumerate(self._names)}
        self._current = Current(self.base, self.parts)
        self._folded: Folded | None = None
        # Taken over and not written out, so that any arguments reach the base.
        self.forward = base.__call__
        needy = (m for m in self.parts.modules() if isinstance(m, Adapter) and m.needs_task)
        self._needy = next((type(m).__name__ for m in needy), None)
        self._handles: list[Any] = [
            base.register_forward_pre_hook(_Fits(self._current), with_kwargs=True)
        ]
        with off_again(self):
            self._attach()

    def _attach(self) -> None:
        for layer, adapters in self._places():
            place = Place(layer, adapters, self._current)
            attention = layer.inside or layer.module
            if isinstance(attention, nn.MultiheadAttention):
                host(attention, place)
            elif layer.kind == "attention":
                hugging_face_attention.host(attention, place)
            else:
                self._handles.append(layer.module.register_forward_hook(place, with_kwargs=True))
            whole = hugging_face.model_of(self.base, layer.module) if place.lengthens else None
            if whole is not None:
                longer = hugging_face.Longer(place)
                self._handles.append(whole.register_forward_pre_hook(longer, with_kwargs=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tasks, in order: axis T."""
        return self._names

    @property
    def folded(self) -> str | None:
        """The task that is folded into the base, None where none is."""
        return self._current.folded

    @property
    def penalises(self) -> bool:
        """Whether training needs the penalties that a trace takes."""
        return any(isinstance(m, Adapter) and m.penalises for m in self.parts.modules())

    def index(self, names: Sequence[str | None]) -> Tensor:
        """Return the index of rows whose tasks are named, int64 (B,); None: without adapters."""
        return torch.tensor([-1 if name is None else self._position(name) for name in names])

    def tasks(
        self,
        index_B: Tensor,
        given: Mapping[str, Tensor] | None = None,
        trace: Trace | None = None,
    ) -> Active:
        """Return the context in which the model's rows have these tasks.

        index_B: int64, one per row of the model's inputs; -1: exactly the base's output. On a CPU
            its range is looked at here, once, before it goes to the adapters' device. On a device
            an index out of range is torch's error, as looking would wait for the device; for
            prompts and prefixes, to which -1 has no meaning, it is looked at all the same.
        given: what methods need of each row beside its task. trace: takes penalties and weights.
        """
        all_here = self._check(index_B)
        index_B = index_B.to(self._device(), non_blocking=True)
        return Active(self._current, Rows(index_B, given, trace, all_here=all_here))

    def task(self, name: str, trace: Trace | None = None) -> Active:
        """Return the context in which every row, of any batch, has this task."""
        return Active(self._current, self._whole(self._position(name), trace))

    def without(self) -> Active:
        """Return the context in which adapters stand aside, and the model is the base."""
        return Active(self._current, self._whole(-1, None, aside=True))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what an optimiser should get: the adapters, and what of the base is trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors that are not the frozen base's, detached, named as in `state_dict`.

        Buffers of the base that training moved (batch norms') are the base's.
        """
        own = self.state_dict()
        trained = {f"base.{n}" for n, p in self.base.named_parameters() if p.requires_grad}
        return {n: v for n, v in own.items() if n.startswith("parts.") or n in trained}

    def change(self, task: str) -> dict[str, Tensor]:
        """Return a task's exact change of the base's parameters, by name, in float64.

        Raises UsageError where an adapter is no change of weights.
        """
        self._refuse_folded("give changes")
        return changes_of(self.base, self._places(), self._position(task))

    def fold(self, task: str) -> Folded:
        """Add a task's change to the base's weights; the model then runs as it is, for that task.

        Returns a context whose end takes the change out again; `unfold` does so too. The weights
        from before are kept meanwhile, and put back as they were, bit for bit.
        """
        self._refuse_folded("fold another")
        if self._current.rows is not None:
            raise UsageError("fold: end the context of tasks first.")
        self._folded = Folded(self, self.change(task), task)
        self._current.folded = task
        return self._folded

    def unfold(self) -> None:
        """Put the base's weights back as they were before `fold`, bit for bit."""
        if self._folded is None:
            raise UsageError("unfold: no task is folded into the base.")
        self._folded.put_back()
        self._folded = self._current.folded = None

    def add_task(self, name: str, optimiser: Optimizer | None = None, seed: int = 0) -> None:
        """Add a task; every other task's output stays the same bits.

        Parameters stay the same objects, one row longer. optimiser: one in use, whose state gets
        a row of zeros; without it the optimiser has to be made anew.
        """
        self._refuse_folded("add a task")
        if name in self._at:
            raise UsageError(f"The model has a task {name!r} already; name the new one anew.")
        generator = torch.Generator().manual_seed(seed)
        for part in self.parts:
            assert isinstance(part, Part)
            for parameter in grow(part, part.fresh(1, generator)):
                if optimiser is not None:
                    grow_optimiser(optimiser, parameter)
        self._names = (*self._names, name)
        self._at[name] = len(self._at)

    def detach(self) -> nn.Module:
        """Return the base as it was, without hooks; the adapters do nothing from then on."""
        self._refuse_folded("detach")
        for handle in self._handles:
            handle.remove()
        for layer, _ in self._places():
            attention = layer.inside or layer.module
            if isinstance(attention, nn.MultiheadAttention):
                unhost(attention)
            elif layer.kind == "attention":
                hugging_face_attention.unhost(attention)
        return self.base

    def extract(self, task: str) -> nn.Module:
        """Return a copy of the base with one task's change in its weights, and no adapters.

        Raises UsageError where an adapter is no change of weights.
        """
        changes = self.change(task)
        base = copy.deepcopy(self).detach()
        parameters = dict(base.named_parameters())
        for name, change in changes.items():
            parameters[name].data = changed(parameters[name], change)
        return base

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers that are adapted, in the order of the parts."""
        return tuple(layer for layer, _ in self._places())

    def at(self, path: str, part: int | None = None) -> Adapter:
        """Return a layer's adapter. part: of which method, where several adapt it.

        Raises UsageError where there is none, or where it is not said which.
        """
        chosen = self.parts if part is None else self.parts[part : part + 1]
        held = [p.at(path) for p in chosen if isinstance(p, Part) and key(path) in p.adapters]
        if not held:
            known = [layer.path for layer in self.layers()]
            raise unknown("adapted layer", path, known, "See `adapted.layers()`.")
        if len(held) > 1:
            raise UsageError(f"{path!r} has {len(held)} adapters; say of which part, at(path, 0).")
        return held[0]

    def _places(self) -> list[tuple[Layer, list[Adapter]]]:
        """Return each adapted layer with its adapters, the first part's first."""
        places: dict[tuple[str, bool], tuple[Layer, list[Adapter]]] = {}
        for part in self.parts:
            assert isinstance(part, Part)
            for layer in part.layers:
                # A prefix acts inside of attention, whatever is put behind it as a module.
                at = layer.path, layer.kind == "attention"
                places.setdefault(at, (layer, []))[1].append(part.at(layer.path))
        return list(places.values())

    def _device(self) -> torch.device:
        """Return where the first adapter is; layers on other devices take the index to theirs."""
        values = itertools.chain(self.parts.parameters(), self.parts.buffers())
        first = next(values, None)
        return torch.device("cpu") if first is None else first.device

    def _whole(self, task: int, trace: Trace | None, aside: bool = False) -> Rows:
        return Rows(torch.tensor([task], device=self._device()), None, trace, aside, task >= 0)

    def _position(self, name: str) -> int:
        if name not in self._at:
            raise unknown("task", name, self._at, f"The tasks are: {', '.join(self._names)}.")
        return self._at[name]

    def _check(self, index_B: Tensor) -> bool:
        """Return whether it is known that every row has a task. Raises UsageError; see `tasks`."""
        if not isinstance(index_B, Tensor) or index_B.dtype != torch.int64 or index_B.dim() != 1:
            what = (
                f"{index_B.dtype} of shape {tuple(index_B.shape)}"
                if isinstance(index_B, Tensor)
                else type(index_B).__name__
            )
            raise UsageError(
                "tasks: the index is an int64 tensor with one number per row; "
                f"{what} came. From names: adapted.index(names)."
            )
        if not len(index_B):
            raise UsageError("tasks: the index names no row; leave out batches without rows.")
        needy = self._needy
        looked = index_B.device.type == "cpu" or needy is not None
        if not looked or torch.compiler.is_compiling():
            return False
        least, most = (int(v) for v in index_B.aminmax())
        if least < -1 or most >= len(self._names):
            raise UsageError(
                f"tasks: the index has {least if least < -1 else most}; the {len(self._names)} "
                f"tasks are 0 to {len(self._names) - 1}, and -1 is none."
            )
        if least < 0 and needy is not None:
            raise UsageError(
                f"tasks: beside {needy} every row needs a task; run rows without "
                "one (-1) in a batch of their own, with adapted.without()."
            )
        return least >= 0

    def _refuse_folded(self, what: str) -> None:
        if self._folded is not None:
            raise UsageError(
                f"{self._folded.task!r} is folded into the base; unfold() before you {what}."
            )


class Active:
    """The context in which rows have tasks. It may be entered again, and contexts may nest."""

    def __init__(self, current: Current, rows: Rows) -> None:
        self._current, self._rows = current, rows
        self._before: list[tuple[Rows | None, int | None, Span | None]] = []

    def __enter__(self) -> None:
        current = self._current
        if current.folded is not None:
            raise UsageError(
                f"{current.folded!r} is folded into the base; unfold() before naming tasks."
            )
        span = None
        before = current.thread
        if not torch.compiler.is_compiling():
            here = threading.get_ident()
            if before not in (None, here):
                raise RunError(
                    "Another thread has named the tasks of this model's rows; give each thread an "
                    "adapted copy (copy.deepcopy), or join their rows in one batch."
                )
            current.thread = here
            current.follow()
            if torch.is_grad_enabled():
                span = Span(self._rows)
                current.spans.append(span)
        self._before.append((current.rows, before, span))
        current.rows = self._rows

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._current.rows, self._current.thread, span = self._before.pop()
        if span is not None:
            span.close()


def adapt(
    model: nn.Module,
    method: Method | Sequence[At],
    tasks: Sequence[str],
    where: Where | str | Sequence[str] | None = None,
    seed: int = 0,
    train: Where | str | Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapted:
    """Return the model with adapters for every task; its own parameters are frozen.

    method: one, which goes `where`, or several with their places, `[At(LoRA(), "q_proj"), ...]`.
        At a layer that several change, they follow one another in this order.
    where: names of layers, as globs, or a `Where`; None: every layer the method can change.
    seed: of the adapters' first values, the same on every device.
    train: layers of the base whose parameters are trained as well, by all tasks together.
    dtype: of the adapters; None: that of each layer's weights.
    Raises UsageError where nothing matches, or a layer cannot be changed in this way.
    """
    names = _checked_names(tasks)
    with left_as_it_was(model):
        parts = build_parts(model, plans_of(method, where), len(names), seed, train, dtype)
        return Adapted(model, parts, names, dtype)


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Where adapting a model fails, let its parameters be trained as before."""
    with ExitStack() as undo:  # what stops it, Ctrl-C too, goes on to whoever called
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
        yield
        undo.pop_all()


@contextmanager
def off_again(adapted: Adapted) -> Iterator[None]:
    """Where making or filling it fails, take the adapters off the model."""
    with ExitStack() as undo:
        undo.callback(adapted.detach)
        yield
        undo.pop_all()


def plans_of(
    method: Method | Sequence[At], where: Where | str | Sequence[str] | None
) -> tuple[At, ...]:
    """Return methods with their places, of one method or several."""
    if isinstance(method, Method):
        return (At(method, where),)
    if where is not None:
        raise UsageError("adapt: several methods each have a place, At(method, where).")
    if not method:
        raise UsageError("adapt: no method was given.")
    return tuple(method)


def build_parts(
    model: nn.Module,
    plans: Sequence[At],
    tasks: int,
    seed: int,
    train: Where | str | Sequence[str] | None,
    dtype: torch.dtype | None,
) -> list[Part]:
    """Return the parts for T tasks, where their layers are, and freeze the model; see `adapt`."""
    if any(place_of(module) for module in model.modules()):
        raise UsageError(
            "The model is adapted already; give all methods at once, [At(...), At(...)], or "
            "detach() it first."
        )
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for plan in plans:
        chosen = Where.of(plan.where)
        layers = chosen.layers(model, plan.method)
        parts.append(Part(plan.method, chosen, layers).build(tasks, generator))
    _check_order(parts)
    trained = [] if train is None else Where.of(train).modules(model)
    trained += [la.module for part in parts for la in part.layers if part.at(la.path).trains_layer]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    first = next(model.parameters(), None)
    for part in parts:
        for layer in part.layers:
            _move(part.at(layer.path), next(layer.module.parameters(), first), dtype)
        if part.common is not None:
            _move(part.common, first, dtype)
    return parts


def place_of(module: nn.Module) -> bool:
    """Return whether a module has an adapted layer's hook or class."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(isinstance(hook, (Place, _Fits)) for hook in hooks)


def key(path: str) -> str:
    """Return the name of a layer's adapter among modules; a layer may have any name."""
    return "/" + path.replace(".", "/")


class _Fits:
    """Looks, before the model runs, whether the index fits its inputs."""

    def __init__(self, current: Current) -> None:
        self.current = current

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            self.current.follow()
        rows = self.current.rows
        if rows is None or len(rows.index_B) == 1:
            return
        shapes = [tuple(value.shape) for value in _tensors((args, kwargs)) if value.dim()]
        many = len(rows.index_B)
        if shapes and not any(many in shape[:2] for shape in shapes):
            raise UsageError(
                f"The index names the tasks of {many} rows; the model's inputs have shapes "
                f"{', '.join(map(str, shapes))}."
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not names:
        raise UsageError(f"adapt: tasks is {names!r}; give the names of at least one task.")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise UsageError(f"Task names must differ; {', '.join(twice)} occurs more than once.")
    return tuple(names)


def _check_order(parts: Sequence[Part]) -> None:
    first: dict[str, str] = {}
    for part in parts:
        name = type(part.method).__name__
        for layer in part.layers:
            if layer.path in first and part.at(layer.path).reads_weights:
                raise UsageError(
                    f"{name} reads the base's weights of {layer.path!r}, which "
                    f"{first[layer.path]} changes before it; put {name} first."
                )
            first.setdefault(layer.path, name)


def _move(module: nn.Module, like: Tensor | None, dtype: torch.dtype | None) -> None:
    if like is not None:
        module.to(like.device, dtype or like.dtype if like.dtype.is_floating_point else dtype)
