"""Import an experiment's script: folders of experiments have modules of the same names."""

import importlib.util
import sys


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
