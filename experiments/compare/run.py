"""Compare the methods on every suite and keep the results as small tables.

    python experiments/compare/run.py                  # every suite that has no table yet
    python experiments/compare/run.py tox21 census     # these
    python experiments/compare/run.py --from runs/tox21 # the table of a finished run, no training
    python experiments/compare/run.py --page           # only rewrite the pages and the claims

Each comparison is one `polytask compare` command, shown in its table. Run folders go to `runs/`
(a comparison that was stopped goes on where it was), tables to this folder. From the tables, from
`../balance/cost.json` and from `../merge/eight.json` follow `docs/results.md`, the figures and the
pictures of `docs/balance.md`, the claims in `claims.json` here and `docs/claims.md`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import adapting
import arithmetic
import claims
import guide
import merging
import page
import picture
import torch

from polytask.evaluate.claims import load, markdown
from polytask.parsing import split
from polytask.recipes import METHODS, RESULT, load_suite

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COST = HERE.parent / "balance" / "cost.json"
MERGED = HERE.parent / "merge" / "eight.json"
ADAPTED = HERE.parent / "adapt"
OF_ADAPTERS = ("minilm", "transfer", "vision")
AROUND = ("wrapped", "added")

EVERY = (
    "equal,uncertainty,dwa,gls,rlw,imtl-l,scale-invariant,stch,famo,gradnorm,igb-v1,igb-v2,coba,"
    "pcgrad,aligned-mtl,mgda,sdmgrad,moco,cagrad,gradvac,imtl-g,config,nash-mtl,fairgrad,upgrad,"
    "dualproj,graddrop,trimmed-mean"
)
"""Every balance method. `fixed` is not among them: it is `equal` until somebody gives weights."""

FULL = ("digits2", "tox21", "census", "sentences")
"""The suites that are compared with every method; the others with those that `compare` takes
unless methods are named."""

SHORTER = dict.fromkeys(("sentences", "fdu_mtl"), " --epochs 15 --patience 4")
"""A run takes minutes there, so it also has one setting alone."""

OTHERS = {"fdu_mtl": " --methods equal,uncertainty,dwa,aligned-mtl"}
"""PCGrad of sixteen tasks takes hours there."""

COMMANDS = {
    name: f"polytask compare {name} --seeds {seeds} --tune {tune}"
    + SHORTER.get(name, "")
    + (f" --methods {EVERY}" if name in FULL else OTHERS.get(name, ""))
    for name, seeds, tune in (
        ("digits2", 3, 3),
        ("clintox", 3, 3),
        ("tox21", 3, 3),
        ("sider", 3, 3),
        ("sarcos", 3, 3),
        ("census", 3, 3),
        ("sentences", 3, 1),
        ("school", 3, 3),
        ("fdu_mtl", 3, 1),
        ("snips", 1, 2),
        ("camvid", 1, 1),
    )
}
"""Three seeds where it takes minutes on two cores, one where it takes longer."""

ROWS = (
    "hard,mmoe,mmoeex,cgc,ple,home,dselect-k,cross-stitch,sparse-moe,task-gating,skillnet,dsmtl,"
    "multimodn"
)
SHARING = {
    "digits2-sharing": ("digits2", 3, f"{ROWS},sluice,learning-to-branch", ""),
    "census-sharing": ("census", 3, f"{ROWS},sluice,learning-to-branch,stem,apem,dtrn", ""),
    "tox21-sharing": ("tox21", 3, f"{ROWS},sluice,learning-to-branch", ""),
    "clicks-sharing": ("clicks", 3, f"{ROWS},sluice,stem,apem,dtrn,esmm,aitm", ""),
    "camvid-sharing": (
        "camvid", 1, "hard,mtan,medusa,task-expert,hard:on=tokens,m3vit,task-gating",
        " --epochs 16",
    ),
    "camvid-rows": (
        "camvid", 1,
        "hard,mmoe,mmoeex,cgc,ple,home:expert_width=8,dselect-k,cross-stitch,sparse-moe,skillnet,"
        "dsmtl,sluice,learning-to-branch",
        " --epochs 16 --device cuda",
    ),
}  # fmt: skip
"""Name -> suite, settings tried, architectures that fit it, other options. `hard` is what the
others are held against: a comparison of them is of equal weights, as one of balance methods is of
hard sharing. On camvid for 16 epochs: those made for pictures on processors, and those of rows,
which see a picture's cells as rows, on a GPU, with single-task models of their own. Task gating's
runs on the GPU were cut off, so it stands with the first."""

COMMANDS |= {
    name: f"polytask compare {suite} --seeds 3 --tune {tune}{options} --out runs/{name} "
    f"--methods {methods}"
    for name, (suite, tune, methods, options) in SHARING.items()
}

SEARCHED = {
    **dict.fromkeys(("digits2", "tox21", "sider", "school", "sarcos", "census"), " --tune 3"),
    **dict.fromkeys(("sentences", "fdu_mtl"), " --tune 1 --epochs 15 --patience 4"),
}
"""Suite -> options of the comparison of `auto`: with equal weights alone, beside single-task models
that were trained by the same command."""

COMMANDS |= {
    f"{suite}-auto": f"polytask compare {suite} --seeds 3{options} --out runs/{suite}-auto "
    "--methods equal,auto"
    for suite, options in SEARCHED.items()
}

KEPT = ("metric", "values", "gains", "gain", "interval", "verdict")


def asked(command: str) -> tuple[list[int], int, tuple[str, ...]]:
    """Return a comparison command's seeds, its number of settings, and its methods."""
    words = shlex.split(command)
    given = dict(zip(words[3::2], words[4::2], strict=True))
    methods = split(given["--methods"]) if "--methods" in given else METHODS
    return list(range(int(given["--seeds"]))), int(given["--tune"]), methods


