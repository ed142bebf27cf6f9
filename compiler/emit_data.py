"""Constants as C text: typed arrays in readable rows; floats as the shortest decimals that read back exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .names import comment, distinct
from .program import Stored

NUMPY = {
    **{f"{u}int{b}_t": f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
    **{"float": "float32", "double": "float64"},
}
C_TYPES = {n: c for c, n in NUMPY.items()} | {"bool": "uint8_t", "float16": "uint16_t", "bfloat16": "uint16_t"}
_WIDTH = 116


def array(name: str, kind: str, data: np.ndarray, shape: Sequence[int]) -> str:
    """A definition of ``data`` (flat), with its shape in the comment."""
    about = f"/* {' x '.join(map(str, shape))} */\n" if len(shape) > 1 else ""
    return f"{about}static const {kind} {name}[{max(1, data.size)}] = {{\n{rows(data, shape)}}};\n"


def rows(data: np.ndarray, shape: Sequence[int], indent: str = "    ") -> str:
    """The numbers, whole rows a line where they fit."""
    words = literals(data)
    if not words:
        return f"{indent}0\n"
    widest = max(map(len, words)) + 2
    fit = max(1, (_WIDTH - len(indent)) // widest)
    count = _per_line(fit, shape)
    lines = (", ".join(words[i : i + count]) for i in range(0, len(words), count))
    return "".join(f"{indent}{line},\n" for line in lines)[:-2] + "\n"


def _per_line(fit: int, shape: Sequence[int]) -> int:
    """Numbers in a line: whole rows of the last axes that fit, else a round number of a longer row."""
    row = 1
    for extent in reversed(shape):
        if row * extent > fit:
            break
        row *= extent
    if row > 1:
        return row * (fit // row)
    return next((step for step in (32, 16, 8, 4) if step <= fit), fit)


def literals(data: np.ndarray) -> list[str]:
    """Each number as a C constant of its type."""
    if data.dtype.kind == "f":
        return _floats(data)
    if data.dtype.itemsize == 1:
        info = np.iinfo(data.dtype)
        table = np.array([str(v) for v in range(info.min, info.max + 1)], object)
        return list(table[data.astype(np.int64) - info.min])
    words = [str(v) for v in data.tolist()]
    if data.dtype.itemsize == 2:
        return words
    least = int(np.iinfo(data.dtype).min)
    mark = {"int32": ("INT32_MIN", "{}"), "int64": ("INT64_MIN", "INT64_C({})"), "uint32": ("", "{}u")}
    name, form = mark.get(data.dtype.name, ("", "UINT64_C({})"))
    return [name if name and w == str(least) else form.format(w) for w in words]


def _floats(data: np.ndarray) -> list[str]:
    suffix = "f" if data.dtype.itemsize == 4 else ""
    names = {"nan": "NAN", "inf": "INFINITY", "-inf": "-INFINITY"}
    return [names.get(w) or (w if "." in w or "e" in w else w + ".0") + suffix for w in data.astype(str).tolist()]


def image(name: str, stored: Sequence[Stored]) -> str:
    """The initial values of a block as a structure: a member for each tensor, at its offset in the block."""
    members, values, at = [], [], 0
    fields = distinct((s.name for s in stored), frozenset(("const", "static", "int", "float", "double", "char")))
    for field, s in zip(fields, stored, strict=True):
        if s.offset > at:
            members.append(f"    unsigned char before_{field}[{s.offset - at}];")
            values.append("    {0}")
        kind = C_TYPES[s.type.dtype]
        data = np.ascontiguousarray(s.value).reshape(-1)
        data = data.view(NUMPY[kind]) if data.dtype.name != NUMPY[kind] else data
        about = f" /* {comment(s.name)} {list(s.type.dims)} */"
        members.append(f"    {kind} {field}[{max(1, data.size)}];{about}")
        zero = not data.size or not data.view(np.uint8).any()
        values.append("    {0}" if zero else f"    {{\n{rows(data, s.type.dims, '        ')}    }}")
        at = s.offset + max(1, data.size) * data.itemsize
    body = ",\n".join(values)
    return "static const struct {\n" + "\n".join(members) + f"\n}} {name} = {{\n{body}\n}};\n"
