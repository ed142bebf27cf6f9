"""What the user names on the command line: an ONNX file, a network in a Python file, or a compiled library."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import NervureError
from .values import parse_named

Dims = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Network:
    """A model before it is compiled: ``source`` for ``nv.compile`` and the dimensions that it is bound with."""

    title: str
    source: Any
    path: Path
    dims: Dims = field(default_factory=dict)
    shapes: Dims = field(default_factory=dict)

    @property
    def onnx(self) -> bool:
        return isinstance(self.source, Path)

    def bindings(self) -> list[dict[str, int]]:
        """One dictionary for each plan that is to be made."""
        from ..build import _bindings

        return _bindings(dict(self.dims))

    def graph(self, bindings: Mapping[str, int]) -> Any:
        """The IR with these dimensions bound."""
        from ..build import _graph

        return _graph(self.source, bindings, self.shapes)


def is_library(text: str) -> bool:
    """Whether this is a compiled model (by its first bytes, or by its name where it cannot be read)."""
    try:
        with open(text, "rb") as file:
            return file.read(4) in (b"\x7fELF", b"!<ar") or Path(text).suffix in (".so", ".a")
    except OSError:
        return Path(text).suffix in (".so", ".a")


def network(text: str, dims: Sequence[str] = (), shapes: Sequence[str] = ()) -> Network:
    """The model that ``text`` names: an ONNX file or ``FILE.py:NAME``.

    ``shapes`` may also bind dimensions (``batch=1``): what is no input's name is one.
    """
    path, colon, attribute = text.rpartition(":")
    python = colon and path.endswith(".py")
    if not python and is_library(text):
        raise NervureError("a model is wanted, this is a compiled library", where=text, hint="give the ONNX file")
    place = Path(path if python else text)
    if not place.is_file():
        why = "it is a folder" if place.is_dir() else "there is no such file"
        raise NervureError("cannot read the model", where=str(place), why=why)
    bound, whole = parse_named(dims, "--dim"), parse_named(shapes, "--shape")
    inputs = _input_names(place) if whole and not python else set()
    bound |= {k: v for k, v in whole.items() if k not in inputs and k not in bound}
    whole = {k: v for k, v in whole.items() if k in inputs}
    source = _from_python(place, attribute) if python else place
    return Network(attribute if python else place.stem, source, place, bound, whole)


def _input_names(path: Path) -> set[str]:
    from ..onnx import reader

    model, _ = reader.read(path)
    return {i.name for i in model.graph.input}


def _from_python(path: Path, name: str) -> Any:
    """The object ``name`` of a Python file. Importing the file runs it."""
    label = f"_nervure_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(label, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except NervureError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.resolve())]
        line = (
            getattr(error, "lineno", None) if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        )
        where = f"{path}:{line}" if line else str(path)
        raise NervureError(
            f"{path.name} cannot be imported", where=where, why=f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    found = getattr(module, name, None)
    if found is None or not hasattr(found, "to_graph"):
        networks = sorted(n for n, v in vars(module).items() if hasattr(v, "to_graph") and not isinstance(v, type))
        raise NervureError(
            f"{path.name} has no network {name!r}",
            where=str(path),
            hint=f"it has: {', '.join(networks)}" if networks else "decorate a function with @nv.network",
        )
    return found


def reference_file(model: Network, stack: ExitStack, bindings: Mapping[str, int] | None = None) -> Path:
    """An ONNX file that says what the model computes: the file itself, or the network exported to a temporary one."""
    if model.onnx:
        return model.path
    from ..onnx import save

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nervure-")))
    save(model.graph(dict(bindings or {})), folder / "reference.onnx")
    return folder / "reference.onnx"
