"""Samples that a quantizer looks at: arrays, ``.npz`` files, folders of pictures, generators, ``module:function``.

Whatever they come from, they end as ``Samples``: feeds of the model (a dictionary of arrays by input name, each in the
input's own shape and dtype), which can be gone through as often as one likes. What does not fit, or is not finite, is a
``NervureError`` that names the place, before anything is computed with it.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.types import TensorType
from ..errors import NervureError, printable
from ..runtime.artifact import Port
from .calibration_files import NPZ_HINT, imported, read_arrays, read_npz, spec_text

Feed = dict[str, np.ndarray]
Types = Mapping[str, TensorType]
MOST = 1024  # samples that are taken if nobody says how many: a generator may have no end
LABELS = ("y", "labels")


class Samples(Sequence[Feed]):
    """Feeds of a model. ``read(i)`` makes one; ``bindings`` are the sizes of named dimensions that they have."""

    def __init__(self, where: str, count: int, read: Callable[[int], Feed], bindings: Mapping[str, int]) -> None:
        self.where, self._count, self._read, self.bindings = where, count, read, dict(bindings)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(range(self._count)[index])
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._read(index % self._count)

    def __iter__(self) -> Iterator[Feed]:
        return (self._read(i) for i in range(self._count))

    def take(self, indices: Sequence[int]) -> Samples:
        """These feeds alone."""
        chosen = list(indices)
        return Samples(self.where, len(chosen), lambda i: self._read(chosen[i]), self.bindings)

    def spread(self, count: int) -> Samples:
        """At most ``count`` feeds, evenly spread over all: files are often sorted by class."""
        return self if count >= self._count else self.take(spread(self._count, count))


def spread(total: int, count: int) -> list[int]:
    """``count`` indices below ``total``, evenly spread, ascending."""
    return [i * total // count for i in range(count)] if count < total else list(range(total))


@dataclass(frozen=True)
class Labelled:
    """Samples with what should come out: ``y[i]`` belongs to feed ``i``, with the batch as its first axis."""

    samples: Samples
    y: list[np.ndarray]


def calibration(
    source: Any,
    inputs: Types,
    *,
    samples: int | None = None,
    preprocess: str | None = None,
) -> Samples:
    """The samples that ``source`` holds for a model with these inputs.

    ``source``: the path of an ``.npz`` (or of an ``.npy`` for a model of one input) or of a folder of pictures,
    ``module:function`` or ``FILE.py:function`` (called without arguments), an array, a dictionary of arrays, or
    anything that gives samples one by one: dictionaries, or arrays in the order of the inputs. Arrays have the
    samples along their first axis. ``samples`` bounds their number (1,024 if not given); files give them evenly
    spread, generators the first ones. ``preprocess``, for pictures: a preset, keys, or a TOML or JSON file with them.

    Raises ``NervureError`` where there are none, or where one does not fit an input, or is not finite.
    """
    most = MOST if samples is None else samples
    if most < 1:
        raise NervureError(f"{most} samples are none", hint="give a number from 1 on")
    if isinstance(source, Samples):
        return source.spread(most)
    if isinstance(source, str | Path):
        return _from_path(str(source), inputs, most, preprocess)
    if callable(source) and not isinstance(source, Iterable):
        source = source()
    where = "calibration"
    if isinstance(source, np.ndarray):
        return _from_arrays({"": source}, inputs, where).spread(most)
    if isinstance(source, Mapping):
        return _from_arrays({str(k): np.asarray(v) for k, v in source.items()}, inputs, where).spread(most)
    if not isinstance(source, Iterable):
        raise NervureError(
            f"samples cannot be read from {type(source).__name__}",
            hint="give a path, an array, a dictionary of arrays, or a generator of them",
        )
    return _from_items(source, inputs, where, most)


def labelled(source: Any, inputs: Types, *, samples: int | None = None) -> Labelled:
    """Inputs and ``y`` (or ``labels``) of an ``.npz`` file, of a dictionary of arrays, or of a pair (x, y)."""
    where = str(source) if isinstance(source, str | Path) else "labelled"
    if isinstance(source, Labelled):
        return source
    if isinstance(source, str | Path):
        arrays = read_npz(Path(source))
    elif isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
    elif isinstance(source, tuple) and len(source) == 2:
        x = source[0]
        arrays = {**({str(k): np.asarray(v) for k, v in x.items()} if isinstance(x, Mapping) else {"": np.asarray(x)})}
        arrays["y" if "y" not in inputs else "labels"] = np.asarray(source[1])
    else:
        raise NervureError("labelled samples are an .npz file, a dictionary of arrays, or a pair (x, y)")
    name = next((n for n in LABELS if n in arrays and n not in inputs), None)
    if name is None:
        held = _listed(arrays)
        raise NervureError("the labelled data has no array 'y'", where=where, why=f"it holds: {held}", hint=NPZ_HINT)
    y = arrays.pop(name)
    found = _from_arrays(arrays, inputs, where)
    return _with_labels(found, y, inputs, where, samples)


def _with_labels(found: Samples, y: np.ndarray, inputs: Types, where: str, samples: int | None) -> Labelled:
    each = len(next(iter(found[0].values()))) if inputs and next(iter(inputs.values())).rank else 1
    if y.ndim == 0 or y.dtype.kind not in "iufb" or y.size == 0:
        raise NervureError("y must be an array of numbers, one for each sample", where=where)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise NervureError("y holds NaN or infinity", where=where)
    batched = len(y) != len(found)
    if batched and len(y) // each != len(found):
        raise NervureError(
            "inputs and y have different numbers of samples",
            where=where,
            why=f"{len(found) * each} and {len(y)}",
        )
    rows = [y[i * each : (i + 1) * each] if batched else y[i : i + 1] for i in range(len(found))]
    if samples is not None and samples < len(found):
        chosen = spread(len(found), samples)
        return Labelled(found.take(chosen), [rows[i] for i in chosen])
    return Labelled(found, rows)


# -- where they come from ----------------------------------------------------------------------------------------------


def _from_path(text: str, inputs: Types, most: int, preprocess: str | None) -> Samples:
    path = Path(text)
    if path.is_dir():
        return pictures(path, inputs, most, preprocess)
    module, colon, name = text.rpartition(":")
    if colon and name.isidentifier() and not path.exists():
        return _from_items(imported(module, name)(), inputs, text, most)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _from_arrays({"": read_arrays(path, "array .npy")}, inputs, text).spread(most)
    if suffix != ".npz" and path.is_file():
        raise NervureError(
            "this is no calibration data",
            where=text,
            hint="give an .npz file, a folder of pictures, or module:function",
        )
    arrays = {k: v for k, v in read_npz(path).items() if k in inputs or k not in LABELS}
    return _from_arrays(arrays, inputs, text).spread(most)


def pictures(folder: Path, inputs: Types, most: int, preprocess: str | None) -> Samples:
    """All pictures in and under a folder, in the order of their paths, read when they are asked for."""
    from .cli.pictures import SUFFIXES, parse_preprocess, read_picture

    if len(inputs) != 1:
        raise NervureError(
            "a folder of pictures fits a model of one input",
            where=str(folder),
            why=f"this one has: {_listed(inputs)}",
            hint=NPZ_HINT,
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise NervureError("the folder holds no pictures", where=str(folder), hint=f"known: {' '.join(SUFFIXES)}")
    ((name, type_),) = inputs.items()
    batch = type_.shape[0] if type_.rank == 4 and isinstance(type_.shape[0], int) else 1
    bindings = {d: 1 for d in type_.shape[:1] if isinstance(d, str)}
    if any(isinstance(d, str) for d in type_.shape[1:]):
        raise NervureError(f"input {name!r} has open sizes: {type_}", hint="bind them: --dim NAME=N")
    shape = tuple(1 if isinstance(d, str) else d for d in type_.shape)
    port = Port(name, type_.dtype, (1, *shape[1:]) if type_.rank == 4 else shape)
    how = parse_preprocess(spec_text(preprocess) or ("unit" if np.dtype(type_.dtype).kind == "f" else "raw"))
    if len(paths) < batch:
        raise _too_few(len(paths), batch, name, str(folder))
    chosen = [paths[i] for i in spread(len(paths), min(most * batch, len(paths) // batch * batch))]

    def read(index: int) -> Feed:
        made = [read_picture(p, port, how) for p in chosen[index * batch : (index + 1) * batch]]
        return {name: _checked(made[0] if len(made) == 1 else np.concatenate(made), str(folder), name)}

    first = Samples(str(folder), len(chosen) // batch, read, bindings)
    if first[0][name].shape != shape:
        raise NervureError(
            f"the pictures become {list(first[0][name].shape)}, input {name!r} is {list(shape)}", where=str(folder)
        )
    return first


# -- how they are cut into feeds ---------------------------------------------------------------------------------------


def _from_arrays(given: Mapping[str, np.ndarray], inputs: Types, where: str) -> Samples:
    arrays = _by_name(given, inputs, where)
    bindings: dict[str, int] = {}
    steps = {n: _cut(n, a, inputs[n], bindings, where) for n, a in arrays.items()}
    counts = {n: len(a) // steps[n] if steps[n] else len(a) for n, a in arrays.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{printable(n, 60)} {c}" for n, c in counts.items())
        raise NervureError("the arrays have different numbers of samples", where=where, why=said)
    whole = {n: _checked(_cast(a, inputs[n], where, n), where, n) for n, a in arrays.items()}

    def read(i: int) -> Feed:
        return {n: a[i * steps[n] : (i + 1) * steps[n]] if steps[n] else a[i] for n, a in whole.items()}

    return Samples(where, next(iter(counts.values()), 0), read, bindings)


def _by_name(given: Mapping[str, np.ndarray], inputs: Types, where: str) -> dict[str, np.ndarray]:
    if not given:
        raise NervureError("there are no samples", where=where, why="it holds no array", hint=NPZ_HINT)
    if not inputs:
        raise NervureError("the model has no inputs: there is nothing to calibrate")
    if all(n in given for n in inputs):
        return {n: given[n] for n in inputs}
    if len(inputs) == 1 and len(given) == 1:
        return {next(iter(inputs)): next(iter(given.values()))}
    missing = [n for n in inputs if n not in given]
    near = difflib.get_close_matches(missing[0], list(given), 2, 0.5)
    hint = f"closest: {', '.join(printable(n, 60) for n in near)}" if near else NPZ_HINT
    raise NervureError(
        f"there is no array for input {printable(missing[0], 60)!r}",
        where=where,
        why=f"it holds: {_listed(given)}; the model has: {_listed(inputs)}",
        hint=hint,
    )


def _listed(names: Iterable[str]) -> str:
    shown = [printable(n, 60) or "(one array)" for n in names]
    return ", ".join([*shown[:12], *([f"and {len(shown) - 12} more"] if len(shown) > 12 else [])]) or "nothing"


def _cut(name: str, array: np.ndarray, wanted: TensorType, bindings: dict[str, int], where: str) -> int:
    """How many rows of the array's first axis are one feed; 0 where each row is a whole input.

    ``bindings`` learns the sizes of named dimensions; the first axis is the batch, of 1 where its size is open.
    """
    shape = wanted.shape
    if array.ndim == len(shape) + 1:
        step, fits = 0, _unify(array.shape[1:], shape, bindings)
    elif array.ndim == len(shape) and shape:
        first = shape[0]
        step = first if isinstance(first, int) else bindings.setdefault(first, 1)
        fits = _unify(array.shape[1:], shape[1:], bindings)
    else:
        step, fits = 0, False
    if not fits or step < 0:
        words = f"[samples, {', '.join(map(str, shape[1:] if shape else ()))}]" if shape else "[samples]"
        raise NervureError(
            f"the samples do not fit input {printable(name, 60)!r}",
            where=where,
            why=f"the array is {array.dtype}{list(array.shape)}, the input {wanted}",
            hint=f"it wants {words}, samples along the first axis",
        )
    if not len(array):
        raise NervureError("there are no samples", where=where, why=f"array {printable(name, 60)!r} is empty")
    if step > len(array):
        raise _too_few(len(array), step, name, where)
    return step


def _too_few(found: int, wanted: int, name: str, where: str) -> NervureError:
    return NervureError(
        f"{found} samples do not fill a batch of {wanted}", where=where, why=f"that is the first axis of input {name!r}"
    )


def _unify(found: Sequence[int], wanted: Sequence[int | str], bindings: dict[str, int]) -> bool:
    """Whether an array's shape fits; open sizes are taken from it."""
    if len(found) != len(wanted):
        return False
    return all(
        f == (w if isinstance(w, int) else bindings.setdefault(w, f)) for f, w in zip(found, wanted, strict=True)
    )


