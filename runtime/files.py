"""Files that are either whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PREFIX = ".nervure-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` at the end, in one moment; nothing changes where something fails."""
    handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        flush_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def flush_folder(folder: Path) -> None:
    """What was renamed in the folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Of the process; reading it means setting it, so Linux is asked first."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as lines:
        return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o077)
    return 0o077
