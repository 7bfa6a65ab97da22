"""`polytask merge`: a recipe becomes a model, or two models are compared."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polytask.cli.parts import examples, json_option, print_json
from polytask.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.merge import AdapterJob, AdapterWritten, Diff, Job, Options, Written

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _size(ctx: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Return a number of bytes: 5GB, 500M, 123456."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)B?", text.strip().upper())
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise click.BadParameter(
            f"{text!r} is no size; give one such as 5GB or 500MB.", ctx, option
        )
    return size


@click.command(
    short_help="Models tuned apart become one; or: where two differ.",
    epilog=examples(
        "polytask merge recipe.yaml --out merged",
        "polytask merge recipe.yaml --threads 2 --json",
        "polytask merge recipe.yaml --report inputs.html",
        "polytask merge --diff base tuned",
    ),
)
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option(
    "--diff",
    nargs=2,
    metavar="A B",
    type=click.Path(path_type=Path),
    help="Compare two models instead.",
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="With --diff: compare changes from it."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new folder, or a new .safetensors file; with --diff the picture. Default: "
    "merged/RECIPE, diff.svg.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="PAGE",
    help="Write an HTML page first: how the models' changes lie to each other, by layer.",
)
@click.option("--threads", default=1, show_default=True, help="Of the merge.")
@click.option(
    "--shard-size", callback=_size, metavar="SIZE", help="Of a file of the result. Default: 5GB."
)
@click.option(
    "--nonfinite",
    type=click.Choice(["refuse", "continue"]),
    help="What NaN or infinity in a model does. Default: refuse.",
)
@click.option("--leave-out", multiple=True, help="Pattern of tensors to leave out; repeatable.")
@click.option("--no-checksums", is_flag=True, help="Do not check files against SHA256SUMS.")
@json_option
def merge(
    recipe: Path | None,
    diff: tuple[Path, Path] | None,
    base: Path | None,
    out: Path | None,
    report: Path | None,
    threads: int,
    shard_size: int | None,
    nonfinite: str | None,
    leave_out: tuple[str, ...],
    no_checksums: bool,
    as_json: bool,
) -> None:
    """Merge models as RECIPE says: a YAML file, in mergekit's format for the methods both have.

    The result appears under its name when it is complete, with its recipe; giving the same command
    again goes on where it was stopped. A recipe of PEFT adapters gives a PEFT adapter. --diff says
    instead where and how much two models differ.
    """
    own = {"--shard-size": shard_size, "--nonfinite": nonfinite, "--report": report}
    if diff is not None:
        _refuse({**own, "RECIPE": recipe}, "with --diff")
        _diff(*diff, base, out or Path("diff.svg"), leave_out, as_json)
        return
    if base is not None:
        raise UsageError("--base goes with --diff; a recipe names its base itself (base_model).")
    if recipe is None:
        raise UsageError("Give a recipe, such as recipe.yaml, or two models with --diff.")
    from polytask.merge import Options, read_adapter_recipe

    out = out or Path("merged") / recipe.stem
    adapters = read_adapter_recipe(recipe, checksums=not no_checksums)
    if adapters is not None:
        every = {**own, "--leave-out": leave_out or None, "--threads": threads - 1 or None}
        _refuse(every, "with adapters")
        _adapters(adapters, out, as_json)
        return
    given: dict[str, Any] = {"threads": threads, "leave_out": leave_out}
    if shard_size is not None:
        given["shard"] = shard_size
    if nonfinite is not None:
        given["nonfinite"] = nonfinite
    _merge(recipe, out, Options(**given, checksums=not no_checksums), report, as_json)


def _refuse(given: dict[str, Any], where: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} has no meaning {where}; leave it out.")


def _merge(recipe: Path, out: Path, options: Options, page: Path | None, as_json: bool) -> None:
    from polytask.merge import read_recipe
    from polytask.merge.output import check_free

    job = read_recipe(recipe).job(options)
    check_free(out)
    _state(job, out)
    for text in job.warnings:
        click.echo(f"Warning: {text}", err=True)
    with Shown(f"merge {out.name}") as shown:
        if page is not None:
            _report(job, recipe.stem, page, shown)
        done = job.run(out, shown)
    if as_json:
        more = {"labels": job.plan.labels, "dropped": job.plan.dropped, "report": page}
        print_json({**_plain(done), **more})
        return
    for text in done.warnings[len(job.warnings) :]:
        click.echo(f"Warning: {text}", err=True)
    click.echo(
        f"Wrote {out}: {done.tensors:,} tensors, {done.elements:,} elements, in "
        f"{done.seconds:.1f} s, by {'compiled kernels' if done.compiled else 'torch alone'}."
    )
    if page is not None:
        click.echo(f"Report: {page}")


def _report(job: Job, title: str, page: Path, shown: Shown) -> None:
    """Write the page about what is merged, before it is."""
    from polytask.merge import MergeRecord
    from polytask.merge.maps import maps_of
    from polytask.merge.record import now
    from polytask.records import versions
    from polytask.report import write_merge_report

    found = maps_of(job.plan, shown)
    record = MergeRecord(title, {}, {}, {}, found, created=now(), versions=versions())
    write_merge_report(record, page)


def _adapters(job: AdapterJob, out: Path, as_json: bool) -> None:
    """Merge adapters by their factors."""
    click.echo(f"Merging {len(job.folders)} adapters into {out}, by their factors.", err=True)
    with Shown(f"merge {out.name}") as shown:
        done = job.run(out, shown)
    if as_json:
        print_json(_plain(done))
        return
    reduced = {name: layer for name, layer in done.layers.items() if layer.lost}
    if reduced:
        table = _empty_table(("rank", "of", "share lost"))
        for name, layer in reduced.items():
            table.add_row(name, str(layer.rank), str(layer.of), f"{layer.lost:.2%}")
        _show(table)
    ranks = [layer.rank for layer in done.layers.values()]
    click.echo(
        f"Wrote {out}: {len(done.layers):,} layers of rank {max(ranks, default=0)} at most, "
        f"{'nothing' if not reduced else f'{len(reduced):,} of them'} reduced, in "
        f"{done.seconds:.1f} s."
    )


def _plain(done: Written | AdapterWritten) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(done)


def _state(job: Job, out: Path) -> None:
    """Say what the merge needs before it begins, and by what it is computed."""
    from polytask.kernels import missing

    why = missing()
    sizes = sum(item.entry.numel * item.entry.dtype.itemsize for item in job.plan.items)
    click.echo(
        f"Merging {len(job.plan.labels)} models, {len(job.plan.items):,} tensors, into {out}: "
        f"{sizes / 1e9:.2f} GB on disk, at most {job.need.memory / 2**20:.0f} MiB of memory, "
        f"{job.need.threads} thread{'s' if job.need.threads > 1 else ''}. "
        f"Kernels: {f'none ({why}), by torch alone' if why else 'compiled'}.",
        err=True,
    )


def _diff(
    a: Path, b: Path, base: Path | None, out: Path, leave_out: tuple[str, ...], as_json: bool
) -> None:
    from polytask.merge import Options, diff, heat_map
    from polytask.records import write_atomic

    with Shown("diff") as shown:
        found = diff(a, b, base, Options(leave_out=leave_out), shown)
    write_atomic(out, heat_map(found).encode())
    if as_json:
        print_json(
            {
                "models": found.labels,
                "all": found.whole.to_json(),
                "layers": {name: one.to_json() for name, one in found.layers.items()},
                "tensors": {name: one.to_json() for name, one in found.tensors.items()},
                "heat_map": str(out),
            }
        )
        return
    _table(found)
    click.echo(f"Heat map: {out}")


def _table(found: Diff) -> None:
    table = _empty_table(("relative distance", "cosine", "opposite signs", "largest change"))
    for name, one in [*found.layers.items(), ("all", found.whole)]:
        table.add_row(
            name,
            f"{one.distance:.4g}",
            f"{one.cosine:.6f}",
            f"{one.conflict:.2%}",
            f"{one.largest:.4g}",
        )
    _show(table)


def _empty_table(titles: Sequence[str]) -> Table:
    """Return a table of layers; names are shown as they are, whatever brackets they hold."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _show(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 100, markup=False).print(table)


class Shown:
    """Progress on standard error: a bar with the time left in a terminal, else a line at times."""

    every = 10.0
    """Seconds between two lines where no terminal is."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._text, self._total, self._done = "", 0, 0
        self._begun = self._said = clock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Shown:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

            self._bar = Progress(
                "{task.description}",
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str, total: int) -> None:
        """Begin a pass."""
        self._text, self._total, self._done = text, total, 0
        self._begun = self._clock()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(f"{self._title}: {text}", total=total)

    def advance(self, done: int) -> None:
        """Show that so much more is done."""
        self._done += done
        if self._bar is not None:
            self._bar.advance(self._task, done)
            return
        now = self._clock()
        if now - self._said >= self.every and self._done < self._total:
            self._said = now
            left = (now - self._begun) / self._done * (self._total - self._done)
            click.echo(
                f"{self._title}: {self._text}, {self._done / self._total:.0%}, about "
                f"{left:.0f} s left",
                err=True,
            )
