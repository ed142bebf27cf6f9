"""What a machine is like, as data: everything that templates, the cost model, the toolchain and the runtime ask about.

A target is a row, never a case distinction: code asks ``machine.lanes`` or looks an instruction up, it does not compare
names. All sizes are bytes, all rates are per clock cycle of one core, so that no frequency is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .gpu import Gpu


@dataclass(frozen=True, slots=True)
class Feature:
    """A CPU feature that compiled code needs.

    ``name`` is spelled as in /proc/cpuinfo. The runtime finds it in ``word`` at ``bit``: on x86 a CPUID result such as
    ``"7.0.ebx"`` (leaf, subleaf, register), on ARM Linux ``"hwcap"`` or ``"hwcap2"`` of ``getauxval``. ``saved`` are
    the bits of x86's XCR0 that must be set too: the vector registers that the operating system saves.
    """

    name: str
    word: str
    bit: int
    saved: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One line of an instruction's body: ``out = function(*args)`` of type ``dtype`` (TVM form, ``"int32x8"``).

    ``function`` is an LLVM intrinsic (its name starts with ``llvm.``), ``add`` for plain addition, ``concat`` for two
    vectors as one, or ``bitcast``.
    An argument is the name of an operand or of an earlier ``out``, or an integer to be broadcast to ``dtype``'s
    operand type ``arg_dtypes``.
    """

    out: str
    function: str
    dtype: str
    args: tuple[str | int, ...]
    arg_dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """A vector instruction, or a short fixed sequence of them, that templates may use.

    ``kind`` is what it computes (``"dot4"``: each int32 lane of the accumulator takes four products of neighbours;
    ``"pack.int8"``, ``"pack.uint8"``: see ``packed``; ``"round"``: float32 to the nearest int32, halves to even;
    ``"pair"``: an int32 takes two products of int16; ``"even.int8"``, ``"odd.int8"``, the same of uint8: every second
    byte of a word as int16, from the first or the second on;
    ``"table"``: see ``table_row``; ``"pick"``, ``"pick16"``: see ``pick_row``;
    ``"permute"``, ``"permute2"``: see ``permute_row``).
    ``operands`` names and types the inputs in order, accumulator first; ``lanes`` is the number of accumulator lanes;
    ``signed`` tells for each multiplied operand whether it is signed. ``saturates`` is True where intermediate sums
    can clip (then ``limit`` bounds the first factor so that they do not). ``reference`` is the numpy body.
    """

    name: str
    kind: str
    lanes: int
    operands: tuple[tuple[str, str], ...]
    result: str
    body: tuple[Call, ...]
    signed: tuple[bool, bool]
    reference: Callable[..., np.ndarray] = field(compare=False)
    saturates: bool = False
    limit: int | None = None
    per_cycle: float = 1.0
    c_text: str | None = None


@dataclass(frozen=True, slots=True)
class Tiles:
    """Two-dimensional registers that are multiplied as matrices of 8-bit integers (x86 AMX): eight of up to 16 rows by
    64 bytes. ``functions`` name what is done with them (LLVM intrinsics): ``configure`` (address of 64 bytes),
    ``release``, ``zero`` (register), ``load`` and ``store`` (register, address, bytes between rows), ``dot_signed`` and
    ``dot_unsigned`` (sums, left, right: int32 sums of fours; the right factor is signed). A ``dot`` of full registers
    takes ``cycles``.
    """

    functions: tuple[tuple[str, str], ...]
    cycles: float = 16.0


