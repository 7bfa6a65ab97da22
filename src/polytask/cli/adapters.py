"""`polytask adapters`: a library of LoRA adapters of one base."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import click

from polytask.cli.parts import examples, json_option, print_json
from polytask.errors import UsageError

Justify = Literal["left", "right"]

same_base_option = click.option(
    "--same-base",
    is_flag=True,
    help="Your word that its base is the library's, where the files do not show it.",
)


@click.group(
    short_help="A library of adapters of one base: add, list, compose, cluster, route.",
    epilog=examples(
        "polytask adapters add trained.safetensors",
        "polytask adapters list --json",
        "polytask adapters --library shelf compose mnli=0.7 qnli=0.3 --out both",
        "polytask adapters cluster --clusters 4 --out fewer",
        "polytask adapters route trained-a-little.safetensors",
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
    folder: Path
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
@same_base_option
@json_option
@click.pass_obj
def add(chosen: _Chosen, source: Path, name: str, same_base: bool, as_json: bool) -> None:
    """Add SOURCE to the library: the tasks of a file that polytask wrote, or a folder of PEFT.

    All adapters of a library belong to one base: checked by fingerprint, by the base's name, and by
    the sizes of layers.
    """
    from polytask.recipes.adapter_library import Library

    added = Library(chosen.folder).add(source, name, same_base)
    if as_json or chosen.as_json:
        print_json([dataclasses.asdict(entry) for entry in added])
        return
    names = ", ".join(entry.name for entry in added)
    heads = ", ".join(entry.name for entry in added if entry.head)
    click.echo(f"Added {names} to {chosen.folder}.")
    if heads:
        click.echo(f"Heads of {heads} stay in {source}: a library holds adapters alone.", err=True)


@adapters.command("list", short_help="The adapters of the library.")
@json_option
@click.pass_obj
def list_(chosen: _Chosen, as_json: bool) -> None:
    """List the adapters of the library."""
    from polytask.recipes.adapter_library import Library

    shelf = Library(chosen.folder)
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
    _table(
        {
            "adapter": "left",
            "layers": "right",
            "rank": "right",
            "numbers": "right",
            "base": "left",
            "from": "left",
        },
        [
            (
                entry.name,
                str(entry.layers),
                str(entry.rank),
                f"{entry.numbers:,}",
                "your word" if entry.vouched else "checked",
                entry.source,
            )
            for entry in entries
        ],
    )


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
        done = Library(chosen.folder).compose(weights, out, rank, shown)
    if as_json or chosen.as_json:
        layers = {name: dataclasses.asdict(layer) for name, layer in done.layers.items()}
        print_json({"out": str(out), "weights": weights, "layers": layers})
        return
    lost = max((layer.lost for layer in done.layers.values()), default=0.0)
    ranks = max((layer.rank for layer in done.layers.values()), default=0)
    loss = f"; at most {lost:.2%} of a layer's change lost" if lost else ", exact"
    click.echo(f"Wrote {out}: {len(done.layers)} layers of rank at most {ranks}{loss}.")


@adapters.command(
    short_help="Which adapters have like weights; one merged adapter of each cluster.",
    epilog=examples(
        "polytask adapters cluster --clusters 4",
        "polytask adapters cluster --clusters 4 --out fewer",
    ),
)
@click.option(
    "--clusters", type=int, default=10, show_default=True, help="How many, at most the adapters."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new folder, for one adapter of each cluster: the exact average of its changes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of k-means.")
@json_option
@click.pass_obj
def cluster(chosen: _Chosen, clusters: int, out: Path | None, seed: int, as_json: bool) -> None:
    """Find which adapters of the library have like weights (MBC).

    Similarities are mean cosines of what is clustered: between the adapters of a cluster, and to
    those of the cluster next to it. With --out each cluster becomes a folder that PEFT reads.
    """
    from polytask.cli.merge import Shown
    from polytask.recipes.adapter_library import Library
    from polytask.recipes.adapter_likeness import cluster_library

    with Shown("cluster") as shown:
        groups = cluster_library(Library(chosen.folder), clusters, out, seed, shown)
    if as_json or chosen.as_json:
        print_json(
            {
                "out": None if out is None else str(out),
                "clusters": [dataclasses.asdict(group) for group in groups],
            }
        )
        return
    _table(
        {
            "cluster": "left",
            "adapters": "left",
            "within": "right",
            "next": "left",
            "to it": "right",
        },
        [
            (
                group.name,
                ", ".join(group.members),
                _cosine(group.within),
                group.next or "",
                _cosine(group.beside),
            )
            for group in groups
        ],
    )
    if out is not None:
        click.echo(f"Wrote {out}: {len(groups)} adapters, the exact averages of their clusters.")


@adapters.command(
    short_help="Which adapters serve a new task.",
    epilog=examples(
        "polytask adapters route trained-a-little.safetensors",
        "polytask adapters route peft/new --top 2 --out served",
    ),
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--task", default="", help="Which of a file's tasks is new, where it has several.")
@click.option("--top", type=int, default=4, show_default=True, help="How many serve; 0 is all.")
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="Of the softmax over scores."
)
@click.option("--out", type=click.Path(path_type=Path), help="A new folder, for their sum, exact.")
@same_base_option
@json_option
@click.pass_obj
def route(
    chosen: _Chosen,
    source: Path,
    task: str,
    top: int,
    temperature: float,
    out: Path | None,
    same_base: bool,
    as_json: bool,
) -> None:
    """Rank the library's adapters for a new task, of which SOURCE is a LoRA trained a little.

    The score is the mean over layers of |cosine| between the inputs that the two lengthen most
    (Arrow's prototypes); weights are a softmax over the best. With --out their weighted sum is
    written.
    """
    from polytask.cli.merge import Shown
    from polytask.recipes.adapter_library import Library
    from polytask.recipes.adapter_likeness import route as routed_by

    library = Library(chosen.folder)
    with Shown("route") as shown:
        routed = routed_by(library, source, task, top, temperature, same_base, out, shown)
    if as_json or chosen.as_json:
        print_json({"out": None if out is None else str(out), **dataclasses.asdict(routed)})
        return
    _table(
        {"adapter": "left", "score": "right", "layers": "right", "weight": "right"},
        [
            (
                match.name,
                _cosine(match.score),
                f"{match.layers} of {routed.layers}",
                f"{match.weight:.3f}" if match.weight else "",
            )
            for match in routed.matches
        ],
    )
    if out is not None:
        click.echo(f"Wrote {out}: {', '.join(routed.weights)} by these weights, exact.")


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


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


def _table(columns: Mapping[str, Justify], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table. columns: title -> side."""
    from rich.markup import escape
    from rich.table import Table

    from polytask.cli.show import output

    table = Table(box=None, pad_edge=False)
    for title, side in columns.items():
        # Names are folded where there is no room, numbers never.
        table.add_column(title, justify=side, overflow="fold", no_wrap=side == "right")
    for row in rows:
        table.add_row(*map(escape, row))
    output().print(table)
