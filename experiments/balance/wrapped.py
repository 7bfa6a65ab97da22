"""What approximating the Gramian costs in quality, and what looking ahead brings: digits2.

    python experiments/balance/wrapped.py

The methods alone are those of `added.py`, whose runs it takes up. Plan: README.md beside this file.
"""

from __future__ import annotations

import added
import store
import torch

BASES = ("equal", "pcgrad", "cagrad", "imtl-g")
AROUND = ("every-n", "sampled-rows", "feature-level", "look-ahead")
NOT_AROUND_LOSSES = ("every-n", "sampled-rows", "feature-level")
"""Those that stand around methods of the Gramian alone."""

WRAPPED = {
    wrapper: {
        base: f"{base}+{wrapper}"
        for base in BASES
        if not (base == "equal" and wrapper in NOT_AROUND_LOSSES)
    }
    for wrapper in AROUND
}
SUITES = ("digits2",)
SEEDS = dict.fromkeys(WRAPPED, 3)


def main() -> None:
    torch.set_num_threads(1)
    table = added.compared(SUITES, BASES, WRAPPED, SEEDS)
    store.write("wrapped", {"added": WRAPPED, "suites": table})


if __name__ == "__main__":
    main()
