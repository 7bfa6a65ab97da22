"""The other end of `workers`: does what standard input asks for, one JSON line a call.

It ends as soon as standard input closes, even in the middle of a run: the parent is done, or gone,
and a run without a parent would write into a folder that the next command takes up.

Its standard output is for messages alone; whatever else writes there is sent to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from polytask import errors
from polytask.errors import PolytaskError
from polytask.recipes.train import Job, look, test, train
from polytask.records import Point, Values


class _Relay:
    """Tells the parent of the updates, at most five times a second."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._steps = 0
        self._sent = 0.0

    def begin(self, steps: int, done: int) -> None:
        self._steps = steps

    def step(self, step: int, losses: Callable[[], Values]) -> None:
        now = time.monotonic()
        if now - self._sent >= 0.2:
            self._sent = now
            some = dict(list(losses().items())[:4])
            self._send({"event": "step", "step": step, "steps": self._steps, "losses": some})

    def point(self, point: Point) -> None:
        """The next update tells enough."""


def main() -> None:
    """Do one call after the other until standard input closes."""
    out, sys.stdout = sys.stdout, sys.stderr
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    while True:
        request = json.loads(lines.get())
        job = Job.from_json(request["job"])
        try:
            if request["verb"] == "train":
                train(job, _Relay(lambda event: _send(out, event)))
            elif request["verb"] == "look":
                look(job)
            else:
                test(job)
        except PolytaskError as error:
            _send(out, {"event": "error", "kind": _kind(error), "text": str(error)})
        except Exception as error:
            # Ours to mend: the trace goes to standard error, the parent gets one line.
            traceback.print_exc()
            _send(out, {"event": "error", "kind": "RunError", "text": f"{error!r}"})
        else:
            _send(out, {"event": "done"})


def _kind(error: PolytaskError) -> str:
    """Return the nearest class that the parent knows: rooms have errors of their own."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # from this thread nothing milder would stop a run; files are written atomically


def _send(out: IO[str], event: dict[str, Any]) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
