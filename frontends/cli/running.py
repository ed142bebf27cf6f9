"""What ``run`` does beyond running: outputs in words, top classes, ``.npz`` files. numpy and the standard library."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import NervureError
from ...runtime.artifact import Port
from ...targets.files import write_atomic

SHOWN = 256  # outputs of up to so many elements are listed in the JSON object


class Runnable(Protocol):
    def run(self, names: None, inputs: Mapping[str, Any], /) -> list[np.ndarray]: ...


def run_once(session: Runnable, inputs: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The outputs, and the seconds that the call took."""
    started = time.perf_counter()
    outputs = session.run(None, inputs)
    return outputs, time.perf_counter() - started


def describe(port: Port, array: np.ndarray) -> dict[str, Any]:
    """An output as plain data."""
    facts: dict[str, Any] = {"name": port.name, "dtype": port.dtype, "shape": list(array.shape)}
    if array.size and array.dtype.kind in "fiu":
        wide = array.astype(np.float64) if array.dtype.kind == "f" else array
        facts |= {"min": wide.min().item(), "max": wide.max().item(), "mean": float(wide.mean())}
    if array.size <= SHOWN:
        facts["values"] = array.tolist()
    return facts


def read_labels(path: Path | None) -> list[str]:
    """One label a line."""
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise NervureError("cannot read the labels", where=str(path), why=error.strerror or str(error)) from error


def top(
    ports: Sequence[Port], outputs: Sequence[np.ndarray], number: int, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The largest entries along the last axis of the first output that has classes; 16 rows at most.

    ``{output, row, rank, index, label, value}`` each; ties go to the lower index.
    """
    for port, array in zip(ports, outputs, strict=True):
        flat = array.reshape(-1, array.shape[-1]) if array.ndim and array.size else np.empty((0, 0))
        if flat.shape[1] < 2 and array.ndim > 1 and array.size:
            flat = array.reshape(array.shape[0], -1)  # [1, classes, 1, 1]
        if flat.shape[1] >= 2 and array.dtype.kind in "fiu":
            return [r for i, values in enumerate(flat[:16]) for r in _best(port.name, i, values, number, labels)]
    raise NervureError("no output has classes to rank", hint="leave out --top and --labels")


def _best(name: str, row: int, values: np.ndarray, number: int, labels: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-values.astype(np.float64), kind="stable")[:number]
    return [
        {
            "output": name,
            "row": row,
            "rank": rank,
            "index": int(i),
            "label": labels[i] if i < len(labels) else None,
            "value": values[i].item(),
        }
        for rank, i in enumerate(order, start=1)
    ]


def save_outputs(path: Path, ports: Sequence[Port], outputs: Sequence[np.ndarray]) -> None:
    """Writes a ``.npz``. A name that could leave a folder when the file is unpacked becomes ``outputN``."""
    if path.suffix != ".npz":
        raise NervureError("outputs are written as .npz", where=str(path), hint=f"-o {path.with_suffix('.npz')}")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for i, (port, array) in enumerate(zip(ports, outputs, strict=True)):
            safe = re.fullmatch(r"[\w:.\- ]{1,200}", port.name) and ".." not in port.name
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.writestr(f"{port.name if safe else f'output{i}'}.npy", member.getvalue())
    write_atomic(path, held.getvalue())


def collect(
    session: Any, inputs: Mapping[str, np.ndarray], number: int | None, labels: Path | None, output: Path | None
) -> dict[str, Any]:
    """Runs a session and gives the object that ``run --json`` prints; writes ``output`` where it is given."""
    words = read_labels(labels)
    arrays, taken = run_once(session, inputs)
    emulated = not hasattr(session, "invoke")  # the time of an emulator says nothing
    seconds = None if emulated else taken
    ports = session.get_outputs()
    result: dict[str, Any] = {"model": session.artifact.name, "seconds": seconds}
    result["outputs"] = [describe(p, a) for p, a in zip(ports, arrays, strict=True)]
    if number is None and labels is not None:
        number = 5
    result["top"] = top(ports, arrays, number, words) if number else []
    if output is not None:
        save_outputs(output, ports, arrays)
    result["file"] = str(output) if output else None
    if emulated:
        result["emulator"] = _seen(session)
    return result


def _seen(session: Any) -> dict[str, Any] | None:
    """What a run in the emulator was measured to take."""
    found = session.measured
    if found is None:
        return None
    target = session.artifact.block["machine"]["name"]
    return {"target": target, "instructions": sum(found.instructions.values()), "stack_bytes": found.stack}


def lines(result: Mapping[str, Any]) -> list[str]:
    """The same in words, a line each."""
    said = []
    for o in result["outputs"]:
        span = f", {o['min']:.6g} to {o['max']:.6g}, mean {o['mean']:.6g}" if "min" in o else ""
        said.append(f"{o['name']}: {o['dtype']}{o['shape']}{span}")
    rows = {t["row"] for t in result["top"]}
    for t in result["top"]:
        row = f"row {t['row']}, " if len(rows) > 1 else ""
        said.append(f"  {row}{t['rank']}. {t['value']:.4f}  {t['label'] or t['index']}")
    if result["file"]:
        said.append(f"outputs written to {result['file']}")
    if result["seconds"] is not None:
        said.append(f"{result['seconds'] * 1e3:.2f} ms (first run)")
    seen = result.get("emulator")
    if seen:
        said.append(
            f"{seen['instructions']:,} instructions on {seen['target']}, counted in the emulator (not cycles); "
            f"{seen['stack_bytes']} bytes of stack"
        )
    return said
