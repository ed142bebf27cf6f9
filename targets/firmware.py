"""Programs without an operating system: linked against a board's memory map, run in QEMU, measured there.

``measure`` runs an entry of a static library on inputs, as ``emulator.run`` does for shared ones, and says how much
stack and arena it used (by painting them) and how many instructions each function took (by a plugin of QEMU).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import NervureError
from . import boards, emulator, toolchain
from .boards import Board
from .elf import functions
from .files import cache_dir, header_of, temporary_folder, writable, write_atomic
from .machine import Machine

BARE = toolchain.RUNTIME / "bare"
SUPPORT = ("startup.c", "semihosting.c", "strings.c", "mathematics.c")
SCRIPT = """\
ENTRY(nervure_reset)
MEMORY {{
{memory}
}}
SECTIONS {{
{weights}  .text : {{ KEEP(*(.vectors)) *(.text .text.*) *(.rodata .rodata.*) . = ALIGN(16); }} > {flash}
  .ARM.exidx : {{ *(.ARM.exidx*) }} > {flash}
  .data : ALIGN(16) {{
    nervure_data_start = .; *(.data .data.*) . = ALIGN(16); nervure_data_end = .;
  }} > {ram} AT > {flash}
  nervure_data_image = LOADADDR(.data);
{rest}
  .bss (NOLOAD) : ALIGN(64) {{
    nervure_bss_start = .; *(.bss .bss.* COMMON .in_{ram}) . = ALIGN(16); nervure_bss_end = .;
  }} > {ram}
  nervure_stack_top = ORIGIN({ram}) + LENGTH({ram});
  ASSERT(nervure_stack_top - nervure_bss_end >= {stack}, "no room for the stack")
  /DISCARD/ : {{ *(.comment) *(.note.nervure) }}
}}
"""
_OVERFLOW = re.compile(r"section '?([^' ]+)'? will not fit in region '(\w+)': overflowed by (\d+) bytes")
_FAULT = re.compile(r"^fault: .*? pc 0x([0-9a-f]+) lr 0x([0-9a-f]+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a program in the emulator did: its exit status, what it printed, instructions by function and by
    call of a kernel, in order (empty where nothing was counted)."""

    status: int
    said: str
    instructions: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Measured:
    """One run of an entry. Bytes of stack and of each region that it touched, instructions by function of one
    inference (not cycles)."""

    outputs: tuple[bytes, ...]
    stack: int
    touched: tuple[int, ...]
    instructions: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[tuple[str, int], ...] = ()

    def by_step(self, kernels: Sequence[Sequence[str]]) -> list[float]:
        """Instructions of each step, whose kernels are given: those of its calls, with what they call. Where the calls
        were not seen in that order (a kernel that jumps back to its own start), equal parts of what each kernel took.
        """
        flat = [k for step in kernels for k in step]
        if [name for name, _ in self.calls] == flat:
            counts = iter(n for _, n in self.calls)
            return [float(sum(next(counts) for _ in step)) for step in kernels]
        return [sum(self.instructions.get(k, 0) / flat.count(k) for k in step) for step in kernels]


def linker_script(board: Board) -> str:
    """The memory map as GNU ld and lld read it: code and constants in the first flash (weights in the largest, where
    there are several), data and the stack in the first RAM; what is put into a section ``.in_NAME`` lies in the memory
    of that name."""
    kinds = {"flash": "rx", "ram": "rwx"}
    memory = "\n".join(
        f"  {m.name} ({kinds[m.kind]}) : ORIGIN = {m.origin:#010x}, LENGTH = {m.size:#x}" for m in board.memory
    )
    flash, ram = board.first("flash").name, board.first("ram").name
    largest = max(board.of("flash"), key=lambda m: m.size).name
    weights = f"  .weights : {{ *({toolchain.WEIGHTS}*) }} > {largest}\n" if largest != flash else ""
    others = [m.name for m in board.of("ram")[1:]]
    rest = "\n".join(f"  .in_{n} (NOLOAD) : ALIGN(64) {{ *(.in_{n} .bss.in_{n}) }} > {n}" for n in others)
    return SCRIPT.format(memory=memory, flash=flash, ram=ram, rest=rest, weights=weights, stack=board.stack)


