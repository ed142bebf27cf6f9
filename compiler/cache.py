"""The two caches' common part: where they lie, how an entry is written and verified, and what pins a compile.

An entry holds its own digest and is written beside and renamed: torn writes and concurrent compiles do no harm. Each
part (``kernels``, ``artifacts``, ``images``) is bounded: what was not read for longest goes.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from ..errors import MissingTool, NervureError
from ..targets.files import cache_dir, writable, write_atomic
from .ir import Graph

LIMIT = 8 << 30  # bytes of a part, unless NERVURE_CACHE_LIMIT (in MiB) says otherwise
_FOLDERS = 256  # of a part: entries lie in folders by the first two digits of their digest, each with its share
_PINNED = ("apache-tvm", "apache-tvm-ffi", "ziglang")
_PACKAGE = Path(__file__).parent.parent
_SOURCES = ("compiler", "targets", "runtime", "frontends/onnx")


def read_entry(path: Path) -> bytes | None:
    """The payload of a cache entry; None when it is absent or does not match its digest."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    payload = held[32:]
    if len(held) <= 32 or hashlib.sha256(payload).digest() != held[:32]:
        return None
    with suppress(OSError):
        os.utime(path)  # read now: it goes last
    return payload


def write_entry(path: Path, payload: bytes) -> None:
    """Writes an entry beside and renames it. A cache that cannot be written is no error: it is only slower."""
    with suppress(NervureError), writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(payload).digest() + payload)
        _trim(path)


def _trim(fresh: Path) -> None:
    """Bounds the folder of an entry that was just written. That entry stays, whatever its size."""
    limit = _limit() // _FOLDERS
    found = []
    for other in fresh.parent.iterdir():
        with suppress(OSError):  # another process may have taken it away
            facts = other.stat()
            found.append((facts.st_mtime_ns, other.name, facts.st_size))
    total = sum(size for _, _, size in found)
    for _, name, size in sorted(found):
        if total <= limit:
            return
        if name.partition(".")[0] != fresh.name.partition(".")[0]:  # a library and its header go together
            with suppress(OSError):
                (fresh.parent / name).unlink()
            total -= size


def _limit() -> int:
    text = os.environ.get("NERVURE_CACHE_LIMIT", "")
    return int(text) << 20 if text.isdigit() else LIMIT


@cache
def pins() -> tuple[str, ...]:
    """Versions of what makes the code, e.g. ``apache-tvm 0.27.0.post1``."""
    try:
        return tuple(f"{name} {metadata.version(name)}" for name in _PINNED)
    except metadata.PackageNotFoundError as error:
        raise MissingTool(
            "compiling needs TVM, which is not installed", hint="pip install 'nervure[compile]'"
        ) from error


@cache
def source_digest() -> str:
    """A digest of nervure's own compiling code, so that an edit never meets an old artifact."""
    held = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((_PACKAGE / folder).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                held.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return held.hexdigest()


def graph_digest(graph: Graph) -> str:
    """A digest of a graph and of every array in it."""
    held = hashlib.sha256(graph.text().encode())
    for key in graph.order():
        node = graph.node(key)
        held.update("\0".join([*node.names, *node.origin]).encode())
        for name in sorted(node.attrs):
            value = node.attrs[name]
            if isinstance(value, np.ndarray):
                held.update(np.ascontiguousarray(value).tobytes())
            elif isinstance(value, Graph):
                held.update(graph_digest(value).encode())
            else:
                held.update(repr(value).encode())
    held.update(repr(sorted(graph.meta.items())).encode())
    return held.hexdigest()


__all__ = ["cache_dir", "graph_digest", "pins", "read_entry", "source_digest", "write_entry"]