@dataclass(frozen=True)
class Machine:
    """One compile target.

    ``llvm`` is TVM's target dictionary (four-part triple). ``zig_target`` and ``zig_cpu`` build C for the machine,
    ``zig_baseline`` builds the runtime and the entry stubs, which must run on any CPU of the family. ``lanes`` are
    float32 lanes of a vector register and ``registers`` their number; ``fma_ports`` vector FMAs and ``load_ports``
    vector loads are issued a cycle, ``multiplies`` vector products of int32; where the core ``issues`` one
    instruction a cycle, arithmetic and loads take turns. ``l2_bandwidth`` and so on are bytes a
    cycle that one core can stream from there; ``memory_bandwidth_all`` is the limit of all cores together. ``l3``
    is 0 where there is none. ``emulator`` is the command that runs a program of this machine elsewhere,
    ``emulator_packages`` the Debian packages that bring it. ``system`` is what lies under a program: ``linux``, or
    ``bare`` where nothing does, ``cuda`` where kernels run on a ``gpu``
    beside the host; it decides what a compile writes. ``align`` is the alignment of buffers in the arena
    and of packed weights, ``float64`` whether the core computes in that type, ``board`` the memory map
    (``targets.boards``) of the machine that the emulator plays.
    """

    name: str
    family: str
    llvm: Mapping[str, Any] = field(hash=False)
    zig_target: str
    zig_cpu: str
    zig_baseline: str
    elf: tuple[int, int]  # (class in bits, e_machine)
    lanes: int
    registers: int
    fma_ports: float
    load_ports: float
    l1: int
    l2: int
    l3: int = 0
    l1_ways: int = 8
    line: int = 64
    cores: int = 4
    fma_latency: int = 4
    multiplies: float = 4.0
    in_order: bool = False
    issues: int = 2
    l2_bandwidth: float = 24.0
    l3_bandwidth: float = 16.0
    memory_bandwidth: float = 6.0
    memory_bandwidth_all: float = 12.0
    features: tuple[Feature, ...] = field(default=(), hash=False)
    instructions: tuple[Instruction, ...] = field(default=(), hash=False)
    tiles: Tiles | None = None
    regions: tuple[str, ...] = ("arena",)
    emulator: tuple[str, ...] | None = None
    emulator_packages: str = "qemu-user"
    system: str = "linux"
    align: int = 64
    float64: bool = True
    board: str | None = None
    gpu: Gpu | None = None
    readable: bool = False  # kernels are short loops that people read, rather than the fastest tiles

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector register."""
        return self.lanes * 4

    @property
    def flops_per_cycle(self) -> float:
        """Peak float32 operations a cycle of one core (an FMA counts two)."""
        return 2.0 * self.lanes * self.fma_ports

    def roofline(self, flops: float, streamed: float) -> float:
        """Cycles of so much work, roughly: the larger of float32 arithmetic at the peak and bytes at the rate of the L2
        cache, on one core; on a GPU of the memory, and a launch."""
        if self.gpu is None:
            return max(flops / self.flops_per_cycle, streamed / self.l2_bandwidth)
        gpu = self.gpu
        work = max(flops / (2.0 * gpu.fma * gpu.multiprocessors), streamed / gpu.bandwidth * gpu.clock)
        return work + gpu.launch * gpu.clock

    @property
    def mcpu(self) -> str:
        """LLVM's name of the CPU."""
        return str(self.llvm.get("mcpu", self.name))

    @property
    def steps_dtype(self) -> str | None:
        """``int8`` or ``uint8``: what the first exact instruction that folds products with int8 weights takes."""
        for kind in ("dot4", "dot2"):
            for row in self.instructions:
                if row.kind == kind and row.signed[1] and not row.saturates:
                    return "int8" if row.signed[0] else "uint8"
        return None

    def instruction(self, kind: str, *, signed: tuple[bool, bool] | None = None) -> Instruction | None:
        """The first row of that kind (rows are listed best first), or None."""
        for row in self.instructions:
            if row.kind == kind and (signed is None or row.signed == signed):
                return row
        return None

    def record(self) -> dict[str, Any]:
        """Plain data (JSON-able) that identifies everything code generation reads: part of every cache key."""
        plain: dict[str, Any] = {}
        for key in sorted(self.__dataclass_fields__):
            value = getattr(self, key)
            if key == "instructions":
                value = [[i.name, i.kind, i.lanes, i.per_cycle] for i in value]
            elif key == "features":
                value = [f.name for f in value]
            elif isinstance(value, Gpu):
                value = value.record()
            elif isinstance(value, Tiles):
                value = [list(f) for f in value.functions]
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in sorted(value.items())}
            plain[key] = value
        return plain


