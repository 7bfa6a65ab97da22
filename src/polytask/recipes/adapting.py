"""Methods of `adapt` by name: where each goes in a suite's encoder, and what is trained before it.

    model = build_adapted(suite, choose("scalearn:uniform=true", "adapt"), seed=0, earlier=train)

Most methods are adapted and trained once. Some read what was trained before (bottlenecks for
ScaLearn, a library of LoRA for Arrow), choose by it (sparse fine-tuning, SubTuning) or take tasks
one after another (incremental ranks): `earlier` trains a model of such a stage, or loads it where
it was trained already. Heads go on from stage to stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polytask.adapt import (
    MAM,
    Adapted,
    Bottleneck,
    HalfFineTuning,
    Held,
    IncrementalRank,
    LoRA,
    SparseTuning,
    SubTuning,
    Where,
    adapt,
    arrow_of,
    clusters_of,
    fit_centroids,
    merge_clusters,
    mtlora_at,
)
from polytask.errors import UsageError
from polytask.fit import primary
from polytask.parsing import WHERE, Choice, parse
from polytask.recipes.adapted import TASK, AdaptedModel, without_base
from polytask.recipes.keeping import Keeping
from polytask.recipes.scoring import progress
from polytask.records import Record
from polytask.share import HardSharing, SharedModel
from polytask.suites import Pretrained, Suite

PROBING = "linear-probing"
"""The baseline that trains heads alone."""

ROWS = 64
"""Training rows of each stream that MoR1E's centroids are made of."""

STAGES = 4
"""Stages of half fine-tuning: each quarter of a run trains another half."""

PROJECTIONS, OUTPUTS, WORDS, BLOCKS = "projections", "outputs", "words", "blocks"

PLACES: dict[str, str] = {
    **dict.fromkeys(
        (
            "lora", "dora", "mtl-lora", "global-task", "shared-factor", "polytropon", "mhr",
            "tensorpoly", "smora", "loramoe", "mosld", "mor1e", "arrow", "mbc", "incremental-rank",
        ),
        PROJECTIONS,
    ),
    **dict.fromkeys(
        (
            "bottleneck", "hyperformer", "polyhistor", "scalearn", "adapter-fusion", "alter",
        ),
        OUTPUTS,
    ),
    **dict.fromkeys(("prompt-tuning", "mpt", "spt"), WORDS),
}  # fmt: skip
"""Which of `Pretrained.where` a method goes to; one not named goes to every layer it can change."""

EVERYWHERE: dict[str, Where] = {"ssf": Where(kinds=("linear", "conv", "norm"))}
"""Methods that go to every layer of these kinds: embeddings of positions are the same for all rows,
so they are left out."""


OWN_WEIGHTS = ("sparse-tuning", "half-fine-tuning", "subtuning")
"""Methods that train the encoder's own weights."""

MADE = ("hyperformer",)
"""Methods whose adapters a network makes: at the rate of adapters HyperFormer learns nothing."""


def grid_for(suite: Suite, recipe: str) -> tuple[tuple[float, float], ...] | None:
    """Return the learning rates and weight decays that a recipe tries on a suite, the likeliest
    first; None: those of everything that begins anew."""
    if suite.pretrained is None:
        return None
    adapts = parse(recipe).adapt
    if adapts is None or adapts.method.name in OWN_WEIGHTS:
        return suite.pretrained.whole
    return suite.pretrained.made if adapts.method.name in MADE else suite.pretrained.grid


