"""The file that `polytask fit` reads: which suite, by which method, with which settings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import yaml

from polytask.errors import UsageError, unknown
from polytask.fit import FitConfig


@dataclass(frozen=True)
class Asked:
    """What a run's file asks for."""

    suite: str
    method: str = "equal"
    tasks: tuple[str, ...] | None = None
    out: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read(config: str) -> Asked:
    """Return what `config` asks for: a run's file, or a suite (a name, or a file of own data)."""
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        return Asked(config)
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or "suite" not in raw:
        return Asked(config)  # a file of own data; its reader says what is wrong with it
    known = [f.name for f in fields(Asked)]
    for key in raw:
        if key not in known:
            raise unknown(f"key of {path}", str(key), known, f"Its keys: {', '.join(known)}.")
    settings = raw.get("settings") or {}
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: settings is {settings!r}; give a mapping, such as {{lr: 0.01}}.")
    hints = get_type_hints(FitConfig)
    for key in settings:
        if key not in hints:
            raise unknown(f"setting of {path}", str(key), hints, f"Settings: {', '.join(hints)}.")
    tasks = raw.get("tasks")
    if tasks is not None and not isinstance(tasks, list):
        raise UsageError(f"{path}: tasks is {tasks!r}; give a list, such as [left, right].")
    suite = str(raw["suite"])
    if suite.endswith((".yaml", ".yml")):
        suite = str(path.parent / suite)  # relative to the file that names it
    return Asked(
        suite=suite,
        method=str(raw.get("method", "equal")),
        tasks=None if tasks is None else tuple(str(task) for task in tasks),
        out=None if raw.get("out") is None else Path(str(raw["out"])),
        settings={key: _typed(path, key, value, hints[key]) for key, value in settings.items()},
    )


def _typed(path: Path, key: str, value: Any, hint: Any) -> Any:
    """Return a setting as the type it should have; its range is FitConfig's to check."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    flag = isinstance(value, bool)  # which Python counts among the whole numbers
    if NoneType in options and (value is None or value == "none"):
        return None
    if float in options:
        if isinstance(value, (int, float, str)) and not flag:
            with contextlib.suppress(ValueError):
                return float(value)  # YAML 1.1, which PyYAML speaks, reads 1e-3 as text
    elif int in options:
        if isinstance(value, int) and not flag:
            return value
    elif isinstance(value, bool if bool in options else str):
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false", NoneType: "none"}
    wanted = " or ".join(words.get(option, "a text") for option in options)
    raise UsageError(f"{path}: the setting {key} is {value!r}; give {wanted}.")