def link(
    folder: Path, sources: Sequence[str], machine: Machine, board: Board, *, out: str, flags: Sequence[str] = ()
) -> Path:
    """Compiles and links sources, objects and libraries of ``folder`` with startup code and semihosting.

    ``NervureError`` where the program does not fit the board's memory."""
    for name in (*SUPPORT, "semihosting.h"):
        (folder / name).write_bytes((BARE / name).read_bytes())
    (folder / "link.ld").write_text(linker_script(board))
    place = ("-target", machine.zig_target, f"-mcpu={machine.zig_cpu}", *toolchain.BARE_FLAGS, "-std=c11")
    linking = ("-nostdlib", "-lcompiler_rt", "-Wl,-T,link.ld", "-Wl,--gc-sections")
    try:
        toolchain.run_zig(["cc", *place, "-I.", *SUPPORT, *sources, *flags, *linking, "-o", out], folder)
    except toolchain.ToolError as error:
        raise _too_large(str(error), board) or error from None
    return folder / out


def _too_large(said: str, board: Board) -> NervureError | None:
    """The error for what the linker said, if it is that a memory is too small."""
    found = {region: int(over) for _, region, over in _OVERFLOW.findall(said)}
    sizes = {m.name: m.size for m in board.memory}
    why = [f"{n} has {sizes[n]:,} bytes, {over:,} too few" for n, over in found.items()]
    if "no room for the stack" in said:
        why.append(f"less than {board.stack:,} bytes of {board.first('ram').name} are left for the stack")
    if not why:
        return None
    hint = "a smaller model, int8, max_ram= (--max-ram), or a board with more memory"
    return NervureError(f"the program is too large for {board.name}", why="; ".join(why), hint=hint)


