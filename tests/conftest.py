"""Fixtures every test may use: real data found or skipped, and one thread per worker."""

import os
from collections.abc import Callable
from pathlib import Path

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
