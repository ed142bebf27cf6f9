"""A kernel as readable C99: a printer from lowered TIR, for people who review and certify what they run.

One ``static`` function a kernel: typed pointers, local scalars, ``for`` loops; what C's operators do not do as TIR
means it (wrapping sums, bit patterns, rounding) are small functions (``c99_helpers``). What TIR computes on a few lanes
becomes a loop over them. Runs in worker processes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import c99_helpers as helpers
from .c99_printer import Printer, Text
from .c99_text import definition

__all__ = ["Text", "kernel", "unit", "with_helpers"]


def kernel(function: Any) -> Text:
    """A kernel's C function (the range of its parallel loop is all of it)."""
    return Printer(function).kernel()


def _helper(name: str) -> tuple[str, list[str]]:
    """The C text of a helper function by name, and the helpers that it calls."""
    if name in helpers.TEXTS:
        text = helpers.TEXTS[name]
        return text, helpers.called(text, name)
    from . import vecmath
    from .tir import Builder

    function, arity = vecmath.BY_NAME[name.removesuffix("_f32")]
    k = Builder(name, {"lanes": 1, "features": (), "llvm": {"kind": "c"}})
    given = [k.arg(n, "float32", 1) for n in "ab"[: arity if arity > 1 else 0]] or [k.arg("x", "float32", 1)]
    out = k.arg("result", "float32", 1)
    k.store(out, 0, function(k, *(k.load(g, 0) for g in given)))
    printer = Printer(k.function(), returns=True)
    made = printer.kernel()
    params = ", ".join(f"float {n}" for _, n, _ in made.params[:-1])
    return "\n".join([f"static float {name}({params})", "{", *made.body, "}"]) + "\n", made.helpers


def with_helpers(names: list[str]) -> dict[str, str]:
    """The texts of helpers and of all that they call, callees first."""
    found: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in found or name in helpers.LIBRARY:
            return
        text, called = _helper(name)
        for other in called:
            visit(other)
        found[name] = text

    for name in sorted(names):
        visit(name)
    return found


def unit(functions: Sequence[Any]) -> str:
    """Kernels as one C file, under their own names, to be linked with whoever calls them."""
    texts = [kernel(f) for f in functions]
    called = with_helpers(sorted({h for t in texts for h in t.helpers}))
    includes = "".join(f"#include <{name}.h>\n" for name in ("math", "stdint", "string"))
    kernels = [definition(t.name, t.plain(), restrict=True) for t in texts]
    declared = [k[: k.index("\n{")] + ";\n" for k in kernels]
    return "\n".join([includes, *called.values(), *(d + k for d, k in zip(declared, kernels, strict=True))])