def dot4(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int32 lanes, each plus the exact sum of four products of 8-bit neighbours."""
    products = a.astype(np.int32) * b.astype(np.int32)
    total: np.ndarray = np.add(acc, products.reshape(-1, 4).sum(axis=1, dtype=np.int32), dtype=np.int32)
    return total


def dot4_pairs_saturated(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As ``dot4``, but sums of two neighbours clip to int16 first (x86 ``pmaddubsw``)."""
    products = a.astype(np.int32) * b.astype(np.int32)
    pairs = np.clip(products.reshape(-1, 2).sum(axis=1), -32768, 32767)
    total: np.ndarray = np.add(acc, pairs.reshape(-1, 2).sum(axis=1, dtype=np.int32), dtype=np.int32)
    return total


def dot2(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int32 lanes, each plus the exact sum of two products of 8-bit neighbours."""
    products = a.astype(np.int32) * b.astype(np.int32)
    total: np.ndarray = np.add(acc, products.reshape(-1, 2).sum(axis=1, dtype=np.int32), dtype=np.int32)
    return total


def one_call_dot4(
    name: str, intrinsic: str, lanes: int, signed: tuple[bool, bool], per_cycle: float = 1.0
) -> Instruction:
    """The row of an instruction that multiplies, sums in fours and accumulates by itself."""
    acc = f"int32x{lanes}"
    a, b = (f"{'int8' if s else 'uint8'}x{4 * lanes}" for s in signed)
    body = Call("r", intrinsic, acc, ("acc", "a", "b"), (acc, f"int8x{4 * lanes}", f"int8x{4 * lanes}"))
    operands = (("acc", acc), ("a", a), ("b", b))
    return Instruction(name, "dot4", lanes, operands, acc, (body,), signed, dot4)


def packed(to: str, parts: Sequence[np.ndarray], zero: np.ndarray) -> np.ndarray:
    """Four int32 vectors, each lane plus ``zero``, as one vector of 8 bits that clips what it cannot hold.

    The order is that in which x86 packs: each 128 bits of the result hold 128 bits of every part.
    """
    lanes = len(parts[0])
    wide = np.stack(parts).astype(np.int64).reshape(4, lanes // 4, 4).transpose(1, 0, 2).reshape(-1) + int(zero[0])
    info = np.iinfo(to)
    return np.asarray(np.clip(wide, info.min, info.max)).astype(to)


def pack_row(name: str, to: str, lanes: int, body: tuple[Call, ...]) -> Instruction:
    """The row that packs four vectors ``a`` to ``d`` of ``lanes`` int32 each, and adds ``zero`` [int16] between."""
    operands = (*((n, f"int32x{lanes}") for n in "abcd"), ("zero", f"int16x{2 * lanes}"))

    def reference(*args: np.ndarray) -> np.ndarray:
        return packed(to, args[:4], args[4])

    return Instruction(name, f"pack.{to}", 4 * lanes, operands, f"{to}x{4 * lanes}", body, (True, True), reference)


def round_row(lanes: int) -> Instruction:
    """The row of a machine that rounds float32 to int32 in an instruction or two."""
    x, y = f"float32x{lanes}", f"int32x{lanes}"
    call = Call("r", f"llvm.lrint.v{lanes}i32.v{lanes}f32", y, ("a",), (x,))
    return Instruction(f"lrint.{lanes}", "round", lanes, (("a", x),), y, (call,), (True, True), rounded)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest int32, halves to even."""
    return np.asarray(np.rint(values)).astype(np.int32)


def table_row(name: str, intrinsic: str, parts: int, lanes: int, args: tuple[str, ...], *, wraps: bool) -> Instruction:
    """The row that reads bytes of a table: ``parts`` vectors ``t0``, ``t1``, ... side by side, by the bytes of ``i``.
    An index past the table wraps around, or gives 0."""
    kind = f"uint8x{lanes}"
    operands = (*((f"t{n}", kind) for n in range(parts)), ("i", kind))
    call = Call("r", intrinsic, kind, args, (f"int8x{lanes}",) * len(args))

    def reference(*given: np.ndarray) -> np.ndarray:
        table, index = np.concatenate(given[:-1]), given[-1]
        found = np.asarray(table[index % len(table)])
        kept: np.ndarray = found if wraps else np.where(index < len(table), found, 0).astype(np.uint8)
        return kept

    return Instruction(name, "table", lanes, operands, kind, (call,), (False, False), reference)


def pick_row(name: str, intrinsic: str, table: int, lanes: int, *, apart: bool = False) -> Instruction:
    """The row that picks ``lanes`` bytes of the ``table`` bytes in ``t`` by their numbers in ``i``. ``apart``: each 16
    bytes of the result from the 16 at the same place of ``t`` (kind ``pick16``)."""
    operands = (("t", f"uint8x{table}"), ("i", f"uint8x{lanes}"))
    call = Call("r", intrinsic, f"uint8x{lanes}", ("t", "i"), (f"int8x{table}", f"int8x{lanes}"))

    def reference(t: np.ndarray, i: np.ndarray) -> np.ndarray:
        return np.asarray(t[i + np.arange(lanes) // 16 * 16 * apart])

    kind = "pick16" if apart else "pick"
    return Instruction(name, kind, lanes, operands, f"uint8x{lanes}", (call,), (False, False), reference)


def permute_row(name: str, intrinsic: str, lanes: int, parts: int = 1) -> Instruction:
    """The row that picks ``lanes`` numbers by the low bits of ``i``: of those in ``t`` (kind ``permute``), or of those
    in ``t0`` and ``t1`` side by side (kind ``permute2``)."""
    held = ("t",) if parts == 1 else ("t0", "t1")
    operands = (*((n, f"float32x{lanes}") for n in held), ("i", f"int32x{lanes}"))
    types, kind = dict(operands), "permute" if parts == 1 else "permute2"
    args = (held[0], "i", *held[1:])
    call = Call("r", intrinsic, f"float32x{lanes}", args, tuple(types[a] for a in args))

    def reference(*given: np.ndarray) -> np.ndarray:
        return np.asarray(np.concatenate(given[:-1])[given[-1] % (lanes * parts)])

    return Instruction(name, kind, lanes, operands, f"float32x{lanes}", (call,), (True, True), reference)
