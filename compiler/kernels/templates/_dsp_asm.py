"""The inner loops of ``_dsp`` in Thumb-2: a compiler keeps neither the accumulators of such a tile in registers nor
forms the loads of several words that its instruction count needs.

Each is LLVM IR around one block of machine code, and returns an int32 (0 where there is nothing to say).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KINDS = ("split", "scattered", "one_scale", "offset")  # what tells tiles apart
ROUNDS = (4, 3, 2, 7, 5)  # what is taken at once, best first


def opaque() -> tuple[str, str]:
    """Its argument, which LLVM then knows nothing about: no loop is unrolled by it."""
    return "nv_opaque", _function("nv_opaque", ["i32 %n"], "=r,0", "", ["i32 %n"])


def widen(dtype: str, points: int, rounds: int) -> tuple[str, str]:
    """From ``src`` to ``end``, words of four bytes become pairs of int16, ``points`` words apart from ``dst`` on. They
    are a multiple of ``rounds`` words."""
    form = "sxtb16" if dtype == "int8" else "uxtb16"
    body = ["1:"]
    for u in range(rounds):
        at = 8 * points * u
        body += ["ldr r0, [r2], #4", f"{form} r1, r0", f"{form} r0, r0, ror #8"]
        body += [f"strd r1, r0, [r3, #{at}]"] if points == 1 else [f"str r1, [r3, #{at}]"]
        body += [] if points == 1 else [f"str r0, [r3, #{at + 4 * points}]"]
    body += [f"add r3, r3, #{8 * points * rounds}", "cmp r2, r12", "bne 1b"]
    name = f"nv_widen_{dtype}_{points}_{rounds}"
    return name, _block(name, body, {"src": 2, "dst": 3, "end": 12}, (0, 1))


def products(points: int, pairs: int, rounds: int, split: bool) -> tuple[str, str]:
    """The sums of a tile: from ``x`` to ``end`` lie its inputs [pair][point], from ``w`` on what the sums begin with
    (two words a pair of channels), then the weights [pair][pair of channels]. From ``end`` on the sums are written,
    [pair of channels][a, b][point]. A round takes ``rounds`` times four of the depth."""
    body = _products(points, pairs, rounds, split)
    body.append(f"stm r11, {{r0-r{2 * points * pairs - 1}}}")
    name = f"nv_products_{points}_{pairs}_{rounds}{'_split' if split else ''}"
    return name, _block(name, body, {"x": 11, "w": 12, "end": 14}, range(11))


def _products(points: int, pairs: int, rounds: int, split: bool, direct: str | None = None) -> list[str]:
    """The sums, in registers [pair of channels][a, b][point]."""
    sums = [[[f"r{(q * 2 + j) * points + p}" for p in range(points)] for j in range(2)] for q in range(pairs)]
    xs, ws, high = _registers(2 * points * pairs, points, pairs, split)
    heads = [sums[q][j][0] for q in range(pairs) for j in range(2)]
    body = [f"ldm r12!, {{{', '.join(heads)}}}"]
    body += [f"mov {s}, {own[0]}" for q in range(pairs) for own in sums[q] for s in own[1:]]
    body.append("1:")
    for _ in range(rounds):
        body += _quad(sums, xs, ws, high, points, pairs, direct)
    return [*body, "cmp r11, lr", "bne 1b"]


def tile(
    shape: tuple[int, int, int],
    steps: dict[str, Any],
    *,
    split: bool,
    scattered: bool,
    one_scale: bool,
    offset: bool,
    direct: str | None,
) -> tuple[str, str]:
    """All channels of a tile of ``shape`` (points, pairs, quads to a round), to their 8 bits. ``x`` and ``end`` as for
    ``products``, and ``w`` too; but behind the weights of each group come its multipliers (unless there is
    ``one_scale``: that of a and of b, which come first), and where they are ``scattered`` a word a pair that holds the
    offsets of both results. ``offset``: before these come numbers that weights are larger than their bytes.

    From ``end`` on lie the addresses of the points' results, the end of the weights, ``x``, and, with ``offset``, the
    sums of the points' inputs. One point can be taken ``direct``ly from its bytes, of that type: then these lie from
    ``kept`` on."""
    points, pairs, rounds = shape
    kept = "r10" if direct else "lr"
    count = 2 * points * pairs
    sums = [[[f"r{(q * 2 + j) * points + p}" for p in range(points)] for j in range(2)] for q in range(pairs)]
    body = ["vldmia r12!, {s14, s15}"] if one_scale else []
    body += ["2:", *_products(points, pairs, rounds, split, direct)]
    if not split:
        body += [f"sub {a}, {a}, {b}" for own in sums for a, b in zip(*own, strict=True)]
    body += _offsets(sums, points) if offset else []
    body += [f"vmov s{i}, s{i + 1}, r{i}, r{i + 1}" for i in range(0, count, 2)]
    if not one_scale:
        body.append(f"vldmia r12!, {{s{count}-s{count + 2 * pairs - 1}}}")
    for i in range(count):
        scale = 14 + i // points % 2 if one_scale else count + i // points
        body += [f"vcvt.f32.s32 s{i}, s{i}", f"vmul.f32 s{i}, s{i}, s{scale}", f"vcvtr.s32.f32 s{i}, s{i}"]
    body += [f"vmov r{i}, r{i + 1}, s{i}, s{i + 1}" for i in range(0, count, 2)]
    for i in range(count):
        body += _bounded(f"r{i}", steps)
    body += _stored(sums, points, scattered, kept)
    body += [f"ldrd r9, r11, [{kept}, #{4 * points}]", "cmp r12, r9", "bne 2b"]
    flags = "".join(f"_{v}" for v in (steps["to"], steps["zero"], steps["low"], steps["high"])).replace("-", "m")
    kind = f"{'_split' if split else ''}{'_scattered' if scattered else ''}{'_one' if one_scale else ''}"
    kind += "_offset" if offset else ""
    name = f"nv_tile_{points}_{pairs}_{rounds}{flags}{kind}{f'_{direct}' if direct else ''}"
    pointers = {"x": 11, "w": 12, "end": 14} | ({"kept": 10} if direct else {})
    return name, _block(name, body, pointers, range(11), singles=16)


def _offsets(sums: Sequence[Sequence[Sequence[str]]], points: int) -> list[str]:
    """The sums of a point's inputs times its columns' offsets, added."""
    inputs = [f"r{len(sums) * 2 * points + p}" for p in range(points)]
    body = [f"add r11, lr, #{4 * points + 8}", _load("r11", inputs)]
    for own in sums:
        body.append("ldrd r9, r10, [r12], #8")
        body += [f"mla {own[j][p]}, {inputs[p]}, r{9 + j}, {own[j][p]}" for j in range(2) for p in range(points)]
    return body


def input_sums(points: int) -> tuple[str, str]:
    """Of the widened inputs of a tile, from ``x`` to ``end``, the sums of each point, to ``to``."""
    sums, xs = ([f"r{first + p}" for p in range(points)] for first in (4, 7))
    body = [*(f"mov {s}, #0" for s in sums), "mov r10, #0x00010001", "1:", _load("r2", xs)]
    body += [f"smlad {s}, {x}, r10, {s}" for s, x in zip(sums, xs, strict=True)]
    body += ["cmp r2, r12", "bne 1b", *(f"str {s}, [r3, #{4 * p}]" for p, s in enumerate(sums))]
    name = f"nv_sums_{points}"
    return name, _block(name, body, {"x": 2, "to": 3, "end": 12}, range(4, 11))


def _bounded(r: str, steps: dict[str, Any]) -> list[str]:
    """The zero point added, and clipped."""
    body = [f"add {r}, {r}, #{steps['zero']}"] if steps["zero"] else []
    least, most = (-128, 127) if steps["to"] == "int8" else (0, 255)
    body.append(f"{'ssat' if steps['to'] == 'int8' else 'usat'} {r}, #8, {r}")
    for bound, free, when in ((steps["low"], least, "lt"), (steps["high"], most, "gt")):
        if bound != free:
            body += [f"cmp {r}, #{bound}", f"it {when}", f"mov{when} {r}, #{bound}"]
    return body


def _stored(sums: Sequence[Sequence[Sequence[str]]], points: int, scattered: bool, kept: str) -> list[str]:
    """Results to memory: side by side, or each pair to its offsets (b first: where there is none, a replaces it)."""
    to = [f"r{len(sums) * 2 * points + p}" for p in range(points)]
    body = [f"ldm {kept}, {{{', '.join(to)}}}" if points > 1 else f"ldr {to[0]}, [{kept}]"]
    if not scattered:
        body += [f"strb {r[p]}, [{to[p]}], #1" for own in sums for r in own for p in range(points)]
        return [*body, f"stm {kept}, {{{', '.join(to)}}}" if points > 1 else f"str {to[0]}, [{kept}]"]
    for own in sums:
        body += ["ldr r9, [r12], #4", "lsr r11, r9, #16", "uxth r9, r9"]
        body += [f"strb {own[j][p]}, [{to[p]}, r{(9, 11)[j]}]" for j in (1, 0) for p in range(points)]
    return body


def keep() -> tuple[str, str]:
    """Writes an address to memory."""
    return "nv_keep", _block("nv_keep", ["str r1, [r0]"], {"at": 0, "address": 1}, ())


def copy(*, whole: bool = False) -> tuple[str, str]:
    """Bytes from ``src`` to ``end``, at least one word. Where they are not ``whole`` words, some are written twice."""
    if whole:
        body = ["1:", "ldr r0, [r2], #4", "str r0, [r3], #4", "cmp r2, r12", "bne 1b"]
        return "nv_copy_words", _block("nv_copy_words", body, {"src": 2, "dst": 3, "end": 12}, (0,))
    body = [
        *["1:", "ldr r0, [r2], #4", "str r0, [r3], #4", "add r1, r2, #4", "cmp r1, r12", "bls 1b"],
        *["ldr r0, [r12, #-4]", "sub r1, r12, r1", "str r0, [r3, r1]"],
    ]
    return "nv_copy", _block("nv_copy", body, {"src": 2, "dst": 3, "end": 12}, (0, 1))


def round_of(depth: int) -> int:
    """Fours of the depth that a round of ``products`` takes: as many as divide it."""
    return next((u for u in ROUNDS if depth // 4 % u == 0), 1)


def _registers(count: int, points: int, pairs: int, split: bool) -> tuple[list[str], list[str], str]:
    """Those of the inputs, of the weights (of both pairs of the depth where there are enough), and one more."""
    free = [f"r{i}" for i in range(count, 11)]
    xs = free[: points if points > 1 else 2]
    rest = free[len(xs) :]
    ws = rest[: 2 * pairs if len(rest) >= 2 * pairs + split else pairs]
    return xs, ws, rest[len(ws)] if split else ""


def _quad(
    sums: Sequence[Sequence[Sequence[str]]],
    xs: list[str],
    ws: list[str],
    high: str,
    points: int,
    pairs: int,
    direct: str | None,
) -> list[str]:
    """Two pairs of the depth."""
    body = [_load("r11", xs)] if points == 1 and not direct else []
    if direct:
        form = "sxtb16" if direct == "int8" else "uxtb16"
        body += [f"ldr {xs[0]}, [r11], #4", f"{form} {xs[1]}, {xs[0]}, ror #8", f"{form} {xs[0]}, {xs[0]}"]
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


def _block(name: str, body: Sequence[str], pointers: dict[str, int], free: Sequence[int], singles: int = 0) -> str:
    """A function of pointers that lie in fixed registers; ``free`` registers are overwritten, and so are as many
    ``singles`` of the FPU."""
    used = list(pointers.values())
    outs = ",".join(f"={{{'lr' if r == 14 else f'r{r}'}}}" for r in used)
    ins = ",".join(str(i) for i in range(len(used)))
    free_ones = [f"r{r}" for r in free if r not in used] + [f"s{i}" for i in range(singles)]
    clobbers = "".join(f"~{{{r}}}," for r in free_ones)
    kind = "{" + ", ".join(["ptr"] * len(used)) + "}"
    args = ", ".join(f"ptr %{p}" for p in pointers)
    text = "\\0A".join(body)
    return (
        f"define internal i32 @{name}({args}) alwaysinline nounwind {{\n"
        f'  %r = call {kind} asm sideeffect "{text}", "{outs},{ins},{clobbers}~{{memory}},~{{cc}}"({args})\n'
        "  ret i32 0\n}\n"
    )


def _function(name: str, args: Sequence[str], constraints: str, text: str, given: Sequence[str]) -> str:
    return (
        f"define internal i32 @{name}({', '.join(args)}) alwaysinline nounwind {{\n"
        f'  %r = call i32 asm sideeffect "{text}", "{constraints}"({", ".join(given)})\n  ret i32 %r\n}}\n'
    )
