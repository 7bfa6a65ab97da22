"""Compare the methods on every suite and keep the results as small tables.

    python experiments/compare/run.py                  # every suite that has no table yet
    python experiments/compare/run.py tox21 census     # these
    python experiments/compare/run.py --page           # only rewrite the page and the claims

Each comparison is one `polytask compare` command, shown in its table. Run folders go to `runs/`
(a comparison that was stopped goes on where it was), tables to this folder, the page to
`docs/results.md`, the claims to `claims.json` here.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import claims
import page
import torch

from polytask.recipes import load_suite

HERE = Path(__file__).parent

COMMANDS = {
    "digits2": "polytask compare digits2 --seeds 3 --tune 3",
    "clintox": "polytask compare clintox --seeds 3 --tune 3",
    "tox21": "polytask compare tox21 --seeds 3 --tune 3",
    "sider": "polytask compare sider --seeds 3 --tune 3",
    "sarcos": "polytask compare sarcos --seeds 3 --tune 3",
    "census": "polytask compare census --seeds 3 --tune 3",
    "sentences": "polytask compare sentences --seeds 1 --tune 3",
    "school": "polytask compare school --seeds 3 --tune 3",
    "snips": "polytask compare snips --seeds 1 --tune 2",
    "camvid": "polytask compare camvid --seeds 1 --tune 1",
}
"""Three seeds where it takes minutes on two cores, one where it takes longer."""

KEPT = ("metric", "values", "gains", "gain", "interval", "verdict")


def small(result: dict[str, Any], command: str) -> dict[str, Any]:
    """Return what is worth keeping of a comparison's result, numbers to six digits."""
    kept = {
        key: result[key]
        for key in ("suite", "title", "about", "notes", "seeds", "created", "versions", "rows")
    }
    kept |= {"command": command, "tasks": result["tasks"], "tuning": result["tuning"]}
    kept["methods"] = {
        name: {
            "tasks": {t: {k: v[k] for k in KEPT} for t, v in method["tasks"].items()},
            "scores": method["all_metrics"],
            **{k: method[k] for k in ("delta_m", "delta_m_interval", "worst", "counts", "cost")},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--page", action="store_true", help="train nothing")
    options = parser.parse_args()
    unknown = set(options.suites) - set(COMMANDS)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    wanted = options.suites or [n for n in COMMANDS if not (HERE / f"{n}.json").exists()]
    for name in [] if options.page else wanted:
        print(f"{name}: {COMMANDS[name]}", flush=True)
        command = [sys.executable, "-m", *shlex.split(COMMANDS[name])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads((Path("runs") / name / "result.json").read_text())
        table = json.dumps(small(result, COMMANDS[name]), indent=None, separators=(",", ":"))
        # One line per method and task, so that a change of one figure is one line of a diff.
        (HERE / f"{name}.json").write_text(table.replace('},"', '},\n"') + "\n")
    tables = {
        name: json.loads((HERE / f"{name}.json").read_text())
        for name in COMMANDS
        if (HERE / f"{name}.json").exists()
    }
    claims.write(tables, HERE / "claims.json")
    Path("docs/results.md").write_text(page.markdown(tables))


if __name__ == "__main__":
    main()
