"""Runs code in the environment of a peer; the tests that do are skipped where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

PACKAGES = {"MERGEKIT": "mergekit", "FUSIONBENCH": "fusion_bench", "PEFT": "peft"}


def run(peer: str, code: str, *args: object) -> None:
    """Run code where the peer is; skip the test where it is nowhere."""
    variable, package = f"POLYTASK_{peer}", PACKAGES[peer]
    python = os.environ.get(variable)
    if not python and importlib.util.find_spec(package):
        python = sys.executable
    if not python:
        pytest.skip(f"{package} is not installed; {variable} may name an interpreter that has it")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
