"""Files checked against the SHA-256 that lies beside them: a flipped byte in a tensor shows nowhere
else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from polytask.errors import DataError
from polytask.merge.files import FileModel
from polytask.merge.progress import Progress

LIST = "SHA256SUMS"
LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
"""As `sha256sum` writes it."""

READ = 1 << 20


def check_sums(models: Sequence[FileModel], progress: Progress) -> None:
    """Read every file that has a checksum beside it; raise DataError where it is another's.

    Looked for are FILE.sha256 and the list SHA256SUMS. Files without one are not read.
    """
    wanted = {path: given for m in models for path in m.files if (given := _given(path))}
    if not wanted:
        return
    progress.phase("checking", sum(path.stat().st_size for path in wanted))
    buffer = bytearray(READ)
    for path, given in wanted.items():
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    digest.update(memoryview(buffer)[:got])
                    progress.advance(got)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
        if digest.hexdigest() != given:
            raise DataError(
                f"{path} is damaged: its SHA-256 is {digest.hexdigest()[:12]}…, the one beside it "
                f"says {given[:12]}…. Fetch it again."
            )


def _given(path: Path) -> str | None:
    """Return the checksum beside a file, in lower case; None where there is none."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.exists():
        words = beside.read_text(errors="replace").split()
        if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            raise DataError(f"{beside} holds no SHA-256; delete it or write it anew.")
        return words[0].lower()
    whole = path.with_name(LIST)
    if whole.exists():
        for line in whole.read_text(errors="replace").splitlines():
            found = LINE.fullmatch(line.strip())
            if found and found[2] == path.name:
                return found[1].lower()
    return None
