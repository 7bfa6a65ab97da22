"""What the experiment of this folder keeps, see `kept.py` above it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from cifar import cifar10
from kept import Kept, Table, claim, minus, section, spread

KEPT = Kept(Path(__file__).parent, Path("runs") / "merge")

__all__ = ["KEPT", "Table", "cifar10", "claim", "minus", "section", "spread"]
