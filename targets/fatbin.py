"""Fat binaries: one file with a kernel's machine code for several architectures, from which the driver takes what fits.

The layout is that of ``nvcc -fatbin -no-compress`` (CUDA 13): a header of 16 bytes, then for each image a header and
the image, padded to 8 bytes. Numbers are little-endian. PTX's header goes on with the options of its assembler, none
here: where their text lies in the header, its length, and the text.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

MAGIC = 0xBA55ED50
_HEAD = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes that follow
# Kind, version, bytes of the header, of the image, of the image compressed; where the options stand; versions; the
# architecture; place and length of a name; flags; nothing; bytes of the image decompressed.
_IMAGE = struct.Struct("<HHIQIIHHIIIQQQ")
_OPTIONS = struct.Struct("<IIQ")
_PTX, _ELF = 1, 2
_FLAGS = 0x11  # 64 bits, Linux
_ELF_VERSION = (1, 8)


class Image(NamedTuple):
    """Machine code, or PTX, for one architecture (80 for 8.0)."""

    architecture: int
    ptx: bool
    data: bytes


def write(images: Iterable[tuple[int, bool, bytes]]) -> bytes:
    """A fat binary of ``(architecture, whether PTX, bytes)``, in that order."""
    parts = []
    for number, ptx, data in images:
        major, minor = _ptx_version(data) if ptx else _ELF_VERSION
        padded = data + b"\0" * (1 if ptx else 0)
        padded += bytes(-len(padded) % 8)
        kind = _PTX if ptx else _ELF
        options = _OPTIONS.pack(_IMAGE.size + 8, 0, 0) if ptx else b""
        sizes = (_IMAGE.size + len(options), len(padded), 0, _IMAGE.size if ptx else 0)
        header = _IMAGE.pack(kind, 0x101, *sizes, minor, major, number, 0, 0, _FLAGS, 0, 0)
        parts.append(header + options + padded)
    body = b"".join(parts)
    return _HEAD.pack(MAGIC, 1, _HEAD.size, len(body)) + body


def read(data: bytes) -> list[Image]:
    """The images of a fat binary without compression; ``ValueError`` where it is none."""
    magic, _, head, size = _HEAD.unpack_from(data)
    if magic != MAGIC or head + size > len(data):
        raise ValueError("not a fat binary")
    found, at = [], head
    while at < head + size:
        kind, _, skip, nbytes, *_ = _IMAGE.unpack_from(data, at)
        number = struct.unpack_from("<I", data, at + 28)[0]
        held = data[at + skip : at + skip + nbytes]
        found.append(Image(number, kind == _PTX, held.rstrip(b"\0") if kind == _PTX else held))
        at += skip + nbytes
    return found


def _ptx_version(data: bytes) -> tuple[int, int]:
    found = re.search(rb"^\.version (\d+)\.(\d+)", data, re.M)
    if found is None:
        raise ValueError("PTX without a version")
    return int(found[1]), int(found[2])