def check(result: dict[str, Any], folder: Path) -> str:
    """Return the name of a finished comparison; end where it is not what its command makes."""
    found = {*result["methods"], *result["failed"]} - {"single"}
    of_suite = [n for n, c in COMMANDS.items() if shlex.split(c)[2] == result["suite"]]
    if not of_suite:
        sys.exit(f"{folder} is of {result['suite']}; there are {', '.join(COMMANDS)}.")
    # Of several comparisons of a suite, the one with the most of these methods and the fewest more.
    name = min(of_suite, key=lambda n: len(found ^ {*asked(COMMANDS[n])[2]}))
    seeds, tune, methods = asked(COMMANDS[name])
    wrong = [
        f"{what}: {came}, not {wanted}"
        for what, came, wanted in (
            ("seeds", result["seeds"], seeds),
            ("settings", len(result["tuning"]["grid"]), tune),
            ("methods lacking", sorted({*methods} - found), []),
            ("methods more", sorted(found - {*methods}), []),
        )
        if came != wanted
    ]
    if wrong:
        sys.exit(
            f"{folder} is not the result of the command of {name} ({'; '.join(wrong)}). "
            f"Give it with --out {folder}: what is trained stays.\n{COMMANDS[name]}"
        )
    return name


def keep(folder: Path) -> None:
    """Write the table of the finished comparison in `folder`."""
    result = json.loads((folder / RESULT).read_text())
    name = check(result, folder)
    if "auto" in result["methods"]:
        searches = result["methods"]["auto"]["searches"]
        for one, part in zip(searches, arithmetic.of_single(folder, result), strict=True):
            one["of_single"] = part
    table = json.dumps(small(result, COMMANDS[name]), indent=None, separators=(",", ":"))
    # One line per method and task, so that a change of one figure is one line of a diff.
    (HERE / f"{name}.json").write_text(table.replace('},"', '},\n"') + "\n")


