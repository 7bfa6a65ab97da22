"""The few errors polytask raises. Each text says what was expected, what came, what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class PolytaskError(Exception):
    """Base of every error a user can cause and mend. The command line prints it as one line."""


class UsageError(PolytaskError, ValueError):
    """A wrong argument, option or configuration. Exit code 2."""


class DataError(PolytaskError, ValueError):
    """Data that is missing, broken, or cannot be learned from. Exit code 1."""


class RunError(PolytaskError, RuntimeError):
    """A run that cannot go on: non-finite loss, broken checkpoint, other's folder. Exit code 1."""


class Diverged(RunError):
    """A loss or a gradient that is not finite: task and update are named. Exit code 1.

    what: the same in a few words without numbers, to count such updates by.
    """

    def __init__(self, text: str, what: str = "a loss is not finite") -> None:
        super().__init__(text)
        self.what = what


class MissingExtra(PolytaskError, ImportError):
    """An optional package is absent. Exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or "" where none is near."""
    by_fold = {option.casefold(): option for option in known}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.5)
    return f" Did you mean {by_fold[near[0]]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str], see: str) -> UsageError:
    """Return the error for an unknown name; `see` says where the known ones are listed.

    what: the sort of name, such as "merge method". The caller raises it.
    """
    options = list(known)
    return UsageError(f"Unknown {what} {name!r}.{did_you_mean(name, options)} {see}")


def need(module: str, extra: str, who: str) -> ModuleType:
    """Return an optional module, or raise MissingExtra with the command that installs it.

    module: dotted name; extra: the extra of polytask that brings it; who: what needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{who} needs the package {module.split('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'polytask[{extra}]'"
        ) from error
