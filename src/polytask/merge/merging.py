"""`merge`: models in, one model out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from torch import Tensor

from polytask.merge.base import Merge
from polytask.merge.files import Source
from polytask.merge.job import Written, prepare
from polytask.merge.options import Options
from polytask.merge.progress import Progress


@overload
def merge(
    base: Source | None,
    models: Sequence[Source],
    method: Merge,
    *,
    out: None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]: ...


@overload
def merge(
    base: Source | None,
    models: Sequence[Source],
    method: Merge,
    *,
    out: str | Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Written: ...


def merge(
    base: Source | None,
    models: Sequence[Source],
    method: Merge,
    *,
    out: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor] | Written:
    """Return the merged state dict, or what was written to `out`.

        merge(base, [a, b, c], TIES(density=0.2))
        merge("base", ["a", "b", "c"], TIES(density=0.2), out="merged")

    base, models: safetensors files, Hugging Face folders, modules or state dicts; tensors are
        paired by name. The base may be None for methods that do without.
    out: a new folder, or a new file ending in .safetensors. It appears when it is complete, and the
        same call goes on where a killed one was. Files merged into files need little memory,
        whatever their size; `prepare(...).need` says how much. None returns a state dict, which
        holds a whole model.
    options: see `Options`. progress: told how far it is.

    Warns of models that do not look tuned from the base. Raises UsageError for a wrong argument,
    DataError for models that are damaged, not finite or do not fit together, RunError where a value
    leaves the range of the dtype or the result cannot be written.
    """
    job = prepare(base, models, method, options)
    if out is None:
        tensors, said = job.tensors(progress)
        for text in said:
            warnings.warn(text, stacklevel=2)
        return tensors
    written = job.run(Path(out), progress)
    for text in written.warnings:
        warnings.warn(text, stacklevel=2)
    return written