def simulate(
    elf: Path, machine: Machine, *, count: bool = False, icount: bool = False, timeout: float = 600
) -> Outcome:
    """Runs a program in QEMU, in the folder that it lies in (it may read and write files there).

    ``count``: instructions by function, between the markers. ``icount``: the board's clocks run with the instructions,
    one a nanosecond, so that every run is the same. A fault is told with the function that it was in."""
    command = [*emulator.command(machine), *("-nographic", "-monitor", "none", "-serial", "none")]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", elf.name]
    command += ["-icount", "shift=0"] * icount
    counts = elf.with_suffix(".counts")
    if count:
        command += ["-plugin", f"{_counter()},symbols={_symbols(elf).name},out={counts.name}"]
    try:
        done = subprocess.run(
            command, cwd=elf.parent, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as expired:
        said = b"".join(t for t in (expired.stderr, expired.stdout) if isinstance(t, bytes)).decode(errors="replace")
        raise NervureError(
            f"the program took longer than {timeout:.0f} s in {command[0]}",
            where=str(elf),
            why=f"the last that it said: {said.strip()[-200:]}" if said else "it said nothing",
        ) from None
    rows = [line.split() for line in counts.read_text().splitlines()] if counts.exists() else []
    by_function = {row[0]: int(row[1]) for row in sorted(rows) if len(row) == 2}
    calls = tuple((row[1], int(row[2])) for row in rows if len(row) == 3)
    return Outcome(done.returncode, _located(done.stderr + done.stdout, elf), by_function, calls)


def _located(said: str, elf: Path) -> str:
    """What a program said, with the functions' names beside the addresses of a fault."""
    fault = _FAULT.search(said)
    if fault is None:
        return said
    held = functions(elf.read_bytes())
    names = []
    for address in (int(fault[1], 16) & ~1, int(fault[2], 16) & ~1):
        names.append(next((n for n, at, size in held if at & ~1 <= address < (at & ~1) + size), "nowhere"))
    return said.replace(fault[0], f"{fault[0]} (in {names[0]}, called from {names[1]})")


def measure(
    library: Path,
    machine: Machine,
    *,
    prefix: str,
    entry: str,
    inputs: Sequence[bytes],
    output_bytes: Sequence[int],
    regions: Sequence[str] = ("arena",),
    board: Board | None = None,
    count: bool = False,
    timeout: float = 600,
) -> Measured:
    """Runs one entry of a static library in the emulator, on ``board`` (the emulator's own one if not given).

    ``entry`` is its C name, ``regions`` the C names of the memory blocks. ``NervureError`` with the program's message
    when it fails or takes over ``timeout`` seconds."""
    emulator.command(machine)
    assert machine.board is not None
    with temporary_folder() as folder:
        for i, data in enumerate(inputs):
            (folder / f"in{i:02d}").write_bytes(data)
        shutil.copyfile(library, folder / "libmodel.a")
        shutil.copyfile(header_of(library), folder / "model.h")
        (folder / "runner.c").write_bytes((BARE / "runner.c").read_bytes())
        place = board or boards.get(machine.board)
        (folder / "job.h").write_text(_job(prefix, entry, _sections(place, regions), inputs, output_bytes))
        elf = link(folder, ["runner.c", "libmodel.a"], machine, place, out="firmware.elf")
        done = simulate(elf, machine, count=count, timeout=timeout)
        if done.status != 0:
            why = done.said.strip() or f"it ended with {done.status}"
            raise NervureError(f"the model failed on {machine.name}", where=str(library), why=why[-400:])
        outputs = tuple((folder / f"out{i:02d}").read_bytes() for i in range(len(output_bytes)))
        facts = dict(line.split() for line in done.said.splitlines() if line.startswith(("stack ", "region_")))
        touched = tuple(int(facts[f"region_{i}"]) for i in range(len(regions)))
        return Measured(outputs, int(facts["stack"]), touched, done.instructions, done.calls)


def _sections(board: Board, regions: Sequence[str]) -> dict[str, str]:
    """The section of each region's block: the arena lies in the largest RAM, a region that is called as a memory of the
    board lies there, any other one with the program's own variables."""
    rams = {m.name: m for m in board.of("ram")}
    largest = max(rams.values(), key=lambda m: m.size).name
    return {
        r: f".bss.in_{r if r in rams and i else largest if not i else board.first('ram').name}"
        for i, r in enumerate(regions)
    }


def _job(prefix: str, name: str, regions: Mapping[str, str], inputs: Sequence[bytes], outputs: Sequence[int]) -> str:
    """What runner.c is told about the model: macros."""
    big = prefix.upper()
    rows = [
        f"#define MODEL_MEMORY {prefix}_memory",
        f"#define MODEL_INIT {prefix}_init",
        f"#define MODEL_RUN {prefix}_{name}",
        f"#define MODEL_INPUT {prefix}_{name}_input",
        f"#define MODEL_OUTPUT {prefix}_{name}_output",
        f"#define REGIONS {len(regions)}",
        f"#define REGION_BYTES {{{', '.join(f'{big}_{r.upper()}_BYTES' for r in regions)}}}",
        "#define REGION_BLOCKS \\\n"
        + " \\\n".join(
            f'    __attribute__((section("{section}"))) static _Alignas(64) '
            f"unsigned char block_{i}[{big}_{r.upper()}_BYTES + 1];"
            for i, (r, section) in enumerate(regions.items())
        ),
        f"#define REGION_STARTS {{{', '.join(f'block_{i}' for i in range(len(regions)))}}}",
        f"#define INPUTS {len(inputs)}",
        f"#define INPUT_BYTES {{{', '.join(map(str, [*map(len, inputs), 0]))}}}",
        f"#define OUTPUTS {len(outputs)}",
        f"#define OUTPUT_BYTES {{{', '.join(map(str, [*outputs, 0]))}}}",
    ]
    return "\n".join(rows) + "\n"


def _symbols(elf: Path) -> Path:
    """A file of the program's functions for the plugin: start, end (hexadecimal), name."""
    rows = sorted((at & ~1, size, name) for name, at, size in functions(elf.read_bytes()) if size)
    out = elf.with_suffix(".symbols")
    out.write_text("".join(f"{at:x} {at + size:x} {name}\n" for at, size, name in rows))
    return out


def _counter() -> Path:
    """The plugin that counts instructions, built once."""
    source = (BARE / "count.c").read_bytes()
    plugin = cache_dir() / "runner" / f"count-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not plugin.exists():
        with temporary_folder() as folder:
            (folder / "count.c").write_bytes(source)
            toolchain.run_zig(["cc", "-shared", "-fPIC", "-O2", "-g0", "count.c", "-o", "count.so"], folder)
            with writable(plugin):
                plugin.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(plugin, (folder / "count.so").read_bytes(), mode=0o755)
    return plugin
