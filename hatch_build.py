"""Compiles the kernels, where this machine has a C compiler.

    python hatch_build.py    # beside their source, for a checkout

Without a compiler, or where it fails, the package is built all the same, says so, and does by torch
alone what the kernels would: slower. CC names another compiler; "none" takes none.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).resolve().parent / "src" / "polytask" / "kernels"
LIBRARY = FOLDER / "libkernels.so"
"""Its name is no module's: Python would take kernels.so for an extension."""

FLAGS = (
    "-std=c11", "-O3", "-fPIC", "-fvisibility=hidden",
    "-ffp-contract=off",  # products and sums are rounded apart, on every machine
    "-fno-math-errno", "-fno-trapping-math",  # change no value
)  # fmt: skip
LEVELS = ("3", "4")
"""Of x86-64 vectors, beside what every machine runs."""


def compiled(library: Path) -> str:
    """Put the library there; return "" or, in words, why it cannot be made."""
    named = os.environ.get("CC")
    found = [named] if named else ["cc", "gcc", "clang"]
    compiler = next((name for name in found if shutil.which(shlex.split(name)[0])), None)
    if os.name == "nt" or compiler is None:
        return "there is no C compiler"
    command = shlex.split(compiler)
    files = sorted(FOLDER.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    many = platform.machine() in ("x86_64", "AMD64")
    with tempfile.TemporaryDirectory() as folder:
        said = ""
        for levels in (LEVELS, ()) if many else ((),):  # an old compiler may not know them
            objects = []
            for level, file in itertools.product(("0", *levels), files):
                if file.suffix != ".c":
                    continue
                objects.append(f"{folder}/{file.stem}{level}.o")
                mine = [f'-DSOURCE="{digest}"', *(["-DLEVELS"] if levels else [])]
                if level != "0":
                    mine = [f"-march=x86-64-v{level}"]
                said = _failed(
                    [*command, *FLAGS, f"-DLEVEL={level}", *mine, "-c", str(file),
                     "-o", objects[-1]]
                )  # fmt: skip
                if said:
                    break
            made = Path(folder) / library.name
            said = said or _failed([*command, "-shared", *objects, "-o", str(made)])
            if not said:
                # Beside its place first: a process that runs the old one keeps it whole.
                beside = library.with_name(f".{library.name}.{os.getpid()}")
                shutil.copy(made, beside)
                beside.replace(library)
                return ""
        return f"{compiler} failed: {said}"


def _failed(command: list[str]) -> str:
    """Run a command; return its last words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


class CustomBuildHook(BuildHookInterface):
    """Adds the library to a wheel, or puts it beside its source for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel that holds the library is one for this platform."""
        if version == "editable":
            why = compiled(LIBRARY)
        else:
            self._folder = tempfile.TemporaryDirectory()
            library = Path(self._folder.name) / LIBRARY.name
            why = compiled(library)
            if not why:
                build_data["force_include"][str(library)] = f"polytask/kernels/{LIBRARY.name}"
        if why:
            self.app.display_warning(
                f"polytask: all will be done by torch alone, which is slower: {why}."
            )
        elif version != "editable":
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was only built for the wheel."""
        if version != "editable":
            self._folder.cleanup()


if __name__ == "__main__":
    why = compiled(LIBRARY)
    print(f"No kernels: {why}." if why else f"Compiled {LIBRARY}.")
