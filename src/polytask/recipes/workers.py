"""Many runs on several processes, talking JSON, a line a message.

A worker is a fresh interpreter (`python -m polytask.recipes.worker`) that reads jobs from its
standard input and writes what happens to its standard output. Nothing is pickled, a worker that
dies takes one run with it, and stopping is closing them.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from polytask import errors
from polytask.errors import PolytaskError
from polytask.recipes.train import Job

Verb = Literal["train", "test"]


@dataclass
class Watch:
    """What the parent is told: a run's updates and losses, and when it is done."""

    step: Callable[[Job, int, int, dict[str, float]], None] = field(
        default=lambda job, step, steps, losses: None
    )
    done: Callable[[Job], None] = field(default=lambda job: None)


def run_all(verb: Verb, jobs: Sequence[Job], processes: int, watch: Watch) -> None:
    """Run every job; their results are in their folders.

    processes: how many at once, each with its share of the cores. The first error stops all and
    is raised here as it was raised there. Ctrl-C stops all at once; what is finished stays, the
    rest is taken up by the next call.
    """
    if not jobs:
        return
    count = min(processes, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // processes)
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    events: queue.SimpleQueue[tuple[Job, dict[str, Any]]] = queue.SimpleQueue()
    workers = [_Worker(verb, threads, waiting, events) for _ in range(count)]
    left = len(jobs)
    try:
        while left:
            told, event = events.get()
            if event["event"] == "step":
                watch.step(told, event["step"], event["steps"], event["losses"])
            elif event["event"] == "done":
                left -= 1
                watch.done(told)
            else:
                raise _error(told, event)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process and the thread that listens to it."""

    def __init__(
        self,
        verb: Verb,
        threads: int,
        waiting: queue.SimpleQueue[Job],
        events: queue.SimpleQueue[tuple[Job, dict[str, Any]]],
    ) -> None:
        self._verb, self._waiting, self._events = verb, waiting, events
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polytask.recipes.worker", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            if not self._one(job, self._process.stdin, self._process.stdout):
                return

    def _one(self, job: Job, stdin: IO[str], stdout: IO[str]) -> bool:
        """Hand over one job; return whether the worker is still there afterwards."""
        try:
            stdin.write(json.dumps({"verb": self._verb, "job": job.to_json()}) + "\n")
            stdin.flush()
            for line in stdout:
                event = json.loads(line)
                self._events.put((job, event))
                if event["event"] in ("done", "error"):
                    return True
        except OSError:
            pass  # the pipe is closed: the process has ended, which is told below
        code = self._process.wait()
        text = f"its process ended with exit code {code} (out of memory?)"
        self._events.put((job, {"event": "error", "kind": "RunError", "text": text}))
        return False


def _error(job: Job, event: dict[str, Any]) -> PolytaskError:
    kind = getattr(errors, event["kind"])
    error: PolytaskError = kind(f"Run {job.folder.name}: {event['text']}")
    return error
