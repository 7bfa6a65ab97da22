"""A merge that is killed leaves nothing under the result's name, and goes on to the same bits."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from polytask.merge import PCB, TIES, TaskArithmetic, merge

from .saved import base, load, mixed, same, save, tuned


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return mixed(tmp_path_factory.mktemp("family"))


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from polytask.merge import merge, Options, TIES, TaskArithmetic, PCB
from polytask.merge.base import GRAIN

class Kill:
    def __init__(self, at): self.left = at
    def phase(self, text, total):
        print(text, total, flush=True)
        self.counts = text.startswith(sys.argv[5])
    def advance(self, done):
        self.left -= done * self.counts
        if self.left < 0: os.kill(os.getpid(), signal.SIGKILL)

home, method, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
paths = [home / f"m{i}" for i in range(3)]
chosen = {"ties": TIES(0.3), "ta": TaskArithmetic(), "pcb": PCB()}[method]
merge(home / "base", paths, chosen, out=home / sys.argv[4],
      options=Options(chunk=GRAIN, shard=200_000), progress=Kill(at))
"""


def run(home: Path, name: str, out: str, phase: str = "merging", at: int = 10**12):
    """Merge in another process, which kills itself after so many elements of that phase."""
    command = [sys.executable, "-c", KILLED, *map(str, (home, name, at, out, phase))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if at == 10**12 else -signal.SIGKILL), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "phase", "at"),
    [
        ("ta", "merging", 118_000),
        ("ties", "looking, pass 2", 9000),
        ("ties", "merging", 60_000),
    ],
)
def test_a_merge_killed_in_the_middle_leaves_nothing_and_goes_on_to_the_same_bits(
    family, name, phase, at
):
    start, base_path, models, _ = family
    home, out = base_path.parent, f"killed-{name}-{at}"
    run(home, name, out, phase, at)
    assert not (home / out).exists()
    assert (home / f".{out}.merging").is_dir()
    again = run(home, name, out)
    left = int(again.split()[-1])
    total = sum(v.numel() for v in start.values())
    assert (left < total) == (at > 10_000)  # it goes on where it was; the first tensor takes 40,000
    assert ("looking" in again) == (phase == "looking, pass 2")  # and surveys once
    chosen = {"ta": TaskArithmetic(), "ties": TIES(0.3)}[name]
    assert same(load(home / out), merge(start, models, chosen))
    assert not (home / f".{out}.merging").exists()


def test_another_recipe_does_not_go_on_with_what_a_killed_one_left(family):
    start, base_path, models, _ = family
    home = base_path.parent
    run(home, "ta", "mixed", "merging", 50_000)
    run(home, "pcb", "mixed")
    assert same(load(home / "mixed"), merge(start, models, PCB()))


def test_a_model_that_changed_meanwhile_is_read_anew(tmp_path):
    start = base()
    paths = [save(tmp_path / f"m{i}", tuned(start, i)) for i in range(3)]
    save(tmp_path / "base", start)
    run(tmp_path, "ta", "out", "merging", 80_000)
    changed = tuned(start, 77)
    save_file(changed, paths[0] / "model.safetensors")
    run(tmp_path, "ta", "out")
    models = [changed, tuned(start, 1), tuned(start, 2)]
    assert same(load(tmp_path / "out"), merge(start, models, TaskArithmetic()))
