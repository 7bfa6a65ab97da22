"""One command at a time in a folder: two would write the same files."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from polytask.errors import RunError

LOCK = ".lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other commands out of `folder` meanwhile; raise RunError where one is in there.

    The system holds the lock for as long as this process lives, so one that was killed leaves none
    behind; the file, which names the last holder, stays and means nothing by itself. Where the
    system has no such locks (Windows), nobody is kept out.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}. Choose another folder with --out."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "not named"
            raise RunError(
                f"Another command is working in {folder} ({holder}). Wait until it is done, stop "
                "it, or give another folder with --out."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
