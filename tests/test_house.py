"""The floors of the house: imports go downward only, importing is light, every method is whole.

Read from the source text, so that imports inside functions and for type checkers count as well.
"""

import ast
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polytask
from polytask.catalog import METHODS, ROOMS, Method

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE / "polytask"

FLOOR = {
    "errors": 0, "catalog": 0, "kernels": 0, "lazily": 0, "lock": 0, "parsing": 0,
    "peft_folders": 0, "records": 0,
    "tasks": 1,
    # suites name their tasks, so they stand above them
    "suites": 2, "share": 2, "balance": 2, "mix": 2,
    # rooms to come
    "adapt": 2, "merge": 2, "relate": 2, "trade": 2, "extend": 2, "act": 2, "classic": 2,
    "fit": 3, "evaluate": 3,
    "report": 4, "recipes": 4,
    "cli": 5, "serve": 5,
    # `python -m polytask` is the command; the public checkers for plug-ins use every room
    "__main__": 6, "testing": 6,
}  # fmt: skip

INSIDE = {
    # eight files of one ground floor, not eight rooms
    ("catalog", "errors"), ("kernels", "errors"), ("lock", "errors"), ("parsing", "errors"),
    ("parsing", "catalog"),
    ("peft_folders", "errors"), ("peft_folders", "records"), ("records", "errors"),
    ("records", "catalog"),
}  # fmt: skip

EXTRAS = ("pyarrow", "PIL", "selenium", "seqeval", "pandas", "lightning", "transformers")
HEAVY = ("torchmetrics", "sklearn", "scipy", "torchvision")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return the room of a dotted name below polytask; "" for the package itself."""
    return [*module.split("."), ""][1]


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything imported anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = len(parts) - node.level + is_package
                base = ".".join([*parts[:kept], *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def complaints(path: Path, text: str) -> list[str]:
    """Return what is wrong with the imports of one file."""
    module = module_of(path)
    here = room_of(module)
    found = []
    for line, name in imported(ast.parse(text), module, path.name == "__init__.py"):
        there = room_of(name)
        if name.split(".")[0] != "polytask" or there in {"", here, "__version__"}:
            continue
        where = f"{path.relative_to(SOURCE)}:{line}: {here or 'polytask'} imports {there}"
        if there not in FLOOR:
            found.append(f"{where}, which is no room of the house")
        elif FLOOR[there] > FLOOR[here]:
            found.append(f"{where}, upward from floor {FLOOR[here]} to {FLOOR[there]}")
        elif FLOOR[there] == FLOOR[here] and (here, there) not in INSIDE:
            found.append(f"{where}, a room of the same floor {FLOOR[here]}")
    return found


def test_every_module_belongs_to_a_room():
    rooms = {room_of(module_of(path)) for path in files()} - {""}
    assert rooms <= set(FLOOR)
    assert {"tasks", "suites", "share", "balance", "mix", "fit", "evaluate"} <= rooms
    assert set(ROOMS) <= set(FLOOR)


def test_imports_go_downward_only_and_never_between_rooms_of_one_floor():
    inside = [path for path in files() if path != PACKAGE / "__init__.py"]
    assert [line for path in inside for line in complaints(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tasks/x.py", "from polytask.fit import loop", "upward from floor 1 to 3"),
        ("tasks/x.py", "def f():\n    import polytask.report.page", "x.py:2: tasks imports report"),
        ("share/x.py", "from polytask import balance", "a room of the same floor 2"),
        ("share/x.py", "from ..balance import Balancer", "a room of the same floor 2"),
        ("share/__init__.py", "from ..mix.base import Mix", "a room of the same floor 2"),
        ("fit/x.py", "if TYPE_CHECKING:\n    from polytask.evaluate import Table", "same floor 3"),
        ("mix/x.py", "import importlib\nimportlib.import_module('polytask.fit')", "upward"),
        ("mix/x.py", "from polytask.helpers import f", "no room of the house"),
        ("errors.py", "from polytask.records import Record", "same floor 0"),
        ("share/x.py", "from polytask.tasks import Task\nfrom .base import SharedModel", None),
        ("records.py", "from polytask import __version__", None),
    ],
)
def test_the_check_itself_sees_every_form_of_import(file, text, said):
    found = complaints(PACKAGE / file, text)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert said in found[0]


def test_the_package_itself_loads_rooms_only_when_asked():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    loads = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in loads] == ["from typing import TYPE_CHECKING"]


def test_rooms_are_reachable_and_listed():
    declared = ast.parse((PACKAGE / "__init__.py").read_text())
    for_checkers = {
        node.names[0].name
        for node in ast.walk(declared)
        if isinstance(node, ast.ImportFrom) and node.module == "polytask"
    }
    built = {room_of(module_of(path)) for path in files()} - {"", "cli", "__main__"}
    assert for_checkers == built == set(polytask._ROOMS)
    for room in built:
        assert room in dir(polytask)
        assert getattr(polytask, room).__name__ == f"polytask.{room}"
    with pytest.raises(AttributeError, match="module 'polytask' has no attribute 'blance'"):
        polytask.blance  # noqa: B018


def fresh(code: str, compiled: Path | None = None) -> str:
    """Run `code` in a new interpreter and return what it prints.

    compiled: keep compiled modules there, as an installation has them.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if compiled is not None:
        env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_room_pulls_no_extra_and_nothing_slow():
    rooms = [f"polytask.{room}" for room in polytask._ROOMS] + ["polytask.cli"]
    code = f"import json, sys, {', '.join(rooms)}; print(json.dumps(list(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(fresh(code))}
    assert "torch" in loaded
    assert loaded.isdisjoint(EXTRAS)
    assert loaded.isdisjoint(HEAVY)


