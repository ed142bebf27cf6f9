"""Files: where caches lie, and writing that leaves nothing half-done behind."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import NervureError


def cache_dir() -> Path:
    """The folder for caches: ``NERVURE_CACHE_DIR``, else ``nervure`` in the user's cache folder (XDG). It need not be
    writable, nor exist: where a user has no home, nothing is kept."""
    own = os.environ.get("NERVURE_CACHE_DIR")
    if own:
        return Path(own).absolute()
    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home.startswith("/") else "/nonexistent")
    return Path(cache).absolute() / "nervure"


def header_of(library: Path) -> Path:
    """Where the C header of a compiled model lies: ``kws.h`` beside ``kws.so``, ``kws.a`` and ``libkws.a``."""
    static = library.suffix == ".a" and library.name.startswith("lib") and library.stem != "lib"
    return library.with_name(library.stem[3:] + ".h") if static else library.with_suffix(".h")


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes beside ``path`` and renames; ``NervureError`` when the disk is full or the folder cannot be written to."""
    with writable(path):
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "the name holds a null character")
        handle, beside = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(beside, mode & ~_umask())
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def _umask() -> int:
    """The process's umask. Reading it means setting it, which other threads would notice: Linux tells it in /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes when the body ends; ``NervureError`` where there is no room for it or for what lies in it."""
    with (
        writable(Path(os.environ.get("TMPDIR") or "/tmp")),
        tempfile.TemporaryDirectory(prefix="nervure-", ignore_cleanup_errors=True) as place,
    ):
        yield Path(place)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of the body into a ``NervureError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise NervureError(
            "cannot write the output",
            where=str(path),
            why=error.strerror or str(error),
            hint="choose a folder that exists, that you may write to and that has room",
        ) from error
