"""What a draw costs: one row of one of 1,000 streams, by name and number.

    python benchmarks/mix.py            # all figures
    python benchmarks/mix.py --quick    # a few seconds
    python benchmarks/mix.py --json     # one JSON line per figure
    python benchmarks/mix.py --peers    # beside datasets.interleave_datasets, where it is installed

Blocks of draws of all contenders are timed in turn, in CPU time; a figure is the median over
rounds of a block's time over its draws, so that neither neighbours nor a drifting speed decide it.
A draw of ours is a row handed out by `Mixture` in steps of 1, 8 or 128 rows: no row twice before
all others of its stream, the same for any number of processes, resumable. Peers: torch's
WeightedRandomSampler over the rows of all streams (with replacement; it draws a whole epoch
ahead, which is counted), and a loop written by hand (random.choices of a stream, then the next row
of its shuffled order). Streams have 10 to 100,000 rows, log-uniform; all of 3 rows is the hard
case, where every third row begins a new order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from polytask.mix import Mix, Mixture, OverTime, SkillIt, Temperature, Unmixed

STREAMS, BOUND = 1000, 20.0
TEMPERATURE = 2.0
INTERLEAVED = "peer: datasets.interleave_datasets"
Draws = Iterator[int]
"""Hands out rows; each item is how many at once."""


def sizes(hard: bool = False) -> list[int]:
    if hard:
        return [3] * STREAMS
    draw = np.random.default_rng(0)
    return np.exp(draw.uniform(np.log(10), np.log(100_000), STREAMS)).astype(int).tolist()


def ours(mix: Mix, batch_size: int, hard: bool = False) -> Draws:
    mixture = Mixture(mix, sizes(hard), batch_size, steps=10**9)
    while True:
        for batch in mixture:
            yield len(batch)


def weighted_sampler() -> Draws:
    rows = torch.tensor(sizes())
    shares = rows.double() ** (1 / TEMPERATURE)
    weights = torch.repeat_interleave(shares / shares.sum() / rows, rows)
    assert len(weights) < 2**24, "torch.multinomial takes no more"
    sampler = WeightedRandomSampler(weights, 100_000)
    while True:
        for _ in sampler:
            yield 1


def by_hand() -> Draws:
    counts = sizes()
    cumulative = list(itertools.accumulate(n ** (1 / TEMPERATURE) for n in counts))
    names = range(len(counts))

    def endless(size: int) -> Iterator[int]:
        while True:
            yield from random.sample(range(size), size)

    streams = [endless(size) for size in counts]
    while True:
        (s,) = random.choices(names, cum_weights=cumulative)
        next(streams[s])
        yield 1


def interleaved() -> Draws:
    import datasets

    counts = sizes()
    parts = [
        datasets.Dataset.from_dict({"row": range(size)}).to_iterable_dataset() for size in counts
    ]
    shares = [size ** (1 / TEMPERATURE) for size in counts]
    total = sum(shares)
    mixed = datasets.interleave_datasets(
        parts, [s / total for s in shares], seed=0, stopping_strategy="all_exhausted"
    )
    while True:
        for _ in mixed:
            yield 1


CONTENDERS: dict[str, tuple[Callable[[], Draws], float | None]] = {
    **{
        f"temperature, {rows} rows a step": (
            lambda rows=rows: ours(Temperature(TEMPERATURE), rows), BOUND
        )
        for rows in (1, 8, 128)
    },
    "skill-it, 128 rows a step": (lambda: ours(SkillIt(), 128), BOUND),
    "over-time, 128 rows a step": (lambda: ours(OverTime(), 128), BOUND),
    "unmixed, 128 rows a step": (lambda: ours(Unmixed(Temperature(TEMPERATURE)), 128), BOUND),
    "temperature, streams of 3 rows, 128 a step": (
        lambda: ours(Temperature(TEMPERATURE), 128, hard=True), BOUND
    ),
    "peer: a loop by hand": (by_hand, None),
    "peer: WeightedRandomSampler": (weighted_sampler, None),
}  # fmt: skip


def timed(draws: Draws, count: int) -> float:
    """Return microseconds a draw over at least `count` of them."""
    done, begun = 0, time.process_time()
    while done < count:
        done += next(draws)
    return 1e6 * (time.process_time() - begun) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter blocks")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    parser.add_argument("--peers", action="store_true", help="datasets.interleave_datasets too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rounds, block = (5, 2_000) if asked.quick else (21, 20_000)
    contenders = dict(CONTENDERS)
    if asked.peers:
        contenders[INTERLEAVED] = (interleaved, None)
    running = {name: make() for name, (make, _) in contenders.items()}
    # The peer takes milliseconds a draw; a hundredth of the draws are enough to see that.
    blocks = {name: block // 100 if name == INTERLEAVED else block for name in running}
    for name, draws in running.items():
        timed(draws, blocks[name])  # what is made once
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, draws in running.items():
            found[name].append(timed(draws, blocks[name]))
    if not asked.json:
        print(f"{STREAMS} streams, microseconds a draw; {platform.processor() or 'cpu'}, 1 thread")
    for name, values in found.items():
        bound = contenders[name][1]
        median = statistics.median(values)
        low, *_, high = statistics.quantiles(values, n=4)
        kept = None if bound is None else median <= bound
        if asked.json:
            figure = {"name": name, "microseconds": round(median, 3), "bound": bound, "kept": kept}
            print(json.dumps(figure))
        else:
            verdict = "" if bound is None else f"  bound {bound:g}: {'kept' if kept else 'MISSED'}"
            print(f"{name:46} {median:7.2f}  (quartiles {low:.2f} to {high:.2f}){verdict}")


if __name__ == "__main__":
    main()
