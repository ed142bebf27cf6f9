"""The inner loops of ``_dsp`` in Thumb-2: a compiler keeps neither the accumulators of such a tile in registers nor
forms the loads of several words that its instruction count needs.

Each is LLVM IR around one block of machine code, and returns an int32 (0 where there is nothing to say).
"""

from __future__ import annotations

from collections.abc import Sequence

UNROLL = 4


def opaque() -> tuple[str, str]:
    """Its argument, which LLVM then knows nothing about: no loop is unrolled by it."""
    return "nv_opaque", _function("nv_opaque", ["i32 %n"], "=r,0", "", ["i32 %n"])


def widen(dtype: str, points: int) -> tuple[str, str]:
    """From ``src`` to ``end``, words of four bytes become pairs of int16, ``points`` words apart from ``dst`` on."""
    form = "sxtb16" if dtype == "int8" else "uxtb16"
    body = [
        "1:",
        "ldr r0, [r2], #4",
        f"{form} r1, r0",
        f"{form} r0, r0, ror #8",
        *(
            ["strd r1, r0, [r3], #8"]
            if points == 1
            else [f"str r0, [r3, #{4 * points}]", f"str r1, [r3], #{8 * points}"]
        ),
        "cmp r2, r12",
        "bne 1b",
    ]
    name = f"nv_widen_{dtype}_{points}"
    return name, _block(name, body, {"src": 2, "dst": 3, "end": 12}, (0, 1))


def products(points: int, pairs: int, quads: int, split: bool) -> tuple[str, str]:
    """The sums of a tile: from ``x`` to ``end`` lie its inputs [pair][point], from ``w`` on what the sums begin with
    (two words a pair of channels), then the weights [pair][pair of channels]. From ``end`` on the sums are written,
    [pair of channels][a, b][point]. ``quads`` (of which a round takes as many as divide it) are the depth in fours."""
    sums = [[[f"r{(q * 2 + j) * points + p}" for p in range(points)] for j in range(2)] for q in range(pairs)]
    count = 2 * points * pairs
    xs, ws, high = _registers(count, points, pairs, split)
    heads = [sums[q][j][0] for q in range(pairs) for j in range(2)]
    body = [f"ldm r12!, {{{', '.join(heads)}}}"]
    body += [f"mov {s}, {own[0]}" for q in range(pairs) for own in sums[q] for s in own[1:]]
    body.append("1:")
    for _ in range(round_of(quads)):
        body += _quad(sums, xs, ws, high, points, pairs)
    body += ["cmp r11, lr", "bne 1b", f"stm r11, {{r0-r{count - 1}}}"]
    name = f"nv_products_{points}_{pairs}_{round_of(quads)}{'_split' if split else ''}"
    return name, _block(name, body, {"x": 11, "w": 12, "end": 14}, range(11))


def round_of(quads: int) -> int:
    """Quads that a round of ``products`` takes."""
    return next(u for u in range(UNROLL, 0, -1) if quads % u == 0)


def _registers(count: int, points: int, pairs: int, split: bool) -> tuple[list[str], list[str], str]:
    """Those of the inputs, of the weights (of both pairs of the depth where there are enough), and one more."""
    free = [f"r{i}" for i in range(count, 11)]
    xs = free[: points if points > 1 else 2]
    rest = free[len(xs) :]
    ws = rest[: 2 * pairs if len(rest) >= 2 * pairs + split else pairs]
    return xs, ws, rest[len(ws)] if split else ""


def _quad(
    sums: Sequence[Sequence[Sequence[str]]], xs: list[str], ws: list[str], high: str, points: int, pairs: int
) -> list[str]:
    """Two pairs of the depth."""
    body = [_load("r11", xs)] if points == 1 else []
    both = len(ws) == 2 * pairs
    for half in range(2):
        own = ws[half * pairs : (half + 1) * pairs] if both else ws
        if points > 1:
            body.append(_load("r11", xs))
        if half == 0 or not both:
            body.append(_load("r12", ws))
        mine = xs if points > 1 else [xs[half]]
        for q, w in enumerate(own):
            upper = w
            if high:
                body.append(f"sxtb16 {high}, {w}, ror #8")
                upper = high
            body += [f"smlad {s}, {x}, {upper}, {s}" for s, x in zip(sums[q][0], mine, strict=True)]
            body.append(f"sxtb16 {w}, {w}")
            body += [f"smlad {s}, {x}, {w}, {s}" for s, x in zip(sums[q][1], mine, strict=True)]
    return body


def _load(pointer: str, registers: Sequence[str]) -> str:
    """Words into registers that follow each other."""
    if len(registers) == 1:
        return f"ldr {registers[0]}, [{pointer}], #4"
    if len(registers) == 2:
        return f"ldrd {', '.join(registers)}, [{pointer}], #8"
    return f"ldm {pointer}!, {{{', '.join(registers)}}}"


def _block(name: str, body: Sequence[str], pointers: dict[str, int], free: Sequence[int]) -> str:
    """A function of pointers that lie in fixed registers; ``free`` registers are overwritten."""
    used = list(pointers.values())
    outs = ",".join(f"={{{'lr' if r == 14 else f'r{r}'}}}" for r in used)
    ins = ",".join(str(i) for i in range(len(used)))
    clobbers = ",".join(f"~{{r{r}}}" for r in free if r not in used)
    kind = "{" + ", ".join(["ptr"] * len(used)) + "}"
    args = ", ".join(f"ptr %{p}" for p in pointers)
    text = "\\0A".join(body)
    return (
        f"define internal i32 @{name}({args}) alwaysinline nounwind {{\n"
        f'  %r = call {kind} asm sideeffect "{text}", "{outs},{ins},{clobbers},~{{memory}},~{{cc}}"({args})\n'
        "  ret i32 0\n}\n"
    )


def _function(name: str, args: Sequence[str], constraints: str, text: str, given: Sequence[str]) -> str:
    return (
        f"define internal i32 @{name}({', '.join(args)}) alwaysinline nounwind {{\n"
        f'  %r = call i32 asm sideeffect "{text}", "{constraints}"({", ".join(given)})\n  ret i32 %r\n}}\n'
    )
