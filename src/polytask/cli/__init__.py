"""The command line: `polytask --help`.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from polytask.cli.main import main

__all__ = ["main"]
