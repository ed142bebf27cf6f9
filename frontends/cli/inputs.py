"""Input files of ``run``, ``verify``, ``bench`` and ``profile``. numpy alone, but for pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import NervureError
from ...runtime.artifact import Artifact, Port
from .pictures import SUFFIXES, parse_preprocess, read_picture


def read_inputs(given: Sequence[str], artifact: Artifact, preprocess: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by input name from ``NAME=a.npy``, ``a.npy`` (a model of one input), ``file.npz`` or pictures."""
    ports = artifact.entries[0].inputs
    found: dict[str, np.ndarray] = {}
    for text in given:
        name, path = _split(text, [p.name for p in ports])
        for key, array in _read(path, name, ports, preprocess).items():
            if key in found:
                raise NervureError(f"input {key!r} is given twice", where=str(path))
            found[key] = array
    return found


def _split(text: str, names: Sequence[str]) -> tuple[str | None, Path]:
    """A name may hold ``=`` and so may a path: the model's own names decide, then what exists."""
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(f"{name}="):
            return name, Path(text[len(name) + 1 :])
    if "=" in text and not Path(text).exists():
        raise NervureError(f"the model has no input {text.partition('=')[0]!r}", why=f"inputs: {', '.join(names)}")
    return None, Path(text)


def _read(path: Path, name: str | None, ports: Sequence[Port], preprocess: str | None) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz(path, name, ports)
    port = _port(name, path, ports)
    if suffix == ".npy":
        return {port.name: _npy(path)}
    if suffix in SUFFIXES:
        plain = "unit" if np.dtype(port.dtype).kind == "f" else "raw"
        return {port.name: read_picture(path, port, parse_preprocess(preprocess or plain))}
    raise NervureError(
        "this kind of input file is unknown", where=str(path), hint=f"known: .npy .npz {' '.join(SUFFIXES)}"
    )


def _port(name: str | None, path: Path, ports: Sequence[Port]) -> Port:
    if name is None and len(ports) != 1:
        names = ", ".join(p.name for p in ports) or "none"
        raise NervureError(
            f"for which input is {path.name}?", why=f"the model has: {names}", hint=f"write --input NAME={path}"
        )
    return next(p for p in ports if name in (None, p.name))


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise NervureError("cannot read the input", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, EOFError, MemoryError) as error:
        why = "it is damaged, or holds objects instead of an array"
        raise NervureError("this is no .npy array", where=str(path), why=why) from error


def _npz(path: Path, name: str | None, ports: Sequence[Port]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files}
    except OSError as error:
        raise NervureError("cannot read the input", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        why = "it is damaged, or holds objects instead of arrays"
        raise NervureError("this is no .npz file", where=str(path), why=why) from error
    if len(arrays) == 1 and (name or len(ports) == 1):
        return {name or ports[0].name: next(iter(arrays.values()))}
    if name:
        raise NervureError(f"{path.name} holds {len(arrays)} arrays for input {name!r}", hint="give it without a name")
    return arrays
