"""What the tests of fit/ share: the module of tiny suites and runs, and float64 by default."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`driver.py` as a module; it is also run as a program of its own."""
    spec = importlib.util.spec_from_file_location("fit_driver", DRIVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def float64() -> Iterator[None]:
    """Suites and models made in the test are of float64, where sums agree to the last digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
