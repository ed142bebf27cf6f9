"""Programs without an operating system: linked against a board's memory map, run in QEMU, measured there.

``measure`` runs an entry of a static library on inputs, as ``emulator.run`` does for shared ones, and says how much
stack and arena it used (by painting them) and how many instructions each function took (by a plugin of QEMU).
"""

from __future__ import annotations

import hashlib
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
SUPPORT = ("startup.c", "semihosting.c", "strings.c")
SCRIPT = """\
ENTRY(nervure_reset)
MEMORY {{
{memory}
}}
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text .text.*) *(.rodata .rodata.*) . = ALIGN(16); }} > {flash}
  .ARM.exidx : {{ *(.ARM.exidx*) }} > {flash}
  .data : ALIGN(16) {{
    nervure_data_start = .; *(.data .data.*) . = ALIGN(16); nervure_data_end = .;
  }} > {ram} AT > {flash}
  nervure_data_image = LOADADDR(.data);
  .bss (NOLOAD) : ALIGN(64) {{
    nervure_bss_start = .; *(.bss .bss.* COMMON) . = ALIGN(16); nervure_bss_end = .;
  }} > {ram}
{rest}
  nervure_stack_top = ORIGIN({ram}) + LENGTH({ram});
  /DISCARD/ : {{ *(.comment) *(.note.nervure) }}
}}
"""


@dataclass(frozen=True)
class Outcome:
    """What a program in the emulator did: its exit status, what it printed, instructions by function (empty where
    nothing was counted)."""

    status: int
    said: str
    instructions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One run of an entry. Bytes of stack and of each region that it touched, instructions by function of one
    inference (not cycles)."""

    outputs: tuple[bytes, ...]
    stack: int
    touched: tuple[int, ...]
    instructions: Mapping[str, int] = field(default_factory=dict)


def linker_script(board: Board) -> str:
    """The memory map as GNU ld and lld read it: code and constants in the first flash, data and the stack in the first
    RAM; what is put into a section ``.NAME`` lies in the memory of that name."""
    kinds = {"flash": "rx", "ram": "rwx"}
    memory = "\n".join(
        f"  {m.name} ({kinds[m.kind]}) : ORIGIN = {m.origin:#010x}, LENGTH = {m.size:#x}" for m in board.memory
    )
    flash, ram = board.first("flash").name, board.first("ram").name
    others = [m.name for m in board.memory if m.kind == "ram"]
    rest = "\n".join(f"  .in_{n} (NOLOAD) : ALIGN(64) {{ *(.in_{n}) }} > {n}" for n in others)
    return SCRIPT.format(memory=memory, flash=flash, ram=ram, rest=rest)


def link(
    folder: Path, sources: Sequence[str], machine: Machine, board: Board, *, out: str, flags: Sequence[str] = ()
) -> Path:
    """Compiles and links sources, objects and libraries of ``folder`` with startup code and semihosting."""
    for name in (*SUPPORT, "semihosting.h"):
        (folder / name).write_bytes((BARE / name).read_bytes())
    (folder / "link.ld").write_text(linker_script(board))
    place = ("-target", machine.zig_target, f"-mcpu={machine.zig_cpu}", *toolchain.BARE_FLAGS, "-std=c11")
    linking = ("-nostdlib", "-lcompiler_rt", "-Wl,-T,link.ld", "-Wl,--gc-sections")
    toolchain.run_zig(["cc", *place, "-I.", *SUPPORT, *sources, *flags, *linking, "-o", out], folder)
    return folder / out


def simulate(elf: Path, machine: Machine, *, count: bool = False, timeout: float = 600) -> Outcome:
    """Runs a program in QEMU, in the folder that it lies in (it may read and write files there)."""
    command = [*emulator.command(machine), *("-nographic", "-monitor", "none", "-serial", "none")]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", elf.name]
    counts = elf.with_suffix(".counts")
    if count:
        command += ["-plugin", f"{_counter()},symbols={_symbols(elf).name},out={counts.name}"]
    try:
        done = subprocess.run(
            command, cwd=elf.parent, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise NervureError(f"the program took longer than {timeout:.0f} s in {command[0]}", where=str(elf)) from None
    found = dict(line.split() for line in counts.read_text().splitlines()) if counts.exists() else {}
    return Outcome(done.returncode, done.stderr + done.stdout, {k: int(v) for k, v in sorted(found.items())})


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
        (folder / "job.h").write_text(_job(prefix, entry, regions, inputs, output_bytes))
        elf = link(folder, ["runner.c", "libmodel.a"], machine, board or boards.get(machine.board), out="firmware.elf")
        done = simulate(elf, machine, count=count, timeout=timeout)
        if done.status != 0:
            why = done.said.strip() or f"it ended with {done.status}"
            raise NervureError(f"the model failed on {machine.name}", where=str(library), why=why[-400:])
        outputs = tuple((folder / f"out{i:02d}").read_bytes() for i in range(len(output_bytes)))
        facts = dict(line.split() for line in done.said.splitlines() if line.startswith(("stack ", "region_")))
        touched = tuple(int(facts[f"region_{i}"]) for i in range(len(regions)))
        return Measured(outputs, int(facts["stack"]), touched, done.instructions)


def _job(prefix: str, name: str, regions: Sequence[str], inputs: Sequence[bytes], outputs: Sequence[int]) -> str:
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
            f"    static _Alignas(64) unsigned char block_{i}[{big}_{r.upper()}_BYTES + 1];"
            for i, r in enumerate(regions)
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