def _cast(array: np.ndarray, wanted: TensorType, where: str, name: str) -> np.ndarray:
    """The array in the input's dtype, where that changes no meaning."""
    target = np.dtype(wanted.dtype)
    if array.dtype == target:
        return array
    kinds = array.dtype.kind + target.kind
    if kinds == "ff":
        with np.errstate(over="ignore"):
            return array.astype(target)
    if array.dtype.kind in "iu" and target.kind in "iu":
        limits = np.iinfo(target)
        if limits.min <= array.min() and array.max() <= limits.max:
            return array.astype(target)
    hint = f"convert them as the model's inputs were in training: x.astype('{target}') and its scaling"
    raise NervureError(
        f"the samples are {array.dtype}, input {printable(name, 60)!r} is {target}", where=where, hint=hint
    )


def _checked(array: np.ndarray, where: str, name: str) -> np.ndarray:
    """The array, if every number is finite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0, 0]) if array.ndim else 0
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise NervureError(
            f"the samples hold {what}",
            where=where,
            why=f"array {printable(name, 60)!r}, row {row}: no scale follows from it",
            hint="leave such samples out",
        )
    return array


def _from_items(items: Any, inputs: Types, where: str, most: int) -> Samples:
    """Samples one by one (or some at a time), kept in memory."""
    if isinstance(items, Mapping | np.ndarray):
        held = {"": items} if isinstance(items, np.ndarray) else {str(k): np.asarray(v) for k, v in items.items()}
        return _from_arrays(held, inputs, where).spread(most)
    try:
        first = iter(items)
    except TypeError as error:
        raise NervureError(
            "the function gave no samples", where=where, why=f"it gave {type(items).__name__}"
        ) from error
    feeds: list[Feed] = []
    bindings: dict[str, int] = {}
    for number, item in enumerate(itertools.islice(first, most)):
        found = _one(item, inputs, f"{where}, sample {number}")
        if feeds and found.bindings != bindings:
            raise NervureError(
                "the samples have different sizes", where=f"{where}, sample {number}", hint="bind them: --dim NAME=N"
            )
        bindings = found.bindings
        feeds += list(found)
        if len(feeds) >= most:
            break
    if not feeds:
        raise NervureError("there are no samples", where=where, why="the generator gave none")
    return Samples(where, min(len(feeds), most), feeds.__getitem__, bindings)


def _one(item: Any, inputs: Types, where: str) -> Samples:
    """One item of a generator: a dictionary, an array, or arrays in the inputs' order; with or without a batch axis."""
    if isinstance(item, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in item.items()}
    elif isinstance(item, tuple | list) and len(item) == len(inputs) and len(inputs) > 1:
        arrays = {n: np.asarray(v) for n, v in zip(inputs, item, strict=True)}
    elif isinstance(item, tuple | list) and len(inputs) == 1 and len(item) == 1:
        arrays = {next(iter(inputs)): np.asarray(item[0])}
    else:
        arrays = {"": np.asarray(item)}
    named = _by_name(arrays, inputs, where)
    for n, a in named.items():
        if a.ndim == inputs[n].rank - 1 or not inputs[n].rank:  # one sample, its batch axis left out
            named[n] = a[None]
    return _from_arrays(named, inputs, where)
