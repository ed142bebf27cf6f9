"""The loaded code of an artifact: its C functions through ctypes."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import NervureError
from .artifact import Artifact

POINTER, INT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...] | None]] = {
    "context_bytes": (SIZE, (INT,)),
    "create": (INT, (POINTER, SIZE, INT, POINTER)),
    "destroy": (INT, (POINTER,)),
    "reset": (INT, (POINTER,)),
    "restore": (INT, (POINTER,)),
    "run": (INT, None),  # called with ready ctypes objects only: no conversion on the fast path
    "param": (POINTER, (POINTER, INT)),
    "state": (POINTER, (POINTER, INT)),
    "params_changed": (INT, (POINTER,)),
    "export": (INT, (POINTER, POINTER, SIZE)),
    "import": (INT, (POINTER, POINTER, SIZE)),
    "profile": (INT, (POINTER, POINTER, POINTER, POINTER)),
    "status_text": (ctypes.c_char_p, (INT,)),
}
# What only artifacts for a GPU have.
GPU_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...] | None]] = {
    "create_on": (INT, (POINTER, SIZE, INT, POINTER)),
    "run_on": (INT, None),
    "wait": (INT, (POINTER,)),
    "fetch": (INT, (POINTER,)),
    "stream": (POINTER, (POINTER,)),
    "buffer_create": (INT, (POINTER, SIZE, INT, POINTER)),
    "buffer_address": (POINTER, (POINTER,)),
    "buffer_copy": (INT, (POINTER, POINTER, SIZE, INT)),
    "buffer_export": (INT, (POINTER, INT, INT, INT, POINTER, POINTER)),
    "buffer_release": (INT, (POINTER,)),
}

_opened: dict[str, str] = {}  # path -> digest of what was loaded from there
_lock = threading.Lock()


class Library:
    """C functions of one artifact, without their prefix."""

    def __init__(self, artifact: Artifact, code: ctypes.CDLL) -> None:
        self.artifact = artifact
        self._functions: dict[str, Callable[..., Any]] = {}
        signatures = SIGNATURES | (GPU_SIGNATURES if artifact.gpu else {})
        for name, (result, arguments) in signatures.items():
            try:
                function = getattr(code, f"{artifact.prefix}_{name}")
            except AttributeError as error:
                raise NervureError(
                    "the model library lacks a function", where=str(artifact.path), why=str(error)
                ) from error
            function.restype = result
            if arguments is not None:
                function.argtypes = arguments
            self._functions[name] = function

    def function(self, name: str) -> Callable[..., Any]:
        return self._functions[name]

    def call(self, name: str, *arguments: Any) -> Any:
        return self._functions[name](*arguments)


def open_library(artifact: Artifact) -> Library:
    """Loads a verified artifact's code into the process.

    The dynamic loader takes a path that it has seen for the library that it has: where another model was written to the
    same path since, the file is loaded by a fresh name.
    """
    path = str(artifact.path.resolve())
    with _lock:
        known = _opened.setdefault(path, artifact.digest)
    try:
        if known == artifact.digest:
            return Library(artifact, ctypes.CDLL(path))
        with tempfile.TemporaryDirectory(prefix="nervure-") as folder:
            link = Path(folder) / f"{artifact.digest[:16]}.so"
            os.symlink(path, link)
            return Library(artifact, ctypes.CDLL(str(link)))
    except OSError as error:
        raise NervureError(
            "the system cannot load the model library",
            where=path,
            why=str(error),
            hint="it needs a Linux system with glibc 2.17 or newer",
        ) from error
