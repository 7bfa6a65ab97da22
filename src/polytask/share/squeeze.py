"""Squeeze and excitation over a row's fields: how much each field counts, from all of them.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507, with
fields in the place of channels, as FiBiNET (Huang et al., RecSys 2019) has it.

Shapes: R = rows, S = excitations side by side, F = fields, H = hidden units, d = width of a field.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.experts import Experts, Stacked, own, product, run, stack


class Excitation(nn.Module):
    """The numbers of one excitation: sigmoid(W2 relu(W1 squeeze)), with biases.

    reduction: F / H, rounded up.
    """

    def __init__(self, fields: int, reduction: int) -> None:
        super().__init__()
        if fields < 1 or reduction < 1:
            raise UsageError(
                f"Excitation: fields and reduction must be at least 1; got {fields}, {reduction}."
            )
        hidden = -(-fields // reduction)
        self.squeeze = Experts(1, fields, (hidden,))
        # Embeddings begin small: a negative bias would close its unit for every row, for good.
        nn.init.zeros_(self.squeeze.get_parameter("bias_0"))
        self.excite = nn.Linear(hidden, fields)


def stack_excitations(name: str, excitations: Sequence[Excitation]) -> Stacked:
    """Return the excitations side by side."""
    stacked = stack(f"{name}_squeeze", [one.squeeze for one in excitations])
    weights = [own(one.excite, "weight").mT for one in excitations]
    stacked[f"{name}_excite"] = torch.stack(weights)
    stacked[f"{name}_excite_bias"] = torch.stack([own(one.excite, "bias") for one in excitations])
    return stacked


def excited(stacked: Stacked, name: str, fields: Tensor) -> Tensor:
    """Return how much each field counts, (S, R, F) in 0 to 1.

    fields: (R, F, d), or of each excitation its own (S, R, F, d).
    """
    hidden_SRH = run(stacked, f"{name}_squeeze", fields.mean(-1))
    excite_SHF, bias_SF = stacked[f"{name}_excite"], stacked[f"{name}_excite_bias"]
    return product(hidden_SRH, excite_SHF, bias_SF).sigmoid()


def fields_of(encoder: nn.Module, width: int, given: int | None, reader: str) -> int:
    """Return how many fields of equal width the features hold: as given, or as the encoder tells.

    Raises UsageError where neither says, or where the features do not part so.
    """
    fields = getattr(encoder, "fields", None) if given is None else given
    if fields is None:
        raise UsageError(
            f"{reader} reads feature fields; {type(encoder).__name__} does not tell its `fields`. "
            "Give fields=..., or an encoder of fields, such as suite.fields()."
        )
    if fields < 1 or width % fields:
        raise UsageError(
            f"{reader}: {width} features do not part into {fields} fields of equal width; give "
            "another number of fields."
        )
    return int(fields)
