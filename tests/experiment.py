"""Import an experiment's scripts: folders of experiments have modules of the same names."""

import contextlib
import importlib
import importlib.util
import sys
from types import SimpleNamespace


@contextlib.contextmanager
def together(folder, names):
    """Return these scripts as they import each other; other folders' are out of the way."""
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def imported(folder, name):
    """Return the script under a name of its own; its siblings are found beside it."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(
            f"{folder.name}_{name}", folder / f"{name}.py"
        )
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded  # dataclasses look their module up
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(folder))
    return loaded
