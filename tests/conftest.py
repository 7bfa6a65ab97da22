"""Fixtures every test may use: real data found or skipped, two processes, one thread per worker."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before torch is loaded, and inherited by the processes that tests start: several workers
# with a thread pool each only get in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# The library finds data through POLYTASK_DATA; tests also look beside the repository.
os.environ.setdefault("POLYTASK_DATA", str(REPOSITORY.parent / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """The folder of the real data sets; the test is skipped where there is none (fails in CI)."""
    root = Path(os.environ["POLYTASK_DATA"])
    if not root.is_dir():
        _absent(f"no data at {root}; set POLYTASK_DATA to the folder that holds the data sets")
    return root


@pytest.fixture
def require_data(data_root: Path) -> Callable[..., Path]:
    """A function: names of files or folders below the data root -> the root, if all are there."""

    def require(*names: str) -> Path:
        missing = [name for name in names if not (data_root / name).exists()]
        if missing:
            _absent(f"{data_root} lacks {', '.join(missing)}")
        return data_root

    return require


def _absent(reason: str) -> None:
    """Skip, except in CI: there a test that did not run must not look like one that passed."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (CI is set: skipping is not allowed)", pytrace=False)
    pytest.skip(reason)


START = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
runpy.run_path(sys.argv[1], run_name="__main__")
sys.stdout.flush()
# What torch keeps of a process group to the end (the defaults of functions it loads late, device
# meshes) can abort the process while it ends: gloo's threads are then still running. The program
# is over by now and has left its group; an error in it has ended the process with 1 before.
os._exit(0)
"""


@pytest.fixture(scope="session")
def run_pair() -> Callable[..., list[Any]]:
    """A function (program, folder) -> what two processes of it, one group, printed as JSON.

    folder: where they run; None: where the tests do.
    """

    def run(program: str | Path, folder: Path | None = None) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        common |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        results = []
        with contextlib.ExitStack() as stack:
            pair = []
            for rank in (0, 1):
                process = subprocess.Popen(
                    [sys.executable, "-c", START, program],
                    env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                stack.enter_context(process)  # closes its pipes
                stack.callback(process.kill)
                pair.append(process)
            for process in pair:
                out, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors
                results.append(json.loads(out))
        return results

    return run
