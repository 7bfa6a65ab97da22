"""One row through stacked layers by a compiled kernel, twice as quick as torch's batched product.

With one row a layer reads each weight once, and a batched product does not read them as fast as
memory gives them. The kernel does, and takes the ReLU along. Its outputs are those of torch up to
rounding. It stands in only where nobody could tell: for plain float32 tensors of a CPU, without
gradients, and while nothing watches torch's operators.

Shapes: S = networks side by side, I, O = inputs and outputs of a layer.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from polytask.kernels import library

MOST = 2**18
"""Weights of one network's layer, I * O; larger ones come from memory, at whose speed torch reads
too. Not of all networks: what one gives does not depend on how many are beside it."""


def product_of_one(
    row: Tensor, weight_SIO: Tensor, bias_SO: Tensor | None, *, relu: bool
) -> Tensor | None:
    """Return the layer's outputs (S, 1, O); None where torch is to compute them.

    row: (1, I), or of each network its own (S, 1, I).
    """
    if torch.is_grad_enabled() or _watched() or row.shape[-2] != 1 or not (kernel := _kernel()):
        return None
    given = (row, weight_SIO) if bias_SO is None else (row, weight_SIO, bias_SO)
    for tensor in given:
        if (
            tensor.dtype is not torch.float32
            or not tensor.is_cpu
            or type(tensor) not in PLAIN
            or not tensor.is_contiguous()
            or tensor.is_neg()  # its numbers are those in memory, times -1
        ):
            return None
    networks, inputs, outputs = weight_SIO.shape
    if inputs * outputs > MOST:
        return None
    try:
        places = [tensor.data_ptr() for tensor in given]
    except RuntimeError:  # no memory to look at: under vmap
        return None
    made_S1O = torch.empty(networks, 1, outputs)
    stride = 0 if row.ndim == 2 else inputs
    at_row, at_weight, *at_bias = places
    kernel(
        at_row, stride, at_weight, at_bias[0] if at_bias else None,
        networks, inputs, outputs, relu, made_S1O.data_ptr(),
    )  # fmt: skip
    return made_S1O


PLAIN = (Tensor, nn.Parameter)


def _watched() -> bool:
    """Return whether something records or changes what torch's operators do."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
    )


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    found = library()
    place, number = ctypes.c_void_p, ctypes.c_int64
    takes = (place, number, place, place, number, number, number, ctypes.c_int, place)
    return None if found is None else found.function("row", None, takes)
