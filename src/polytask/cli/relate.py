"""`polytask relate`: watch models of all tasks, and propose groups."""

from __future__ import annotations

from pathlib import Path

import click

from polytask import parsing
from polytask.cli.options import (
    command_line,
    config_of,
    parallel_options,
    runs_at_a_time,
    setting,
    training_options,
)
from polytask.cli.parts import examples, json_option, print_json


@click.command(
    short_help="Which tasks help each other, and which to train together.",
    epilog=examples(
        "polytask relate digits2",
        "polytask relate tox21 --budget 4 --seeds 5",
        "polytask relate my.yaml --methods tag:every=5,gradient-cosine --json",
    ),
)
@click.argument("suite", default="digits2")
@click.option(
    "--methods",
    "names",
    help="Comma-separated: tag, gradient-cosine, label-correlation. Default: all that apply.",
)
@click.option(
    "--budget",
    default=3,
    show_default=True,
    help="Models at most; groups are proposed for every number up to it.",
)
@click.option("--seeds", default=3, show_default=True, help="Models of all tasks to watch.")
@click.option("--method", "recipe", default="equal", show_default=True, help="How they train.")
@setting("--lr", type=float, help="Learning rate of AdamW. Default: 1e-3.")
@setting("--weight-decay", type=float, help="Decoupled decay. Default: 1e-2.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/SUITE-relate."
)
@parallel_options
@training_options
@json_option
@click.pass_context
def relate(
    ctx: click.Context,
    suite: str,
    names: str | None,
    budget: int,
    seeds: int,
    recipe: str,
    out: Path | None,
    jobs: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Train models of all tasks of SUITE, watch how the tasks affect one another, and propose
    groups to train together.

    Each method gives a table of how much training one task helps another, with an error over
    seeds. Giving the same command again goes on where it was stopped.
    """
    from polytask.cli.related import related_tables
    from polytask.cli.show import live
    from polytask.recipes import RelatePlan
    from polytask.recipes import relate as run
    from polytask.recipes.relating import EVIDENCE, PHASES
    from polytask.report import write_report

    config = config_of(suite, ctx.ensure_object(dict), recipe)
    plan = RelatePlan(
        suite=suite,
        methods=parsing.split(names) if names is not None else EVIDENCE,
        budget=budget,
        seeds=seeds,
        recipe=recipe,
        config=config,
        out=out or Path("runs") / f"{Path(suite).stem}-relate",
        processes=runs_at_a_time(config.device, jobs),
        threads=threads,
        command=command_line(),
    )
    with live(suite, PHASES) as show:
        result = run(plan, show)
    page = write_report([plan.out], plan.out / "report.html")
    if as_json:
        print_json(result)
    else:
        related_tables(result, page)
