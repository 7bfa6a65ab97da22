"""Sharing: which parameters the tasks share. Inputs -> one output per asked task."""

from polytask.share.base import Features, Inputs, SharedModel
from polytask.share.hard import HardSharing

__all__ = ["Features", "HardSharing", "Inputs", "SharedModel"]