class Earlier(Protocol):
    """Trains a stage that comes before the run itself, or loads it."""

    def __call__(self, model: SharedModel, name: str, tasks: Sequence[str] | None = None) -> Record:
        """Train the model in place, on the suite's tasks or on these of them; return the record.
        name: of the stage, another for each."""


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for: a method with its settings, on a suite's encoder."""

    suite: Suite
    encoder: nn.Module
    name: str
    load: Callable[[], Any]
    settings: Mapping[str, Any]
    named: tuple[str, ...]
    seed: int
    earlier: Earlier | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the suite's tasks."""
        return self.suite.tasks.names

    @property
    def pretrained(self) -> Pretrained:
        """What the suite says of its encoder."""
        assert self.suite.pretrained is not None
        return self.suite.pretrained

    @property
    def where(self) -> Where | tuple[str, ...] | None:
        """The layers that the recipe names, else those of the method; None: all it can change."""
        if self.named:
            return self.named
        if self.name in EVERYWHERE:
            return EVERYWHERE[self.name]
        place = PLACES.get(self.name)
        return None if place is None else self.of(place)

    def of(self, place: str) -> tuple[str, ...]:
        """Return the encoder's layers of one kind of place."""
        if place not in self.pretrained.where:
            raise UsageError(
                f"{self.name}: suite {self.suite.name!r} does not say which layers of its encoder "
                f"are its {place}; name them, {self.name}:where=LAYER/LAYER."
            )
        return self.pretrained.where[place]

    def of_kind(self, kind: type) -> Any:
        """Return a method of this kind with those of the settings that it has."""
        known = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in self.settings.items() if name in known})

    def takes_no_where(self) -> None:
        """Raise UsageError where the recipe names layers."""
        if self.named:
            raise UsageError(
                f"{self.name} goes to no layers that could be named; leave "
                f"{WHERE}={'/'.join(self.named)} out."
            )

    def others(self, kind: type) -> dict[str, Any]:
        """Return the settings that a method of this kind does not have."""
        known = {field.name for field in fields(kind)}
        return {name: value for name, value in self.settings.items() if name not in known}

    def train(self, model: SharedModel, name: str, tasks: Sequence[str] | None = None) -> Record:
        """Train or load an earlier stage."""
        if self.earlier is None:
            raise UsageError(
                f"{self.name} trains in stages, and only a run in a folder of its own can; use "
                "`polytask compare` or `polytask fit`."
            )
        return self.earlier(model, name, tasks)


def build_adapted(
    suite: Suite, choice: Choice, seed: int, earlier: Earlier | None = None
) -> SharedModel:
    """Return the model that a method of `adapt` trains on the suite, its earlier stages trained.

    Its first weights depend on the seed alone, whether stages were trained or loaded.

    Raises UsageError where the suite's encoder is not pretrained, or the method needs stages and
    `earlier` is None.
    """
    if suite.pretrained is None:
        raise UsageError(
            f"{choice.method.name} adapts a pretrained encoder, and that of suite {suite.name!r} "
            "begins anew; choose a suite that brings one, such as minilm."
        )
    settings = dict(choice.settings)
    named = settings.pop(WHERE, ())
    asked = Asked(
        suite, suite.encoder(), choice.method.name, choice.method.load, settings, named, seed,
        earlier,
    )  # fmt: skip
    return _MAKERS.get(choice.method.name, _plainly)(asked)


def _plainly(asked: Asked) -> SharedModel:
    return _headed(asked, _adapted(asked, asked.load()(**asked.settings)))


def _adapted(asked: Asked, method: Any) -> Adapted:
    return adapt(asked.encoder, method, asked.tasks, asked.where, seed=asked.seed)


def _headed(
    asked: Asked,
    adapted: Adapted,
    heads: Mapping[str, nn.Module] | None = None,
    serves: Mapping[str, str] | None = None,
    embeds: bool = False,
) -> AdaptedModel:
    """Return the model with the heads given, or with fresh ones."""
    tasks = asked.suite.tasks
    if heads is None:
        torch.manual_seed(asked.seed)  # whatever the earlier stages drew
        heads = {task.name: task.kind.head(asked.suite.width) for task in tasks}
    reads = {task.name: task.kind.reads for task in tasks}
    return AdaptedModel(adapted, heads, reads, serves=serves, embeds=embeds)


