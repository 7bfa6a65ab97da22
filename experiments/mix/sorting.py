"""Sorting beyond the lengths trained on, with and without a task that hints at it.

    python experiments/mix/sorting.py

Plan: README.md beside this file.

Shapes: B = sequences, L = tokens, V = tokens known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.evaluate import Claim
from polytask.mix import Hinting, Mix, Mixture, Proportional

SEEDS = tuple(range(3))
NUMBERS, SORT, NEXT, GO = 128, 128, 129, 130
"""Tokens: the numbers to sort, the two tasks' names, and what ends the question."""
TRAINED, LENGTHS = 20, (20, 40, 60, 80, 100)
WIDTH, HEADS, LAYERS = 64, 4, 2
ROWS, BATCH, STEPS, LR, TESTS = 200_000, 64, 1500, 1e-3, 200
METHODS: dict[str, tuple[Mix, tuple[str, ...]]] = {
    "hinting": (Hinting(("next",), share=0.5), ("sort", "next")),
    "sorting alone": (Proportional(), ("sort",)),
}


class Layer(nn.Module):
    """Causal attention and a feed-forward part, normalised before; no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.read, self.write = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x_BLW: Tensor) -> Tensor:
        parts = self.read(self.norms[0](x_BLW)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLW = x_BLW + self.write(seen.transpose(1, 2).flatten(2))
        return x_BLW + self.think(self.norms[1](x_BLW))


class Decoder(nn.Module):
    """Order is told by causal attention alone, so no length is unseen as such."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(GO + 1, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, GO + 1)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.table(tokens_BL))))


def question(task: str, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a question with its answer, and which tokens are answer.

    "sort": distinct numbers, then the same in order. "next": the numbers and one of them; the
    answer is the next larger one, or the same where it is the largest.
    """
    numbers = torch.randperm(NUMBERS, generator=random)[:length]
    ordered = numbers.sort().values
    if task == "sort":
        tokens = torch.cat([torch.tensor([SORT]), numbers, torch.tensor([GO]), ordered])
        count = length
    else:
        at = int(torch.randint(0, length, (), generator=random))
        ask = [int(ordered[at]), int(ordered[min(at + 1, length - 1)])]
        tokens = torch.cat([torch.tensor([NEXT]), numbers, torch.tensor([GO, *ask])])
        count = 1
    answer = torch.zeros(len(tokens), dtype=torch.bool)
    answer[len(tokens) - count :] = True
    return tokens, answer


def batch_of(rows: Sequence[tuple[str, int]], seed: int) -> tuple[Tensor, Tensor]:
    """Return the questions of these rows; a row's question follows from its number and the seed.

    All of a step sort as many numbers, as its first row says, and every length from 2 to TRAINED
    comes equally often. Shorter questions are filled up behind their answer, where nothing sees it.
    """
    length = 2 + (rows[0][1] * 7919 + seed) % (TRAINED - 1)
    made = []
    for task, row in rows:
        random = torch.Generator().manual_seed((seed * ROWS + row) * 2 + (task == "next"))
        made.append(question(task, length, random))
    longest = max(len(tokens) for tokens, _ in made)
    tokens_BL = torch.zeros(len(made), longest, dtype=torch.int64)
    answer_BL = torch.zeros(len(made), longest, dtype=torch.bool)
    for b, (tokens, answer) in enumerate(made):
        tokens_BL[b, : len(tokens)], answer_BL[b, : len(tokens)] = tokens, answer
    return tokens_BL, answer_BL


def attempt(name: str, seed: int) -> dict[str, Any]:
    """Train once; return per length how many tokens, and whole sequences, come out right, in %."""
    method, streams = METHODS[name]
    torch.manual_seed(seed)
    model = Decoder()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    mixture = Mixture(method, dict.fromkeys(streams, ROWS), BATCH, seed, steps=STEPS, epoch=STEPS)
    for rows in mixture:
        tokens_BL, answer_BL = batch_of(rows, seed)
        logits_BLV = model(tokens_BL[:, :-1])
        losses_BL = F.cross_entropy(logits_BLV.transpose(1, 2), tokens_BL[:, 1:], reduction="none")
        asked_BL = answer_BL[:, 1:].float()
        # Every question counts alike, however long its answer.
        loss = ((losses_BL * asked_BL).sum(1) / asked_BL.sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        slower.step()
    found: dict[str, Any] = {"tokens": {}, "whole": {}}
    random = torch.Generator().manual_seed(10_000 + seed)
    for length in LENGTHS:
        tokens_BL = torch.stack([question("sort", length, random)[0] for _ in range(TESTS)])
        with torch.no_grad():
            said_BL = model(tokens_BL[:, :-1]).argmax(-1)[:, -length:]
        right_BL = (said_BL == tokens_BL[:, -length:]).float()
        found["tokens"][str(length)] = 100 * float(right_BL.mean())
        # What is right token by token given the right ones before is right when decoded freely.
        found["whole"][str(length)] = 100 * float(right_BL.prod(1).mean())
    return found


def claims(table: Table) -> Iterator[Claim]:
    ours, theirs = (table["methods"][name] for name in ("hinting", "sorting alone"))
    for what, words, margin in (
        ("whole", "sequences sorted without a fault", 5.0),
        ("tokens", "tokens right given those before", 2.0),
    ):
        yield claim(
            table, "hinting", f"extends length generalisation of sorting: {words}",
            f"trained up to length {TRAINED}, tested at 100; {STEPS} updates of {BATCH}, 2 layers "
            f"of {WIDTH}",
            minus([r[what]["100"] for r in ours], [r[what]["100"] for r in theirs]),
            "greater", margin, "points over sorting alone",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for name, runs in table["methods"].items():
        for what in ("whole", "tokens"):
            values = [spread([run[what][str(n)] for run in runs]) for n in LENGTHS]
            rows.append([name, what, *values])
    head = ["mix", "right, in %", *(f"length {n}" for n in LENGTHS)]
    return grid(table, f"Sorting, trained up to length {TRAINED}", head, rows)


def main() -> None:
    torch.set_num_threads(1)
    methods = {
        name: [KEPT.run(f"sorting/{name}--s{s}", partial(attempt, name, s)) for s in SEEDS]
        for name in METHODS
    }
    about = {"seeds": SEEDS, "steps": STEPS, "batch": BATCH, "width": WIDTH, "layers": LAYERS}
    KEPT.write("sorting", about | {"methods": methods})


if __name__ == "__main__":
    main()
