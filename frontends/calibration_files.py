"""What calibration data come from: files of arrays, functions named by their module, a preprocessing specification."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError

NPZ_HINT = "np.savez('data.npz', x=x): an array for each input name, samples along the first axis"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file; never objects (those would be unpickled, which runs code)."""
    held = read_arrays(path, "archive .npz")
    if isinstance(held, np.ndarray):
        raise NervureError("this is no .npz file", where=str(path), why="it holds one array alone", hint=NPZ_HINT)
    return held  # type: ignore[no-any-return]


def read_arrays(path: Path, kind: str) -> Any:
    """What ``np.load`` finds; ``kind`` is what is wanted: ``array .npy`` or ``archive .npz``."""
    word, suffix = kind.split()
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return held
        with held:
            arrays = {key: held[key] for key in held.files}
        if not all(isinstance(a, np.ndarray) for a in arrays.values()):
            raise ValueError("a member is no array")
        return arrays
    except OSError as error:
        raise NervureError("cannot read the data", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, AttributeError, TypeError, KeyError) as error:
        why = f"the {word} is damaged, or holds Python objects instead of arrays (which nervure never unpickles)"
        raise NervureError(f"this is no {suffix} file", where=str(path), why=why, hint=NPZ_HINT) from error


def imported(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of a module, or of a ``.py`` file. Importing it runs it."""
    import importlib
    import importlib.util
    import sys

    where = f"{module}:{name}"
    sys.path.insert(0, str(Path.cwd()))
    try:
        if module.endswith(".py"):
            label = f"_nervure_data_{Path(module).stem}"
            spec = importlib.util.spec_from_file_location(label, Path(module).resolve())
            if spec is None or spec.loader is None or not Path(module).is_file():
                raise NervureError("there is no such file", where=module)
            made = importlib.util.module_from_spec(spec)
            sys.modules[label] = made
            spec.loader.exec_module(made)
        else:
            made = importlib.import_module(module)
    except NervureError:
        raise
    except ImportError as error:
        hint = "give an .npz file, a folder of pictures, module:function or FILE.py:function"
        raise NervureError("cannot import the module", where=where, why=str(error), hint=hint) from error
    except Exception as error:
        raise NervureError("cannot import the module", where=where, why=f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    found = getattr(made, name, None)
    if not callable(found):
        functions = sorted(n for n, v in vars(made).items() if callable(v) and not n.startswith("_"))
        known = f"it has: {', '.join(functions[:12])}" if functions else None
        raise NervureError(f"{module} has no function {name!r}", where=where, hint=known)
    return found  # type: ignore[no-any-return]


def spec_text(preprocess: str | None) -> str | None:
    """A preprocessing specification in words; a path to a TOML or JSON file is read and put into them.

    The file has the keys of ``--preprocess`` (``size``, ``crop``, ``range`` or ``scale``, ``mean``, ``std``,
    ``layout``, ``color``) and may name a ``preset`` that they change.
    """
    if preprocess is None or not preprocess.lower().endswith((".toml", ".json")):
        return preprocess
    import json
    import tomllib

    path = Path(preprocess)
    try:
        text = path.read_text(encoding="utf-8")
        held = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise NervureError("cannot read the preprocessing", where=str(path), why=error.strerror) from error
    except ValueError as error:  # what both parsers raise, and broken UTF-8
        raise NervureError("the preprocessing cannot be read", where=str(path), why=str(error)) from error
    if not isinstance(held, dict) or not held:
        raise NervureError("the preprocessing has no keys", where=str(path), hint="for example: size = 224")
    parts = [str(held.pop("preset"))] if "preset" in held else []
    for key, value in held.items():
        joint = "x" if key == "size" else ":"
        parts.append(f"{key}={joint.join(map(str, value)) if isinstance(value, list) else value}")
    return ",".join(parts)