def _whole(asked: Asked) -> HardSharing:
    """Return the model all of whose weights may be trained."""
    torch.manual_seed(asked.seed)
    return HardSharing.build(asked.encoder, asked.suite.width, asked.suite.tasks)


def _probing(asked: Asked) -> SharedModel:
    asked.takes_no_where()
    asked.load()(**asked.settings)(asked.encoder)
    model = _whole(asked)
    without_base(model, model.encoder, "encoder.")
    return model


def _mtlora(asked: Asked) -> SharedModel:
    """Return the model whose tasks part in the last block."""
    last = asked.of(BLOCKS)[-1]
    parting = [f"{last}.{name}" for name in asked.of(OUTPUTS)]
    everywhere = Where(asked.named or (*asked.of(PROJECTIONS), *asked.of(OUTPUTS)))
    plans = mtlora_at(parting, everywhere, **asked.settings)
    return _headed(asked, adapt(asked.encoder, plans, asked.tasks, seed=asked.seed))


def _mam(asked: Asked) -> SharedModel:
    plans = MAM(asked.named or asked.of("feed-forward"), **asked.settings)
    return _headed(asked, adapt(asked.encoder, plans, asked.tasks, seed=asked.seed))


def _experts_of_types(asked: Asked) -> SharedModel:
    """Return LoRAMoE, without its penalty unless that is asked for: tasks have no types here."""
    return _headed(asked, _adapted(asked, asked.load()(**{"beta": 0.0, **asked.settings})))


def _by_instances(asked: Asked) -> SharedModel:
    """Return MoR1E on the base's own embeddings, its centroids those of training rows."""
    settings = {"width": asked.suite.width, **asked.settings}
    model = _headed(asked, _adapted(asked, asked.load()(**settings)), embeds=True)
    found = []
    for stream in asked.suite.train:
        few = stream.take(torch.arange(min(len(stream), ROWS)))
        inputs = few.inputs
        if isinstance(inputs, Mapping):
            inputs = {name: value for name, value in inputs.items() if name != TASK}
        found.append(model.embedding(inputs))
    fit_centroids(model.adapted, torch.cat(found), asked.seed)
    return model


def _from_bottlenecks(asked: Asked) -> SharedModel:
    """Return a model that reads bottlenecks of all tasks, trained together in a stage before."""
    first = _headed(asked, _adapted(asked, asked.of_kind(Bottleneck)))
    asked.train(first, "bottleneck")
    sources = first.adapted
    base = sources.detach()
    kept = {"width", "form"} & asked.settings.keys()  # the bottlenecks say these
    settings = {name: value for name, value in asked.settings.items() if name not in kept}
    return _headed(asked, adapt(base, asked.load()(sources, **settings), asked.tasks), first.heads)


def _library(asked: Asked) -> AdaptedModel:
    """Return a model with LoRA of every task, trained."""
    model = _headed(asked, _adapted(asked, asked.of_kind(LoRA)))
    asked.train(model, "lora")
    return model


def _arrow(asked: Asked) -> SharedModel:
    """Return a library's routed model, of which the heads alone are trained on."""
    said = {"experts", "scale"} & asked.settings.keys()
    if said:
        raise UsageError(f"arrow: its library says {' and '.join(sorted(said))}; leave them out.")
    first = _library(asked)
    routed = arrow_of(first.adapted, **asked.others(LoRA))
    routed.parts.requires_grad_(False)
    return _headed(asked, routed, first.heads)


def _clustered(asked: Asked) -> SharedModel:
    """Return LoRA of clusters of a library, to be trained by the tasks of each together."""
    first = _library(asked)
    clusters = clusters_of(first.adapted, **{"seed": asked.seed, **asked.others(LoRA)})
    merged = merge_clusters(first.adapted, clusters, fresh=True, seed=asked.seed)
    serves = {t: merged.names[k] for t, k in zip(asked.tasks, clusters.of_T, strict=True)}
    return _headed(asked, merged, first.heads, serves)


