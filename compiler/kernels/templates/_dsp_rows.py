"""The sums of one tile of ``_dsp_taps`` in Thumb-2: several words a load, and all sums and weights in registers, which
a compiler's schedule does not keep up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

_WRITTEN_OUT = 110  # instructions of all lines up to which they are
_FARTHEST = 4095  # bytes that an addition's constant reaches
REGISTERS = 12  # r0 to r11: sums, weights, points; the two addresses are r12 and lr


def fits(outputs: int, pairs: int) -> bool:
    return outputs + pairs + 2 <= REGISTERS


def tile(steps: Sequence[Sequence[Any]], pairs: int, rows: int, pitch: int) -> tuple[str, str] | None:
    """A function of the addresses of the points' and the weights' words, of the start of the sums, and of where they
    are put. Lines of points are ``pitch`` words apart. None where the registers or the distance do not do."""
    outputs, words = len(steps), 1 + max(s[0] for own in steps for s in own)
    if not fits(outputs, pairs) or 4 * (pitch - words) > _FARTHEST or pitch < words:
        return None
    last = outputs - 1  # its sum's register holds what all sums start with, until its own first product
    forward = [f"addw r12, r12, #{4 * (pitch - words)}"] if pitch > words else []
    row = _row(steps, pairs, words, REGISTERS)
    if rows * len(row) <= _WRITTEN_OUT:
        body = [*_row(steps, pairs, words, REGISTERS, last), *forward, *(row + forward) * (rows - 1)]
        return _function(body[: len(body) - len(forward)], outputs, None)
    row = _row(steps, pairs, words, REGISTERS - 1)
    head = [f"mov r{o}, r{last}" for o in range(last)]
    return _function([*head, "1:", *row, *forward, "subs r11, r11, #1", "bne 1b"], outputs, rows)


def _row(steps: Sequence[Sequence[Any]], pairs: int, words: int, registers: int, start: int | None = None) -> list[str]:
    """One line: r0 and on are the sums, then come the weights, then points. ``start``: the register that holds the
    sums' start in the first line."""
    outputs = len(steps)
    first = outputs + pairs
    held = min(registers - first, words)
    body = [_load("lr", [f"r{outputs + p}" for p in range(pairs)])]
    forms = {"both": "smlad", "bb": "smlabb", "bt": "smlabt", "tb": "smlatb", "tt": "smlatt"}
    fresh = set() if start is None else set(range(outputs))
    for at in range(0, words, held):
        points = range(at, min(at + held, words))
        body.append(_load("r12", [f"r{first + w - at}" for w in points]))
        found = sorted((w, o, pair, form) for o, own in enumerate(steps) for w, pair, form in own if w in points)
        for w, o, pair, form in found:
            body.append(f"{forms[form]} r{o}, r{first + w - at}, r{outputs + pair}, r{start if o in fresh else o}")
            fresh.discard(o)
    return body


def _load(pointer: str, registers: Sequence[str]) -> str:
    if len(registers) == 1:
        return f"ldr {registers[0]}, [{pointer}], #4"
    return f"ldm {pointer}!, {{{', '.join(registers)}}}"


def _function(body: Sequence[str], outputs: int, count: int | None) -> tuple[str, str]:
    text = "\\0A".join([*([] if count is None else [f"mov r11, #{count}"]), *body])
    name = f"nv_taps_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    kind = "{" + ", ".join(["i32"] * outputs + ["ptr", "ptr"]) + "}"
    outs = ",".join([f"={{r{o}}}" for o in range(outputs)] + ["={r12}", "={lr}"])
    clobbers = "".join(f"~{{r{r}}}," for r in range(outputs, REGISTERS))
    tied = f"{outputs - 1},{outputs},{outputs + 1}"
    stores = "".join(
        f"  %s{o} = extractvalue {kind} %r, {o}\n  %p{o} = getelementptr i32, ptr %out, i32 {o}\n"
        f"  store i32 %s{o}, ptr %p{o}\n"
        for o in range(outputs)
    )
    return name, (
        f"define internal i32 @{name}(ptr %x, ptr %w, i32 %start, ptr %out) alwaysinline nounwind {{\n"
        f'  %r = call {kind} asm sideeffect "{text}", "{outs},{tied},{clobbers}~{{memory}},~{{cc}}"'
        f"(i32 %start, ptr %x, ptr %w)\n{stores}  ret i32 0\n}}\n"
    )
