"""Names of a room that are imported when they are first used (PEP 562).

A room of thirty methods takes tens of milliseconds to import, of which most people need one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package whose names lie in its modules.

    where: name -> module inside the package. A name must not be a module's too: once the module
    is imported, the package's attribute would be that.
    """

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{where[name]}"), name)

    def every() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return find, every
