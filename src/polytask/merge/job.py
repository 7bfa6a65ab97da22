"""A merge that is planned and checked before it begins."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from polytask import __version__
from polytask.errors import UsageError
from polytask.merge.base import Merge, State, check_models
from polytask.merge.checksums import check_sums
from polytask.merge.companions import write_beside
from polytask.merge.distance import warnings_of
from polytask.merge.files import FileModel, Model, Source, open_model
from polytask.merge.need import Need, need_of
from polytask.merge.options import Options
from polytask.merge.output import STATE, Files, Memory, files
from polytask.merge.plan import Plan, plan
from polytask.merge.progress import Progress, Silent
from polytask.merge.recipe_text import recipe_text
from polytask.merge.stream import MethodOf, Stream
from polytask.merge.vocabulary import vocabularies_of
from polytask.records import write_atomic


@dataclass(frozen=True)
class Written:
    """What a merge into files left behind.

    memory: bytes it was said to need at most. warnings: what deserves a look, in plain words.
    spoiled: per tensor that is not finite in some model, those models. compiled: whether compiled
        kernels merged any of it; the result does not depend on it.
    """

    out: Path
    tensors: int
    elements: int
    seconds: float
    memory: int
    warnings: tuple[str, ...]
    spoiled: Mapping[str, tuple[str, ...]]
    compiled: bool


@dataclass(frozen=True)
class Job:
    """A merge that can begin: `run` writes files, `tensors` returns a state dict.

    need: its memory and threads. warnings: what the plan found. recipe: the text that is written
    with the result.
    """

    plan: Plan
    need: Need
    warnings: tuple[str, ...]
    recipe: str
    options: Options
    models: tuple[Model, ...]
    method_of: MethodOf

    def tensors(self, progress: Progress | None = None) -> tuple[dict[str, Tensor], list[str]]:
        """Return the merged state dict, and all warnings."""
        output = Memory({item.name: item.entry for item in self.plan.items})
        stream = self._stream(output, progress)
        stream.run()
        return output.tensors, [*self.warnings, *_spoiled(_sorted(stream.spoiled))]

    def run(self, out: Path, progress: Progress | None = None) -> Written:
        """Merge into `out`: a new folder, or a new file where it ends in .safetensors.

        It appears when it is complete. The same job goes on where it was stopped.
        """
        begun = time.monotonic()
        entries = {item.name: item.entry for item in self.plan.items}
        with files(out, entries, self._digest(), self.options.shard) as output:
            stream = self._stream(output, progress)
            stream.run(_kept(output), lambda state: _keep(output, state))
            output.commit(self._beside)
        spoiled = _sorted(stream.spoiled)
        return Written(
            out=out,
            tensors=len(entries),
            elements=self.plan.elements,
            seconds=time.monotonic() - begun,
            memory=self.need.memory,
            warnings=(*self.warnings, *_spoiled(spoiled)),
            spoiled=spoiled,
            compiled=stream.compiled,
        )

    def _stream(self, output: Files | Memory, progress: Progress | None) -> Stream:
        progress = progress or Silent()
        if self.options.checksums:
            check_sums([m for m in self.models if isinstance(m, FileModel)], progress)
        return Stream(
            self.plan, self.method_of, output, self.need, self.options.nonfinite, progress
        )

    def _beside(self, folder: Path) -> None:
        source, dtype = self.models[0].folder, self.options.dtype
        write_beside(folder, source, self.recipe, dtype, self.plan.vocabularies)

    def _digest(self) -> str:
        """Return what names this merge: everything its result depends on.

        Files count as the same while path, size and time of change are; models in memory never do.
        """
        digest = hashlib.sha256()
        versions = [__version__, str(torch.__version__), self.options.nonfinite, self.recipe]
        digest.update(json.dumps(versions).encode())
        for model in self.models:
            if not isinstance(model, FileModel):
                digest.update(secrets.token_bytes(16))
                continue
            for path in model.files:
                stat = path.stat()
                digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        before: Merge | None = None
        for item in self.plan.items:
            method = self.method_of(item.name)
            text = "" if method is before else f" {method!r}"
            digest.update(f"{item.name} {item.entry} {item.merged}{text}\n".encode())
            before = method
        return digest.hexdigest()


def prepare(
    base: Source | None,
    models: Sequence[Source],
    method: Merge | MethodOf,
    options: Options | None = None,
    recipe: str | None = None,
) -> Job:
    """Return a merge, planned and checked but not begun; see `merge` for the arguments.

    method: or a function from a tensor's name to the method with its settings there.
    recipe: the text to write with the result; None for one made of the arguments.
    """
    options = options or Options()
    if isinstance(models, (str, Path)) or not isinstance(models, Sequence):
        raise UsageError(f"models is {models!r}; give a list of models, such as [a, b].")
    if not models:
        raise UsageError("There is nothing to merge; give at least one tuned model.")
    tuned = [open_model(source, f"model {i}") for i, source in enumerate(models, 1)]
    opened = None if base is None else open_model(base, "the base")
    everyone = [*([] if opened is None else [opened]), *tuned]
    choice = options.vocabulary
    planned = plan(
        opened, tuned, options, None if choice is None else vocabularies_of(everyone, choice)
    )
    method_of: MethodOf = (lambda name: method) if isinstance(method, Merge) else method
    methods = {method_of(item.name) for item in planned.items if item.merged}
    for one in methods:
        check_models(one, len(tuned))
        if one.needs_base and opened is None:
            raise UsageError(f"{type(one).__name__} needs the base model; give it.")
    if recipe is None:
        recipe = recipe_text(method if isinstance(method, Merge) else None, planned, options)
    return Job(
        plan=planned,
        need=need_of(planned, tuple(methods), options),
        warnings=tuple(warnings_of(planned)),
        recipe=recipe,
        options=options,
        models=tuple(everyone),
        method_of=method_of,
    )


def _sorted(spoiled: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(models)) for name, models in sorted(spoiled.items())}


def _spoiled(spoiled: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [
        f"Tensor {name!r} is not finite in {', '.join(models)}; it was merged all the same."
        for name, models in spoiled.items()
    ]


def _kept(output: Files) -> State | None:
    """Return what an earlier process learned from the whole model, None where it did not."""
    path = output.folder / STATE
    return dict(safetensors.torch.load_file(path)) if path.exists() else None


def _keep(output: Files, state: State) -> None:
    # Copies: two names of one tensor, as of a bracket with equal ends, cannot be saved.
    plain = {name: value.clone().contiguous() for name, value in state.items()}
    write_atomic(output.folder / STATE, safetensors.torch.save(plain))
