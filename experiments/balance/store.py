"""What the experiments of this folder keep, see `kept.py` above it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from kept import Kept

KEPT = Kept(Path(__file__).parent, Path("runs") / "balance")
kept, write, load = KEPT.run, KEPT.write, KEPT.load
