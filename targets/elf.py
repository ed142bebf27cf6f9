"""A small reader of ELF shared libraries: what one needs, exports and weighs."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dynamic:
    """``needed`` libraries, ``exported`` and ``undefined`` symbols of a shared library, each sorted."""

    needed: tuple[str, ...]
    exported: tuple[str, ...]
    undefined: tuple[str, ...]


def dynamic(data: bytes) -> Dynamic:
    """Reads ``.dynamic`` and ``.dynsym``; ``ValueError`` for what is not a little-endian ELF library."""
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise ValueError("not a little-endian ELF file")
    wide = data[4] == 2
    sections = list(_sections(data, wide))
    needed: list[str] = []
    exported: list[str] = []
    undefined: list[str] = []
    for kind, link, offset, size in sections:
        if kind == 6:  # SHT_DYNAMIC
            strings = sections[link][2]
            for tag, value in struct.iter_unpack("<qQ" if wide else "<iI", data[offset : offset + size]):
                if tag == 1:
                    needed.append(_text(data, strings + value))
        elif kind == 11:  # SHT_DYNSYM
            strings = sections[link][2]
            for symbol in struct.iter_unpack("<IBBHQQ" if wide else "<IIIBBH", data[offset : offset + size]):
                name, place = symbol[0], symbol[3 if wide else 5]
                if name:
                    (undefined if place == 0 else exported).append(_text(data, strings + name))
    return Dynamic(tuple(sorted(needed)), tuple(sorted(exported)), tuple(sorted(undefined)))


def functions(data: bytes) -> list[tuple[str, int, int]]:
    """``(name, address, size)`` of every function in a program's symbol table."""
    wide = data[4] == 2
    sections = list(_sections(data, wide))
    found = []
    for kind, link, offset, size in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        for symbol in struct.iter_unpack("<IBBHQQ" if wide else "<IIIBBH", data[offset : offset + size]):
            info = symbol[1 if wide else 3]
            at, length = symbol[4:6] if wide else symbol[1:3]
            if info & 15 == 2:  # STT_FUNC
                found.append((_text(data, sections[link][2] + symbol[0]), at, length))
    return sorted(found)


def _sections(data: bytes, wide: bool) -> list[tuple[int, int, int, int]]:
    """``(type, link, file offset, size)`` of each section."""
    if wide:
        (start,) = struct.unpack_from("<Q", data, 40)
        width, count = struct.unpack_from("<HH", data, 58)
        rows = [struct.unpack_from("<IIQQQQI", data, start + i * width) for i in range(count)]
    else:
        (start,) = struct.unpack_from("<I", data, 32)
        width, count = struct.unpack_from("<HH", data, 46)
        rows = [struct.unpack_from("<IIIIIII", data, start + i * width) for i in range(count)]
    return [(r[1], r[6], r[4], r[5]) for r in rows]


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii", "replace")


def section_bytes(data: bytes) -> dict[str, int]:
    """Bytes of a 32-bit object that end up in a program: ``code``, ``constants``, and ``writable``."""
    total = {"code": 0, "constants": 0, "writable": 0}
    (start,) = struct.unpack_from("<I", data, 32)
    width, count = struct.unpack_from("<HH", data, 46)
    for i in range(count):
        flags, size = (struct.unpack_from("<I", data, start + i * width + at)[0] for at in (8, 20))
        if flags & 2:  # SHF_ALLOC
            total["code" if flags & 4 else "writable" if flags & 1 else "constants"] += size
    return total


def made_local(data: bytes, names: Collection[str]) -> bytes:
    """A 32-bit object whose symbols of these names are its own: two such objects may be linked into one program. Local
    symbols stand first in a table (System V ABI, chapter 4), so relocations are renumbered."""
    out, sections = bytearray(data), list(_sections(data, wide=False))
    table = next(i for i, s in enumerate(sections) if s[0] == 2)  # SHT_SYMTAB
    _, link, offset, size = sections[table]
    rows = [data[at : at + 16] for at in range(offset, offset + size, 16)]

    def own(row: bytes) -> bool:
        name, _, _, info, _, section = struct.unpack("<IIIBBH", row)
        return info >> 4 == 0 or (section != 0 and _text(data, sections[link][2] + name) in names)

    order = sorted(range(len(rows)), key=lambda i: not own(rows[i]))
    place = {old: new for new, old in enumerate(order)}
    changed = [rows[i][:12] + bytes([rows[i][12] & 15 if own(rows[i]) else rows[i][12]]) + rows[i][13:] for i in order]
    out[offset : offset + size] = b"".join(changed)
    (start,) = struct.unpack_from("<I", data, 32)
    (width,) = struct.unpack_from("<H", data, 46)
    struct.pack_into("<I", out, start + table * width + 28, sum(map(own, rows)))  # sh_info: the first global one
    for kind, _, at, length in sections:
        for entry in range(at, at + length, 8) if kind == 9 else ():  # SHT_REL
            (info,) = struct.unpack_from("<I", out, entry + 4)
            struct.pack_into("<I", out, entry + 4, place[info >> 8] << 8 | info & 255)
    return bytes(out)
