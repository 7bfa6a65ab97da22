"""`polytask auto`: search, choose, and say what serves each task."""

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
    short_help="Train so that no task loses: relate, group, share, within a budget.",
    epilog=examples(
        "polytask auto digits2",
        "polytask auto tox21 --budget 0.3",
        "polytask auto my.yaml --methods mmoe,pcgrad --seed 1 --json",
    ),
)
@click.argument("suite", default="digits2")
@click.option(
    "--budget",
    type=float,
    help="What all training together may cost, in runs of every task alone. Default: 0.5 of 8 "
    "tasks or more, 2 of fewer.",
)
@click.option(
    "--methods",
    "names",
    help="Recipes to try beside hard sharing, comma-separated. Default: mmoe, cross-stitch, dsmtl, "
    "uncertainty.",
)
@click.option(
    "--tune",
    default=3,
    show_default=True,
    help="Settings (learning rate, weight decay) to try on the validation split.",
)
@setting("--seed", type=int, help="Default: 0.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/SUITE-auto."
)
@parallel_options
@training_options
@json_option
@click.pass_context
def auto(
    ctx: click.Context,
    suite: str,
    budget: float | None,
    names: str | None,
    tune: int,
    out: Path | None,
    jobs: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Find out which tasks of SUITE to train together and how, so that none is worse than alone.

    Trains models of all tasks and watches how the tasks affect one another; lets every task go on
    alone from there; trains alone, from the start, those that this helped; tries other sharing and
    groups while the budget lasts. What serves a task is chosen on the validation split. Giving the
    same command again goes on where it was stopped.
    """
    from polytask.cli.searched import searched_tables
    from polytask.cli.show import live
    from polytask.recipes import BESIDE, AutoPlan
    from polytask.recipes import auto as run
    from polytask.recipes.search import PHASES
    from polytask.report import write_report

    config = config_of(suite, ctx.ensure_object(dict))
    plan = AutoPlan(
        suite=suite,
        budget=budget,
        methods=parsing.split(names) if names is not None else BESIDE,
        tune=tune,
        config=config,
        out=out or Path("runs") / f"{Path(suite).stem}-auto",
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
        searched_tables(result, page)