def small(result: dict[str, Any], command: str) -> dict[str, Any]:
    """Return what is worth keeping of a comparison's result, numbers to six digits."""
    kept = {
        key: result[key]
        for key in (
            *("suite", "title", "about", "notes", "seeds", "created", "versions", "rows"),
            "failed",
        )
    }
    kept |= {"command": command, "tasks": result["tasks"], "tuning": result["tuning"]}
    kept["methods"] = {
        name: {
            "tasks": {t: {k: v[k] for k in KEPT} for t, v in method["tasks"].items()},
            "scores": method["all_metrics"],
            **{k: method[k] for k in ("delta_m", "delta_m_interval", "worst", "counts", "cost")},
            **{k: method[k] for k in ("engine", "notes", "searches") if k in method},
        }
        for name, method in result["methods"].items()
    }
    if all(task["kind"] == "regression" for task in result["tasks"]):
        kept["total_squares"] = total_squares(result["suite"])
    rounded: dict[str, Any] = _rounded(kept)
    return rounded


def total_squares(name: str) -> float:
    """Return the squared deviations of all test targets from their common mean, summed."""
    targets = [t for stream in load_suite(name).test for t in stream.targets.values()]
    values = torch.cat([target[~target.isnan()].double() for target in targets])
    return float((values - values.mean()).square().sum())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def train(command: str, folder: Path) -> Path:
    """Give the command and return the folder of its result; end where it left none."""
    result = folder / RESULT
    before = result.stat().st_mtime_ns if result.exists() else 0
    line = [sys.executable, "-m", *shlex.split(command)]
    code = subprocess.run(line, check=False, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    # It also tells by its exit code that some methods failed: then the result is there and new.
    if not result.exists() or result.stat().st_mtime_ns == before:
        sys.exit(code or f"{result} was not written.")
    return folder


def pages(tables: dict[str, Any], cost: dict[str, Any]) -> dict[Path, str]:
    """Return the documents that follow from the tables, and their texts."""
    docs = ROOT / "docs"
    others = merging.section(_read(MERGED)) + adapting.sections(
        *(_read(ADAPTED / f"{name}.json") for name in OF_ADAPTERS)
    )
    made = {docs / "results.md": page.markdown(tables, cost) + others}
    kept = (docs / "balance.md").read_text()
    methods = {name: table for name, table in tables.items() if not page.is_of_auto(table)}
    return made | {
        docs / "balance.md": guide.filled(kept, methods, cost, read_around()),
        docs / "balance.svg": picture.gains(methods, cost),
    }


def read_tables() -> dict[str, Any]:
    """Return the tables there are, in the order of the commands."""
    found = ((name, HERE / f"{name}.json") for name in COMMANDS)
    return {name: json.loads(path.read_text()) for name, path in found if path.exists()}


def read_around() -> list[dict[str, Any]]:
    """Return the tables of methods with and without what stands around them."""
    return [json.loads((COST.parent / f"{name}.json").read_text()) for name in AROUND]


def _read(path: Path) -> dict[str, Any]:
    """Return another experiment's table, empty where it was not run."""
    return json.loads(path.read_text()) if path.exists() else {}


def read_cost() -> dict[str, Any]:
    """Return what the methods' steps cost, empty where it was not measured yet."""
    return _read(COST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument(
        "--from", dest="folders", nargs="+", type=Path, metavar="FOLDER", default=(),
        help="make the tables of finished comparisons; train nothing",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="train nothing")
    options = parser.parse_args()
    unknown = set(options.suites) - set(COMMANDS)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    for folder in options.folders:
        keep(folder)
    wanted = options.suites or [n for n in COMMANDS if not (HERE / f"{n}.json").exists()]
    for name in [] if options.page or options.folders else wanted:
        print(f"{name}: {COMMANDS[name]}", flush=True)
        keep(train(COMMANDS[name], ROOT / "runs" / name))
    tables = read_tables()
    methods = {name: table for name, table in tables.items() if not page.is_of_auto(table)}
    claims.write(methods, HERE / "claims.json")
    for path, text in pages(tables, read_cost()).items():
        path.write_text(text)
    (ROOT / "docs" / "claims.md").write_text(markdown(load(ROOT / "experiments")))


if __name__ == "__main__":
    main()
