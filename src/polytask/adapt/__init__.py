"""Adapting: one pretrained model, many tasks, a few parameters each."""

from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
from polytask.adapt.engine import Active, Adapted, At, adapt
from polytask.adapt.lora import LoRA
from polytask.adapt.ssf import SSF
from polytask.adapt.where import Where

__all__ = [
    "SSF",
    "Active",
    "Adapted",
    "Adapter",
    "At",
    "Layer",
    "LoRA",
    "Method",
    "Rows",
    "Trace",
    "Where",
    "adapt",
]