def _one_after_another(asked: Asked) -> SharedModel:
    """Return a model whose tasks came in the suite's order; its heads alone are trained on."""
    settings = {"most": len(asked.tasks), **asked.settings}
    model = _headed(asked, _adapted(asked, IncrementalRank(**settings)))
    per_task = {
        f"adapted.{name}"
        for name, parameter in model.adapted.named_parameters()
        if parameter.requires_grad and len(parameter) == len(asked.tasks)
    }
    parameters = dict(model.named_parameters())
    for t, task in enumerate(asked.tasks):
        own = {}
        for name in per_task:
            own[name] = torch.zeros_like(parameters[name], dtype=torch.bool)
            own[name][t] = True
        held = Held(model, own)
        asked.train(Keeping(model, held), f"{t:02d}", (task,))
        held.restore()
        held.release()
    model.adapted.parts.requires_grad_(False)
    return model


def _halves(asked: Asked) -> SharedModel:
    asked.takes_no_where()
    model = _whole(asked)
    method = HalfFineTuning(**{"seed": asked.seed, **asked.settings})

    def hold(part: float) -> Held:
        return method.stage(model.encoder, int(part * STAGES))

    return Keeping(model, stages=(STAGES, hold))


def _sparse(asked: Asked) -> SharedModel:
    """Return a model that trains the numbers that moved farthest in a stage before, and heads."""
    asked.takes_no_where()
    model = _whole(asked)
    settings = dict(asked.settings)
    method = SparseTuning(dense=("heads.*", *settings.pop("dense", ())), **settings)
    if method.l1:
        raise UsageError("sparse-tuning: a run has no place for the penalty; give l1=0.")
    start = method.start(model)
    masks: Mapping[str, Tensor] | None = None
    for i in range(method.iterations):
        held = None if masks is None else method.held(model, masks)
        asked.train(model if held is None else Keeping(model, held), f"full-{i}")
        if held is not None:
            held.release()
        masks = method.select(model, start, masks)
        start.rewind(model)
    assert masks is not None
    return Keeping(model, method.held(model, masks))


def _blocks(asked: Asked) -> SharedModel:
    """Return a model of which the blocks that help most are trained, found one by one."""
    blocks = asked.named or asked.of(BLOCKS)

    def of(chosen: Sequence[str]) -> HardSharing:
        model = _whole(replace(asked, encoder=asked.suite.encoder()))
        model.encoder.requires_grad_(False)
        if chosen:  # no name at all would be every place
            for place in Where(tuple(f"{block}.*" for block in chosen)).modules(model.encoder):
                place.requires_grad_(True)
        return model

    tasks = asked.suite.tasks
    first: dict[str, float] = {}  # what heads alone reach: all others are scored against it

    def score(chosen: tuple[str, ...]) -> float:
        name = "+".join(block.rpartition(".")[2] for block in chosen) or "none"
        values = primary(asked.train(of(chosen), name).best.val, tasks)
        first.update({} if first else values)
        return progress(tasks, values, first)

    choice = SubTuning(**asked.settings)(blocks, score)
    return of(choice.blocks)


_Maker = Callable[[Asked], SharedModel]

_MAKERS: dict[str, _Maker] = {
    PROBING: _probing,
    "mtlora": _mtlora,
    "mam": _mam,
    "loramoe": _experts_of_types,
    "mor1e": _by_instances,
    "scalearn": _from_bottlenecks,
    "adapter-fusion": _from_bottlenecks,
    "alter": _from_bottlenecks,
    "arrow": _arrow,
    "mbc": _clustered,
    "incremental-rank": _one_after_another,
    "half-fine-tuning": _halves,
    "sparse-tuning": _sparse,
    "subtuning": _blocks,
}
"""Methods that are more than one method at one place, trained once."""
