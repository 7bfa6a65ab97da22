"""What the experiments of this folder keep and write with, see `kept.py` above it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from cifar import cifar10 as cifar10
from kept import Kept
from kept import Page as Page
from kept import Table as Table
from kept import claim as claim
from kept import minus as minus
from kept import section as section
from kept import spread as spread

KEPT = Kept(Path(__file__).parent, Path("runs") / "adapt")
