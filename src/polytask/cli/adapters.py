"""`polytask adapters`: a library of LoRA adapters of one base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polytask.cli.parts import examples, json_option, print_json
from polytask.errors import UsageError

if TYPE_CHECKING:
    from polytask.recipes.adapter_library import Entry


@click.group(
    short_help="A library of adapters of one base: add, list, compose.",
    epilog=examples(
        "polytask adapters add trained.safetensors",
        "polytask adapters list --json",
        "polytask adapters --library shelf compose mnli=0.7 qnli=0.3 --out both",
    ),
)
@click.option(
    "--library",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("adapters"),
    show_default=True,
    help="Its folder.",
)
@json_option
@click.pass_context
def adapters(ctx: click.Context, library: Path, as_json: bool) -> None:
    """Keep LoRA adapters of one base in a folder that PEFT can read, and compose them exactly."""
    ctx.obj = _Chosen(library, as_json)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    library: Path
    as_json: bool


@adapters.command(
    short_help="Take adapters into the library.",
    epilog=examples(
        "polytask adapters add trained.safetensors",
        "polytask adapters add peft/summaries --name summaries --same-base",
    ),
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--name", default="", help="Of the adapter. Default: the folder's, or the tasks'.")
@click.option(
    "--same-base",
    is_flag=True,
    help="Your word that its base is the library's, where the files do not show it.",
)
@json_option
@click.pass_obj
def add(chosen: _Chosen, source: Path, name: str, same_base: bool, as_json: bool) -> None:
    """Add SOURCE to the library: the tasks of a file that polytask wrote, or a folder of PEFT.

    All adapters of a library belong to one base: checked by fingerprint, by the base's name, and by
    the sizes of layers.
    """
    from polytask.recipes.adapter_library import Library

    added = Library(chosen.library).add(source, name, same_base)
    if as_json or chosen.as_json:
        print_json([dataclasses.asdict(entry) for entry in added])
        return
    names = ", ".join(entry.name for entry in added)
    heads = ", ".join(entry.name for entry in added if entry.head)
    click.echo(f"Added {names} to {chosen.library}.")
    if heads:
        click.echo(f"Heads of {heads} stay in {source}: a library holds adapters alone.", err=True)


@adapters.command("list", short_help="The adapters of the library.")
@json_option
@click.pass_obj
def list_(chosen: _Chosen, as_json: bool) -> None:
    """List the adapters of the library."""
    from polytask.recipes.adapter_library import Library

    shelf = Library(chosen.library)
    base, entries = shelf.base(), shelf.entries()
    if as_json or chosen.as_json:
        print_json(
            {
                "base": dataclasses.asdict(base),
                "adapters": [dataclasses.asdict(entry) for entry in entries],
            }
        )
        return
    known = [base.model, f"fingerprint {base.fingerprint[:12]}…" if base.fingerprint else ""]
    click.echo(f"Base: {', '.join(filter(None, known)) or 'not known'}")
    _table(entries)


@adapters.command(
    short_help="Write a weighted sum of adapters as one adapter.",
    epilog=examples("polytask adapters compose mnli=0.7 qnli=0.3 --out both"),
)
@click.argument("parts", nargs=-1, required=True, metavar="NAME[=WEIGHT]...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--rank", type=int, help="Reduce to at most this rank. Default: exact.")
@json_option
@click.pass_obj
def compose(
    chosen: _Chosen, parts: tuple[str, ...], out: Path, rank: int | None, as_json: bool
) -> None:
    """Write the sum of WEIGHT times each adapter NAME of the library; a weight is 1 unless given.

    The sum is exact; its rank is the sum of theirs. With --rank it is the nearest of that rank, and
    what that loses is said.
    """
    from polytask.cli.merge import Shown
    from polytask.recipes.adapter_library import Library

    weights = _weights(parts)
    with Shown("compose") as shown:
        done = Library(chosen.library).compose(weights, out, rank, shown)
    lost = max((layer.lost for layer in done.layers.values()), default=0.0)
    ranks = max((layer.rank for layer in done.layers.values()), default=0)
    if as_json or chosen.as_json:
        layers = {name: dataclasses.asdict(layer) for name, layer in done.layers.items()}
        print_json({"out": str(out), "weights": weights, "layers": layers})
        return
    loss = f"; at most {lost:.2%} of a layer's change lost" if lost else ", exact"
    click.echo(f"Wrote {out}: {len(done.layers)} layers of rank at most {ranks}{loss}.")


def _weights(parts: tuple[str, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in parts:
        name, given, text = part.partition("=")
        try:
            weight = float(text) if given else 1.0
        except ValueError:
            raise UsageError(f"{part!r}: {text!r} is no weight; give a number, {name}=0.5.") from (
                None
            )
        if name in weights:
            raise UsageError(f"{name!r} is given twice; give it once, with the sum of its weights.")
        weights[name] = weight
    return weights


def _table(entries: list[Entry]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from polytask.cli.show import output

    table = Table(box=None, pad_edge=False)
    for title in ("adapter", "layers", "rank", "numbers", "base", "from"):
        table.add_column(
            title, justify="right" if title in ("layers", "rank", "numbers") else "left"
        )
    for entry in entries:
        base = "your word" if entry.vouched else "checked"
        table.add_row(
            escape(entry.name), str(entry.layers), str(entry.rank), f"{entry.numbers:,}", base,
            escape(entry.source),
        )  # fmt: skip
    output().print(table)
