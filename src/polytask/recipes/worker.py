"""The other end of `workers`: reads jobs from standard input, one JSON line each, until it closes.

Its standard output is for messages alone; whatever else writes there is sent to standard error.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from polytask.errors import PolytaskError
from polytask.recipes.train import Job, test, train
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
    """Serve jobs until standard input closes."""
    out, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        job = Job.from_json(request["job"])
        try:
            if request["verb"] == "train":
                train(job, _Relay(lambda event: _send(out, event)))
            else:
                test(job)
        except PolytaskError as error:
            _send(out, {"event": "error", "kind": type(error).__name__, "text": str(error)})
        except Exception as error:
            # Ours to mend: the trace goes to standard error, the parent gets one line.
            traceback.print_exc()
            _send(out, {"event": "error", "kind": "RunError", "text": f"{error!r}"})
        else:
            _send(out, {"event": "done"})


def _send(out: IO[str], event: dict[str, Any]) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
