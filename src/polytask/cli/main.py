"""The commands. Each is a thin layer: read the options, call a recipe, print.

Heavy imports happen inside the commands, so that `--help` and listings answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from polytask import __version__, catalog, parsing
from polytask.cli.adapters import adapters
from polytask.cli.auto import auto
from polytask.cli.merge import merge
from polytask.cli.options import (
    command_line,
    config_of,
    parallel_options,
    runs_at_a_time,
    setting,
    training_options,
)
from polytask.cli.parts import examples, json_option, print_json
from polytask.cli.relate import relate
from polytask.errors import PolytaskError, RunError, UsageError, did_you_mean

INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class _Group(click.Group):
    """A group that suggests the nearest command and keeps the order commands are defined in."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            near = did_you_mean(name, self.commands)
            ctx.fail(f"Unknown command {name!r}.{near}")
        return super().resolve_command(ctx, args)


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        code = commands.main(prog_name="polytask", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _stop("Stopped. Give the same command again to go on from the last checkpoint.")
    except click.UsageError as error:
        see = error.ctx.command_path if error.ctx else "polytask"
        click.echo(f"polytask: {error.format_message()} See `{see} --help`.", err=True)
        sys.exit(2)
    except PolytaskError as error:
        click.echo(f"polytask: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        # The reader of our output has left (`polytask methods | head`): nothing to say, nobody
        # to say it to. Without this the interpreter complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(text: str) -> NoReturn:
    click.echo(f"\n{text}", err=True)
    sys.stderr.flush()
    os._exit(INTERRUPTED)  # at once: no thread, no process group is waited for


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("polytask compare digits2"),
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="polytask")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Multi-task learning in PyTorch: what does each task gain or lose in one model for all?"""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


@commands.command(
    short_help="The suites and whether their data is here.",
    epilog=examples("polytask suites", "polytask suites --json"),
)
@json_option
def suites(as_json: bool) -> None:
    """List the suites: tasks, and whether their data is on this machine."""
    from polytask.suites import SUITES, absent, task_names

    rows = [(row, absent(row)) for row in SUITES]
    if as_json:
        print_json(
            [
                {
                    "name": row.name,
                    "tasks": task_names(row),
                    "available": not missing,
                    "summary": row.summary,
                    "missing": missing,
                }
                for row, missing in rows
            ]
        )
        return
    from polytask.cli.show import suites_table

    suites_table(rows)


@commands.command(
    short_help="The methods and their sources.",
    epilog=examples("polytask methods balance", "polytask methods --json"),
)
@click.argument("room", required=False)
@json_option
def methods(room: str | None, as_json: bool) -> None:
    """List the methods, of one ROOM or of all, with their sources."""
    if room is not None and room not in catalog.ROOMS:
        near = did_you_mean(room, catalog.ROOMS)
        raise UsageError(f"Unknown room {room!r}.{near} The rooms: {', '.join(catalog.ROOMS)}.")
    rows = [row for row in catalog.METHODS if room in (None, row.room)]
    if as_json:
        print_json(
            [
                {
                    "name": r.name,
                    "room": r.room,
                    "source": r.source,
                    "summary": r.summary,
                    "wraps": r.wraps,
                }
                for r in rows
            ]
        )
        return
    from polytask.cli.show import methods_table

    if not rows:
        click.echo(f"The room {room!r} has no method yet; its place is kept.")
        return
    methods_table(rows)


@commands.command(
    short_help="Every task alone and all together: who gains, who loses, why.",
    epilog=examples(
        "polytask compare digits2",
        "polytask compare my.yaml --methods equal,pcgrad --seeds 5",
        "polytask compare tox21 --methods dwa:temperature=1,pcgrad+uniform --jobs 2 --json",
    ),
)
@click.argument("suite", default="digits2")
@click.option(
    "--methods",
    "names",
    help="Recipes, comma-separated, each methods joined by +: pcgrad,dwa+uniform; auto is what "
    "`polytask auto` comes to. Default: equal, uncertainty, dwa, pcgrad and aligned-mtl.",
)
@click.option(
    "--seeds", default=3, show_default=True, help="How many; intervals need 2, useful ones 3."
)
@click.option(
    "--tune",
    default=3,
    show_default=True,
    help="Settings (learning rate, weight decay) every model tries on the validation split.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/SUITE.")
@parallel_options
@training_options
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    suite: str,
    names: str | None,
    seeds: int,
    tune: int,
    out: Path | None,
    jobs: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Train every task of SUITE alone and all together by each method; say who gained and lost.

    SUITE is a name (see `polytask suites`) or a YAML file that declares your own data (see
    `polytask init`). Giving the same command again goes on where it was stopped.
    """
    from polytask.cli.show import live, result_tables
    from polytask.recipes import METHODS, Plan
    from polytask.recipes import compare as run
    from polytask.report import write_report

    config = config_of(suite, ctx.ensure_object(dict))
    plan = Plan(
        suite=suite,
        methods=parsing.split(names) if names is not None else METHODS,
        seeds=seeds,
        tune=tune,
        config=config,
        out=out or Path("runs") / Path(suite).stem,
        processes=runs_at_a_time(config.device, jobs),
        threads=threads,
        command=command_line(),
    )
    with live(suite) as show:
        result = run(plan, show)
    page = write_report([plan.out], plan.out / "report.html")
    if as_json:
        print_json(result)
    else:
        result_tables(result, page)
    if failed := result["failed"]:
        raise RunError(
            f"{len(failed)} of {len(plan.methods)} methods failed and are left out: "
            f"{', '.join(failed)}. The report says why; the same command tries again."
        )


@commands.command(
    short_help="Train one model of all tasks.",
    epilog=examples(
        "polytask fit digits2 --method pcgrad --lr 3e-3",
        "polytask fit my-run.yaml --seed 1",
        "torchrun --nproc-per-node 2 -m polytask fit my-run.yaml",
    ),
)
@click.argument("config")
@click.option("--method", help="A recipe: methods joined by +. Default: equal.")
@click.option("--tasks", help="Only these, comma-separated. Default: all.")
@setting("--lr", type=float, help="Learning rate of AdamW. Default: 1e-3, or the suite's.")
@setting("--weight-decay", type=float, help="Decoupled decay. Default: 1e-2.")
@setting("--seed", type=int, help="Default: 0.")
@setting(
    "--per-task-best/--no-per-task-best",
    help="Also keep each task's own best weights (in best/). Default: no.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/NAME-METHOD-sSEED."
)
@training_options
@json_option
@click.pass_context
def fit(
    ctx: click.Context,
    config: str,
    method: str | None,
    tasks: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train one model and keep its best weights.

    CONFIG is a suite (a name, or a YAML file of your own data), or a YAML file with the keys
    suite, method, tasks, out and settings; options given here win over the file.
    """
    from polytask.cli.config import read
    from polytask.cli.show import fit_summary
    from polytask.fit import Bar, Log, Silent, ranks
    from polytask.recipes import Job, test, train

    asked = read(config)
    method = method or asked.method
    names = _split(tasks) if tasks is not None else asked.tasks
    settings = config_of(asked.suite, {**asked.settings, **ctx.ensure_object(dict)}, method)
    folder = out or asked.out or _default_folder(asked.suite, method, settings.seed)
    job = Job(asked.suite, names, method, settings, folder)
    ranks.start(settings.device)
    try:
        first = ranks.rank() == 0
        title = f"{asked.suite} {method}"
        if first and sys.stderr.isatty():
            with Bar(title) as bar:
                record = train(job, bar)
        else:
            record = train(job, Log(title) if first else Silent())
    finally:
        ranks.stop()
    if not first:
        return
    scores = test(job)  # after the processes have parted: one of them reads the test split
    if as_json:
        print_json({"folder": str(folder), "test": scores, "record": record})
    else:
        fit_summary(record, scores, folder)


commands.add_command(auto)
commands.add_command(relate)
commands.add_command(merge)
commands.add_command(adapters)


@commands.command(
    short_help="One HTML page about finished runs.",
    epilog=examples("polytask report runs/digits2 runs/tox21 --out both.html"),
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: report.html in the first folder."
)
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML page about finished RUNS: comparisons, fits, merges, relations,
    searches."""
    from polytask.report import write_report

    page = write_report(list(runs), out or runs[0] / "report.html")
    if as_json:
        print_json({"report": str(page)})
    else:
        click.echo(f"Wrote {page}")


@commands.command(
    short_help="A first YAML file for your own tables.",
    epilog=examples("polytask init patients.csv", "polytask compare patients.yaml"),
)
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: the first table's name with .yaml."
)
@json_option
def init(tables: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a first YAML file for your own TABLES (CSV, TSV, Parquet), with guesses to correct."""
    from polytask.suites.guess import write_draft

    path = out or Path(tables[0].name.split(".")[0] + ".yaml")
    write_draft(list(tables), path)
    if as_json:
        print_json({"file": str(path)})
    else:
        click.echo(f"Wrote {path}. Correct the guesses in it, then: polytask compare {path}")


@commands.command(
    short_help="The ledger of papers' claims, re-run here.",
    epilog=examples("polytask claims", "polytask claims --json"),
)
@click.option(
    "--experiments",
    type=click.Path(path_type=Path),
    default=Path("experiments"),
    show_default=True,
    help="Where the experiments' claims.json files are.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/claims.md"),
    show_default=True,
    help="The page to write.",
)
@json_option
def claims(experiments: Path, out: Path, as_json: bool) -> None:
    """Print the claims ledger (papers' claims, re-run here) and write its page."""
    from polytask.cli.show import claims_table
    from polytask.evaluate.claims import load, markdown
    from polytask.records import write_atomic

    ledger = load(experiments)
    links = Path(os.path.relpath(experiments, out.parent)).as_posix()
    write_atomic(out, markdown(ledger, experiments=links).encode())
    if as_json:
        print_json(list(ledger))
    else:
        claims_table(ledger)
        click.echo(f"Wrote {out}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _default_folder(suite: str, method: str, seed: int) -> Path:
    from polytask.records import file_name

    return Path("runs") / f"{Path(suite).stem}-{file_name(method)}-s{seed}"
