"""What a run costs: the process's peak memory, where the system can tell."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory in bytes above the level at construction.

    On CUDA, torch's own count of the device's memory. On Linux, the kernel's high-water mark of
    resident memory, reset at construction: it includes everything the process does meanwhile.
    Elsewhere `bytes()` is None.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._before: int | None = None
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            self._device = device
            return
        try:
            _CLEAR.write_text("5")  # resets VmHWM to the current resident size
        except OSError:
            return
        self._before = _resident("VmRSS")

    def bytes(self) -> int | None:
        """Return the peak so far, None where it cannot be known."""
        if self._before is None:
            return None
        peak = torch.cuda.max_memory_allocated(self._device) if self._cuda else _resident("VmHWM")
        return None if peak is None else max(0, peak - self._before)


def _resident(entry: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