def test_importing_polytask_alone_does_not_even_load_torch():
    code = "import polytask, json, sys; print(json.dumps(list(sys.modules)))"
    assert "torch" not in json.loads(fresh(code))


def test_importing_every_room_takes_at_most_three_tenths_of_a_second_above_torch(tmp_path):
    """Measured inside one process after torch, in CPU seconds, so that neighbours do not count.

    What torch's own objects leave to the collector is collected before: a full collection goes over
    all of them, and whoever makes the next objects would pay for it.
    """
    rooms = ", ".join([f"polytask.{room}" for room in polytask._ROOMS] + ["polytask.cli"])
    code = (
        "import gc, time, torch; gc.collect(); start = time.process_time()\n"
        f"import {rooms}\n"
        "print(time.process_time() - start)"
    )
    fresh(code, compiled=tmp_path)
    assert statistics.median(float(fresh(code, compiled=tmp_path)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("row", METHODS, ids=[row.name for row in METHODS])
def test_every_method_says_where_it_comes_from(row: Method):
    target = row.load()
    module = importlib.import_module(row.target.split(":")[0])
    assert module.__name__.startswith(f"polytask.{row.room}.")
    assert callable(target)
    assert target.__doc__
    # the file is one method's: its docstring is the page beside the paper
    text = module.__doc__ or ""
    for heading in ("Source:", "Differs from the source:"):
        assert heading in text, f"{module.__name__} has no {heading!r}"
    assert row.source.strip()
    assert inspect.getmodule(target) is module


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_signature_tunnels_arguments_and_nothing_is_unpickled(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if any(ast.unparse(d).startswith("commands.command") for d in node.decorator_list):
                continue  # click passes the options declared above it, and refuses any other
            assert node.args.kwarg is None, f"{path.name}:{node.lineno} takes **kwargs"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "np.lib.format.read_array"}, f"line {node.lineno}"
            if called in {"np.load", "numpy.load"}:
                safe = [k for k in node.keywords if k.arg == "allow_pickle"]
                assert [ast.unparse(k.value) for k in safe] == ["False"], f"line {node.lineno}"
    loaded = {name.split(".")[0] for _, name in imported(tree, module_of(path), False)}
    assert loaded.isdisjoint({"pickle", "cloudpickle", "dill", "joblib", "torchvision"})


def test_every_public_thing_of_a_room_is_documented():
    for room in polytask._ROOMS:
        module = getattr(polytask, room)
        assert module.__doc__, f"polytask.{room} has no docstring"
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"polytask.{room}.{name} has no docstring"
