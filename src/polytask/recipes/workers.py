"""Many runs on several processes, talking JSON, a line a message.

A worker is a fresh interpreter (`python -m polytask.recipes.worker`) that reads calls from its
standard input and writes what happens to its standard output. Nothing is pickled, a worker that
dies takes one run with it, and stopping is killing them: whatever is on disk is whole.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from polytask import errors
from polytask.errors import PolytaskError, RunError
from polytask.recipes.train import Job

Verb = Literal["train", "look", "test"]


class Died(RunError):
    """A worker's process ended in the middle of a call, which says nothing about the call."""


@dataclass(frozen=True)
class Call:
    """One thing for a worker to do; its result is in the job's folder. Lower phases go first."""

    verb: Verb
    job: Job
    phase: int = 0


OnStep = Callable[[Call, int, int, dict[str, float]], None]
"""Told of a run's update, its largest number of updates, and the losses of its first tasks."""


class Pool:
    """Workers that stay for many calls: starting one costs seconds of imports.

    processes: calls at a time. threads: of each worker. Use as a context manager; leaving it
    ends the workers at once, whatever they do.
    """

    def __init__(self, processes: int, threads: int = 1) -> None:
        self.processes, self.threads = processes, threads
        self._workers: list[_Worker] = []
        self._events: _Events = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def run(
        self,
        calls: Iterable[Call],
        step: OnStep,
        done: Callable[[Call], Iterable[Call]],
        failed: Callable[[Call, PolytaskError], Iterable[Call]],
    ) -> None:
        """Do the calls, and those that `done` or `failed` returns for each one that ends.

        failed: told of an error as it was raised in the worker, with the name of its run. Where
            it raises, all ends; what is finished stays, and what is not can be taken up later.
        """
        order = itertools.count()
        waiting = [(call.phase, next(order), call) for call in calls]
        heapq.heapify(waiting)
        while True:
            while waiting and (worker := self._idle()) is not None:
                worker.begin(heapq.heappop(waiting)[2])
            if all(worker.call is None for worker in self._workers):
                return
            worker, event = self._events.get()
            call = worker.call
            assert call is not None, "a worker tells only of what it was called for"
            if event["event"] == "step":
                step(call, event["step"], event["steps"], event["losses"])
            elif event["event"] == "done":
                worker.call = None
                for ready in done(call):
                    heapq.heappush(waiting, (ready.phase, next(order), ready))
            else:
                worker.call = None
                for ready in failed(call, _error(call.job, event)):
                    heapq.heappush(waiting, (ready.phase, next(order), ready))

    def _idle(self) -> _Worker | None:
        """Return a worker with nothing to do, a new one where there may be more, or None."""
        for worker in self._workers:
            if worker.call is None:
                return worker
        if len(self._workers) == self.processes:
            return None
        self._workers.append(_Worker(self.threads, self._events))
        return self._workers[-1]


class _Worker:
    """One process, the call it is busy with, and a thread that passes on what it says."""

    def __init__(self, threads: int, events: _Events) -> None:
        self.call: Call | None = None
        self._events = events
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its workers.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polytask.recipes.worker", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def begin(self, call: Call) -> None:
        self.call = call
        assert self.process.stdin is not None
        # A pipe that is closed means that the process has ended, which _listen tells.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(
                json.dumps({"verb": call.verb, "job": call.job.to_json()}) + "\n"
            )
            self.process.stdin.flush()

    def close(self) -> None:
        """Wait for the process, which was killed, and close the pipes to it."""
        self.process.wait()
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            # What was not yet handed over has nobody to read it.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put((self, json.loads(line)))
        code = self.process.wait()
        how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended ({code})"
        text = f"its process {how}; give the same command again to go on from there."
        self._events.put((self, {"event": "error", "kind": Died.__name__, "text": text}))


_Events = queue.SimpleQueue[tuple[_Worker, dict[str, Any]]]


def _error(job: Job, event: dict[str, Any]) -> PolytaskError:
    kind = Died if event["kind"] == Died.__name__ else getattr(errors, event["kind"])
    error: PolytaskError = kind(f"Run {job.folder.name}: {event['text']}")
    return error
