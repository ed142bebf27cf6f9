"""Checkpoints: a folder with ``manifest.json`` and the safetensors file that it names by its digest.

Both are written beside, flushed and renamed, the manifest last: at any moment the folder holds one whole checkpoint,
the last good one. Format of safetensors: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingTool, NervureError
from .arrays import host_dtype
from .artifact import Artifact, Stored
from .files import PREFIX, replacing

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"

Tensors = Mapping[str, np.ndarray]


def program_hash(artifact: Artifact) -> str:
    """Of everything that the artifact says about itself but the lines that it was written on: the same program,
    whatever its first parameters were."""
    text = json.dumps(_placeless(artifact.block), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _placeless(data: Any) -> Any:
    """Plain data without what ``origin`` says in it."""
    if isinstance(data, dict):
        return {k: _placeless(v) for k, v in data.items() if k != "origin"}
    return [_placeless(v) for v in data] if isinstance(data, list) else data


def exists(folder: str | Path) -> bool:
    """Whether there is a checkpoint."""
    return (Path(folder) / MANIFEST).is_file()


def save(folder: str | Path, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Replaces the checkpoint in ``folder``. Where that fails the one that was there stays as it is."""
    folder = Path(folder)
    encode = _codec("save")
    check_finite(tensors, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = encode(dict(tensors))
        digest = hashlib.sha256(data).hexdigest()
        name = digest[:32] + SUFFIX
        with replacing(folder / name) as file:
            file.write(data)
        row = {"file": name, "sha256": digest, "bytes": len(data)}
        shapes = {n: [str(a.dtype), list(a.shape)] for n, a in sorted(tensors.items())}
        manifest = {"format": FORMAT, "tensors": row, **facts, "shapes": shapes}
        with replacing(folder / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode() + b"\n")
    except OSError as error:
        raise _cannot(folder, error) from error
    _sweep(folder, name)


def _cannot(folder: Path, error: OSError) -> NervureError:
    known = exists(folder)
    return NervureError(
        "cannot write the checkpoint",
        where=str(folder),
        why=error.strerror or str(error),
        hint="make room; " + ("the last good checkpoint is intact" if known else "there is no earlier checkpoint"),
    )


def _sweep(folder: Path, keep: str) -> None:
    """Removes the files of earlier checkpoints, and what killed runs have left."""
    for path in folder.iterdir():
        stale = path.suffix == SUFFIX and path.name != keep
        if (stale and len(path.stem) == 32) or (path.name.startswith(PREFIX) and path.suffix == ".tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def check_finite(tensors: Tensors, folder: Path) -> None:
    """``NervureError`` rather than a checkpoint that nobody can go on from."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and name.startswith("param/") and not np.isfinite(array).all():
            raise NervureError(
                f"parameter {name.removeprefix('param/')!r} holds NaN or infinity: no checkpoint is written",
                why="the training has diverged",
                hint="lower the learning rate or clip gradients; "
                + (f"the last good checkpoint is {folder}" if exists(folder) else "there is no earlier checkpoint"),
            )


def load(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and manifest of a checkpoint, verified; ``NervureError`` says what is wrong with it."""
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        row = manifest["tensors"]
        version, file, digest = manifest["format"], str(row["file"]), row["sha256"]
    except OSError as error:
        raise NervureError("there is no checkpoint", where=str(path), why=error.strerror) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupted(path, f"its manifest cannot be read: {error}") from error
    if version != FORMAT:
        raise NervureError(
            f"the checkpoint's format is {version!r}, this nervure reads {FORMAT}",
            where=str(path),
            hint="use the nervure that made it",
        )
    path = folder / Path(file).name
    decode = _codec("load")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _corrupted(path, f"{error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _corrupted(path, f"{len(data)} bytes that do not match the digest in its manifest")
    return decode(data), manifest


def _corrupted(path: Path, why: str) -> NervureError:
    return NervureError("the checkpoint is corrupted", where=str(path), why=why, hint="use another copy, or start anew")


def save_weights(path: str | Path, tensors: Tensors) -> None:
    """One safetensors file, whole or not at all."""
    path = Path(path)
    data = _codec("save")(dict(tensors))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise NervureError("cannot write the weights", where=str(path), why=error.strerror) from error


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file."""
    decode = _codec("load")
    try:
        found: dict[str, np.ndarray] = decode(Path(path).read_bytes())
    except OSError as error:
        raise NervureError("cannot read the weights", where=str(path), why=error.strerror) from error
    except Exception as error:  # safetensors has its own class of error, without a common base
        if type(error).__name__ != "SafetensorError":
            raise
        raise NervureError("this is no safetensors file, or a damaged one", where=str(path), why=str(error)) from error
    return found


def check_stored(given: Tensors, rows: tuple[Stored, ...], kind: str, where: str | Path) -> dict[str, np.ndarray]:
    """The tensors ``kind/<name>`` by name; ``NervureError`` where they are not exactly those of the model."""
    prefix = f"{kind}/"
    found = {n.removeprefix(prefix): a for n, a in given.items() if n.startswith(prefix)}
    check_weights(found, rows, kind, where, whole=True)
    return found


def check_weights(given: Tensors, rows: tuple[Stored, ...], kind: str, where: str | Path, *, whole: bool) -> None:
    """``NervureError`` for names that the model does not have (or, with ``whole``, that lack), shapes and dtypes."""
    known = {row.name: row for row in rows}
    extra, missing = sorted(given.keys() - known.keys()), sorted(known.keys() - given.keys())
    wrong = None
    if extra:
        wrong = f"{kind} {extra[0]!r} is not in the model"
    elif missing and whole:
        wrong = f"{kind} {missing[0]!r} is not in the file"
    for name, array in sorted(given.items()):
        row = known.get(name)
        if wrong is None and row is not None and (host_dtype(row.dtype), row.shape) != (array.dtype, array.shape):
            wrong = f"{kind} {name!r} is {array.dtype}{list(array.shape)}, the model's is {row.dtype}{list(row.shape)}"
    if wrong is not None:
        raise NervureError(
            "the file does not fit the model", where=str(where), why=wrong, hint="was it made by another?"
        )


def _codec(name: str) -> Any:
    try:
        import safetensors.numpy as codec
    except ImportError as error:
        raise MissingTool("checkpoints need safetensors", hint="pip install 'nervure[train]'") from error
    return getattr(codec, name)


__all__ = ["exists", "load", "load_weights", "program_hash", "save", "save_weights"]
