"""Words become numbers: a vocabulary counted on training texts, and padded tensors of its numbers.

Shapes: N = texts, L = words of the longest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAD = 0
"""The number of padding. It stands for no word; encoders must not let it influence anything."""
UNKNOWN = 1
"""The number of every word that is not in the vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """The numbers of the known words, from 2 on, the most frequent first."""

    numbers: Mapping[str, int]

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], least: int) -> Vocabulary:
        """Return the words that occur at least `least` times in these texts.

        With `least` above 1 the rare words of train are unknown too; that is how a model learns
        what to make of an unknown word.
        """
        counts = Counter(word for text in texts for word in text)
        kept = [word for word, count in counts.items() if count >= least]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls({word: number for number, word in enumerate(kept, start=UNKNOWN + 1)})

    def __len__(self) -> int:
        """Return how many numbers there are: the words, padding and the unknown."""
        return len(self.numbers) + UNKNOWN + 1

    def encode(
        self, texts: Sequence[Sequence[str]], longest: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (tokens_NL, lengths_N), int64; a text is cut after `longest` words.

        A text without words becomes one unknown word, so that every row has a length of at least 1.
        """
        rows = [
            [self.numbers.get(word, UNKNOWN) for word in text[:longest]] or [UNKNOWN]
            for text in texts
        ]
        return padded(rows, PAD)


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Return (values_NL, lengths_N), int64: the rows side by side, `fill` behind the short ones."""
    lengths_N = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    values_NL = torch.full((len(rows), max(map(len, rows), default=0)), fill, dtype=torch.int64)
    there_NL = torch.arange(values_NL.shape[1]) < lengths_N[:, None]
    values_NL[there_NL] = torch.tensor([n for row in rows for n in row], dtype=torch.int64)
    return values_NL, lengths_N
