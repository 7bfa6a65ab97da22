"""Encoders of text: numbers of words in, features of the row and of each word out.

Both read {"tokens": (B, L)}, padded with `vocabulary.PAD`. Padding never influences the features
of a row or of a real word, so a row's output does not depend on the batch it came in.

Shapes: B = rows, L = positions (padded), E = embedding, H = hidden units of one direction,
W = width of the features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.suites.vocabulary import PAD

DEVIATION = 0.1
"""Of a fresh embedding. Torch's own is 1, and noise of that size hides what is learned for long:
on `sentences` six epochs then reach the accuracy that one reaches with 0.1."""


class BiGRU(nn.Module):
    """Features of words in both directions of reading: {"row": (B, 2H), "sequence": (B, L, 2H)}.

    "sequence" is 0 at padding; "row" is the maximum over the words of each feature.
    words: size of the vocabulary. dropout: in [0, 1), on embeddings and on features.

    Two GRUs instead of a bidirectional one on packed sequences: the second reads each row's words
    backwards from its own last word. The numbers are the same, but nothing waits for the lengths
    to reach the host, and a batch without rows passes.
    """

    def __init__(
        self, words: int, *, embedding: int = 100, hidden: int = 64, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embedding = _embedding("BiGRU", words, embedding)
        self.forwards = nn.GRU(embedding, hidden, batch_first=True)
        self.backwards = nn.GRU(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * hidden

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens_BL = inputs["tokens"]
        there_BL = tokens_BL != PAD
        words_BLE = self.dropout(self.embedding(tokens_BL))
        turned_BL = _turned(there_BL)
        ahead_BLH, _ = self.forwards(words_BLE)
        back_BLH, _ = self.backwards(_reorder(words_BLE, turned_BL))
        features_BLW = torch.cat([ahead_BLH, _reorder(back_BLH, turned_BL)], dim=2)
        features_BLW = features_BLW * there_BL[..., None]
        # Every feature of a GRU is above -1, so -1 at padding never wins.
        row_BW = features_BLW.masked_fill(~there_BL[..., None], -1.0).amax(1)
        return {"row": self.dropout(row_BW), "sequence": self.dropout(features_BLW)}


class WordBag(nn.Module):
    """Features of a text from its words, whatever their order: (B, width).

    Mean and maximum of the words' embeddings, then one layer; fastText (Joulin et al., EACL 2017,
    arXiv:1607.01759) with a maximum and a hidden layer added, and without its word pairs.
    words: size of the vocabulary. dropout: in [0, 1), on embeddings and on features.
    """

    def __init__(
        self, words: int, *, embedding: int = 64, width: int = 128, dropout: float = 0.4
    ) -> None:
        super().__init__()
        self.embedding = _embedding("WordBag", words, embedding)
        self.layer = nn.Linear(2 * embedding, width)
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens_BL = inputs["tokens"]
        there_BL1 = (tokens_BL != PAD)[..., None]
        words_BLE = self.dropout(self.embedding(tokens_BL))
        count_B1 = there_BL1.sum(1).clamp(min=1)
        mean_BE = (words_BLE * there_BL1).sum(1) / count_B1
        lowest = torch.finfo(words_BLE.dtype).min
        highest_BE = words_BLE.masked_fill(~there_BL1, lowest).amax(1)
        # A row of padding alone has no maximum; 0 is what its mean is.
        highest_BE = highest_BE.masked_fill(~there_BL1.any(1), 0.0)
        features_BW: Tensor = self.layer(torch.cat([mean_BE, highest_BE], dim=1)).relu()
        features_BW = self.dropout(features_BW)
        return features_BW


def _embedding(who: str, words: int, width: int) -> nn.Embedding:
    if words < 2 or width < 1:
        raise UsageError(
            f"{who}: the vocabulary needs at least padding and the unknown word (2 numbers), and "
            f"an embedding at least width 1; got {words} and {width}."
        )
    embedding = nn.Embedding(words, width, padding_idx=PAD)
    with torch.no_grad():
        embedding.weight.mul_(DEVIATION)  # the padding's row is 0 and stays 0
    return embedding


def _turned(there_BL: Tensor) -> Tensor:
    """Return where each position's partner stands when every row is read from its last word.

    Padding stays behind the words; turning twice gives the first order back.
    """
    at_L = torch.arange(there_BL.shape[1], device=there_BL.device)
    length_B1 = there_BL.sum(1, keepdim=True)
    return torch.where(at_L < length_B1, length_B1 - 1 - at_L, at_L)


def _reorder(values_BLX: Tensor, order_BL: Tensor) -> Tensor:
    return values_BLX.gather(1, order_BL[..., None].expand_as(values_BLX))
