"""What a cubin says about its kernels: registers, shared memory, local memory. No GPU and no tool is needed.

A cubin is an ELF file. Section ``.nv.info`` holds records of all kernels, ``.nv.info.NAME`` those of one: a byte of
format, a byte of attribute, and 16 bits that are the value or the size of what follows. Their meaning is as
``cuobjdump -elf`` (CUDA Binary Utilities) prints it: ``EIATTR_REGCOUNT``, ``EIATTR_FRAME_SIZE``,
``EIATTR_MIN_STACK_SIZE``, ``EIATTR_MAX_THREADS``. Section ``.nv.shared.NAME`` is as large as the kernel's arrays in
shared memory, and 1 KB more where the system has that for itself (compute capability 9.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .gpu import Gpu

_SIZED = 4  # a format: the 16 bits are a size
_MAX_THREADS, _FRAME_SIZE, _MIN_STACK_SIZE, _REGCOUNT = 0x05, 0x11, 0x12, 0x2F
_RESERVED = ".nv.shared.reserved.0"
_RESERVED_BYTES = 1024
_UNIT = 8  # registers of a thread are handed out in so many


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One kernel: ``registers`` of a thread; bytes of a block's ``shared`` memory that is not asked for at the launch;
    ``local``, a thread's bytes of local memory: spilled registers and arrays that found no registers; ``stack``, these
    and what functions it calls have; ``threads``, the most a block may have by its launch bounds (0: no bound)."""

    name: str
    registers: int
    shared: int
    local: int
    stack: int
    threads: int


def architecture(data: bytes) -> int:
    """The compute capability that a cubin is for: 80 for 8.0."""
    flags = int(struct.unpack_from("<I", data, 48)[0])
    return flags >> 8 & 0xFF if data[8] >= 8 else flags & 0xFF  # by the version of Nvidia's ABI


def kernels(data: bytes) -> dict[str, KernelInfo]:
    """The kernels of a cubin by name; ``ValueError`` for what is none."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a cubin")
    sections = {name: (offset, size) for name, offset, size in _sections(data)}
    symbols = _symbols(data, *sections[".symtab"], sections[".strtab"][0])
    found: dict[str, dict[int, int]] = {}
    for attribute, payload in _records(data, *sections[".nv.info"]):
        if len(payload) == 8:
            symbol, value = struct.unpack("<II", payload)
            found.setdefault(symbols[symbol], {})[attribute] = value
    return {n: _kernel(data, n, found[n], sections) for n in sorted(found) if f".text.{n}" in sections}


def within(gpu: Gpu, info: KernelInfo, threads: int, shared: int) -> list[str]:
    """What of the architecture's limits a launch of blocks of ``threads`` with ``shared`` bytes, asked for at the
    launch, breaks: sentences, none where it keeps within all."""
    warps = -(-threads // gpu.warp)
    registers = -(-info.registers // _UNIT) * _UNIT * gpu.warp * warps
    most = min(gpu.threads, info.threads or gpu.threads)
    limits = (
        (info.registers, gpu.registers_most, "registers of a thread"),
        (registers, gpu.registers, "registers of a block"),
        (threads, most, "threads of a block"),
        (info.shared, gpu.shared_static, "bytes of static shared memory"),
        (info.shared + shared, gpu.shared, "bytes of shared memory"),
    )
    return [f"{info.name}: {have} {what}, at most {limit}" for have, limit, what in limits if have > limit]


def _kernel(data: bytes, name: str, found: dict[int, int], sections: dict[str, tuple[int, int]]) -> KernelInfo:
    shared = sections.get(f".nv.shared.{name}", (0, 0))[1]
    if _RESERVED in sections and shared >= _RESERVED_BYTES:
        shared -= _RESERVED_BYTES
    threads = 0
    for attribute, payload in _records(data, *sections.get(f".nv.info.{name}", (0, 0))):
        if attribute == _MAX_THREADS:
            x, y, z = struct.unpack("<III", payload)
            threads = x * y * z
    local, stack = found.get(_FRAME_SIZE, 0), found.get(_MIN_STACK_SIZE, 0)
    return KernelInfo(name, found[_REGCOUNT], shared, local, max(local, stack), threads)


def _records(data: bytes, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """``(attribute, bytes)`` of a section ``.nv.info``."""
    at = offset
    while at < offset + size:
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        extra = value if form == _SIZED else 0
        yield attribute, data[at + 4 : at + 4 + extra] if extra else struct.pack("<H", value)
        at += 4 + extra


def _sections(data: bytes) -> Iterator[tuple[str, int, int]]:
    """``(name, file offset, size)`` of each section."""
    start = struct.unpack_from("<Q", data, 40)[0]
    each, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, start + i * each) for i in range(count)]
    for name, _, _, _, offset, size in islice(headers, 1, None):
        yield _text(data, headers[names][4] + name), offset, size


def _symbols(data: bytes, offset: int, size: int, strings: int) -> list[str]:
    return [_text(data, strings + s[0]) for s in struct.iter_unpack("<IBBHQQ", data[offset : offset + size])]


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
