"""``nv.run_in_c`` and ``nv.build_c``: a saved library as C programs use it, as proof that it needs no Python."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.names import entry_names, prefix
from ..errors import NervureError
from ..runtime.artifact import Entry, read_artifact
from ..targets import emulator, get, toolchain
from ..targets.files import header_of

_PROGRAM = """\
#include "{name}.h"
#include <stdio.h>

static _Alignas(64) unsigned char memory[{prefix}_CONTEXT_BYTES(1)];
{buffers}

static int check(int status) {{
    if (status != {prefix}_OK) fprintf(stderr, "%s\\n", {name}_status_text(status));
    return status != {prefix}_OK;
}}

int main(void) {{
    {name}_context *context;
    const void *inputs[] = {{{inputs}0}};
    void *outputs[] = {{{outputs}0}};
    if (check({name}_create(memory, sizeof memory, 1, &context))) return 1;
    for (long call = 0; call < {calls}; call++) {{
{reads}
        if (check({name}_{entry}(context, inputs, outputs))) return 1;
{writes}
    }}
    {name}_destroy(context);
    return fflush(stdout) ? 2 : 0;
}}
"""


def run_in_c(path: str | Path, *inputs: Any, entry: str = "infer", calls: int | None = None) -> Any:
    """Builds a C program around a library that ``nv.compile`` or ``model.save`` wrote (its header lies beside it), and
    runs it: on this machine, or in the emulator of the one that the library is for.

    ``inputs``: one array for each input of the entry point, holding one call's values after another: [n, 28, 28] is n
    calls of a library whose input is [1, 28, 28] or [28, 28]. What is stateful stays so from call to call. ``calls``:
    their number, where there is no input to tell. The result is an array of the same kind for each output, alone if
    there is one. ``NervureError``: inputs that do not fit, a library for a machine that has no files or is not here.
    """
    artifact = read_artifact(path)
    chosen = artifact.entry(entry)
    machine = get(artifact.block["machine"]["name"])
    if machine.system not in ("linux", "cuda"):
        hint = "nervure run runs it in the board's emulator"
        raise NervureError(f"a C program for {machine.name} has no files to read from", where=str(path), hint=hint)
    arrays, count = _calls(chosen, inputs, calls, path)
    with tempfile.TemporaryDirectory(prefix="nervure-") as place:
        folder, name = Path(place), prefix(artifact)
        (folder / f"{name}.so").write_bytes(Path(path).read_bytes())  # the name that programs look for it by
        (folder / f"{name}.h").write_bytes(header_of(Path(path)).read_bytes())
        text = _program(name, entry_names(artifact)[artifact.entries.index(chosen)], chosen, count)
        (folder / "main.c").write_text(text, encoding="utf-8")
        command = build_c(folder / "main.c", folder / f"{name}.so")
        feed = b"".join(a[i].tobytes() for i in range(count) for a in arrays)
        done = subprocess.run(command, cwd=folder, input=feed, capture_output=True)
    if done.returncode:
        raise NervureError("the C program failed", where=str(path), why=done.stderr.decode(errors="replace").strip())
    return _results(chosen, done.stdout, count)


def build_c(source: str | Path, library: str | Path) -> list[str]:
    """Builds a C program of one's own around a library that ``nv.compile`` or ``model.save`` wrote, beside it and under
    the name of ``source`` without ``.c``, for the machine that the library is for. What comes back is what to type: the
    program's path, behind the emulator's where it is for another machine.

    The library must still have the name that it was compiled under, and its header lie beside it. ``NervureError``:
    it has not, there are warnings or errors in the source, no emulator is installed.
    """
    path, code = Path(library).resolve(), Path(source).resolve()
    artifact = read_artifact(path)
    machine = get(artifact.block["machine"]["name"])
    if path.stem != prefix(artifact) or not header_of(path).exists():
        hint = f"it and its header must be {prefix(artifact)}.so and .h: nv.compile(..., name={path.stem!r})"
        raise NervureError(f"programs would not find {path.name}", where=str(path), hint=hint)
    flags = ("-Wall", "-Wextra", "-Werror", "-I.", "-Wl,-rpath,$ORIGIN", "-lpthread", "-lm")
    program = toolchain.link_program(path.parent, [str(code), path.name], machine, out=code.stem, flags=flags)
    return [*emulator.command(machine), str(program)]


def _calls(entry: Entry, inputs: tuple[Any, ...], calls: int | None, path: Any) -> tuple[list[np.ndarray], int]:
    """The inputs as [calls, ...], and the number of calls."""
    if len(inputs) != len(entry.inputs):
        names = ", ".join(port.name for port in entry.inputs)
        what = f"{entry.name} takes {len(entry.inputs)} inputs ({names}), got {len(inputs)}"
        raise NervureError(what, where=str(path))
    arrays = []
    for port, given in zip(entry.inputs, inputs, strict=True):
        array = np.ascontiguousarray(given, port.dtype)
        count, rest = divmod(array.size, max(1, int(np.prod(port.shape))))
        if rest or not count or (calls or count) != count:
            what = f"input {port.name!r} of shape {list(array.shape)} is no whole number of {list(port.shape)}"
            why = None if calls is None else f"{entry.name} is called {calls} times"
            raise NervureError(what, where=str(path), why=why)
        calls = count
        arrays.append(array.reshape(count, *port.shape))
    return arrays, 1 if calls is None else calls


def _program(name: str, function: str, entry: Entry, calls: int) -> str:
    """The source: reads each call's inputs, writes its outputs."""
    rows = [("x", i, port) for i, port in enumerate(entry.inputs)]
    rows += [("y", i, port) for i, port in enumerate(entry.outputs)]
    sizes = {f"{kind}{i}": int(np.prod(port.shape)) * np.dtype(port.dtype).itemsize for kind, i, port in rows}
    read = "        if (fread({0}, sizeof {0}, 1, stdin) != 1) return 2;"
    write = "        if (fwrite({0}, sizeof {0}, 1, stdout) != 1) return 2;"
    ins, outs = ([n for n in sizes if n.startswith(kind)] for kind in "xy")
    return _PROGRAM.format(
        prefix=name.upper(),
        name=name,
        entry=function,
        calls=calls,
        buffers="\n".join(f"static _Alignas(64) unsigned char {n}[{size}];" for n, size in sizes.items()),
        inputs="".join(f"{n}, " for n in ins),
        outputs="".join(f"{n}, " for n in outs),
        reads="\n".join(read.format(n) for n in ins),
        writes="\n".join(write.format(n) for n in outs),
    )


def _results(entry: Entry, said: bytes, calls: int) -> Any:
    kind = np.dtype([(f"y{i}", p.dtype, tuple(p.shape)) for i, p in enumerate(entry.outputs)])
    rows = np.frombuffer(said, kind, calls)
    found = []
    for i, port in enumerate(entry.outputs):
        array = np.ascontiguousarray(rows[f"y{i}"])
        found.append(array.reshape(calls * port.shape[0], *port.shape[1:]) if port.shape else array)
    return found[0] if len(found) == 1 else tuple(found)
