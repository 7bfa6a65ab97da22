"""The compiled library: found, checked and loaded once; absent, everything is done by torch.

`hatch_build.py` makes it of the C files beside this one when the package is built on a machine with
a C compiler. POLYTASK_KERNELS=0 in the environment leaves it unused. Who calls what is in it:
`merge/kernels.py` and `share/one_row.py`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.errors import UsageError

SWITCH = "POLYTASK_KERNELS"
"""Environment variable: 0 leaves the kernels unused, 1 or nothing uses them where they are."""

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libkernels.so"


@dataclass(frozen=True)
class Library:
    """What was compiled, at the level of this machine's vectors; levels differ in no bit."""

    code: ctypes.CDLL
    level: int

    def function(
        self, name: str, returns: Any = ctypes.c_int, takes: Sequence[Any] | None = None
    ) -> Callable[..., Any]:
        """Return a kernel by its name in the C files.

        takes: its arguments' types, which lets it be called with Python's numbers.
        """
        found: Any = getattr(self.code, f"polytask_{name}_{self.level}")
        found.restype = returns
        if takes is not None:
            found.argtypes = takes
        return found  # type: ignore[no-any-return]


def library() -> Library | None:
    """Return the library; None where there is none, see `missing`.

    Raises UsageError where POLYTASK_KERNELS is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise UsageError(
            f"{SWITCH} is {switch!r}; give 0 to compute by torch alone, or 1 (the default)."
        )
    found = _loaded() if switch == "1" else None
    return found if isinstance(found, Library) else None


def missing() -> str:
    """Return in words why `library` returns none; "" where it returns one."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    found = _loaded()
    return found if isinstance(found, str) else ""


@functools.cache
def _loaded() -> Library | str:
    if sys.byteorder != "little":
        return "they are for processors whose low bytes come first"
    if not LIBRARY.exists():
        return "they were not compiled when polytask was installed"
    try:
        code = ctypes.CDLL(str(LIBRARY))
        made_of = ctypes.c_char_p.in_dll(code, "polytask_source")
        level = int(code.polytask_level())
    except (OSError, ValueError, AttributeError) as error:
        return f"{LIBRARY.name} does not load: {error}"
    if ctypes.string_at(ctypes.addressof(made_of)).decode() != _digest():
        return f"{LIBRARY.name} was compiled from other C files; install polytask again"
    return Library(code, level)


def _digest() -> str:
    """Return what `hatch_build.py` wrote into the library: a digest of the C files."""
    files = sorted(FOLDER.glob("*.[ch]"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
