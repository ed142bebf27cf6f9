"""Build attributes of Arm objects (Addenda to the ABI for the Arm Architecture, "Build attributes", section 3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .elf import _sections, _text

ATTRIBUTES = 0x70000003  # SHT_ARM_ATTRIBUTES
VFP_ARGS, COMPATIBLE = 28, 3  # Tag_ABI_VFP_args; 3: no function hands over floating-point numbers
STRINGS = (4, 5, 32, 67)  # tags whose value is text (32: a number before it)
# what a compiler calls by itself hands over integers and addresses, or is base AAPCS on every core (__aeabi_)
PLAIN = ("memcpy", "memset", "memmove", "memcmp")


def any_float_abi(data: bytes) -> bytes:
    """An object whose interface has integers and addresses only, marked as such: it may then be linked into programs
    that hand over floating-point numbers in registers (``-mfloat-abi=hard``) and into those that do not (``softfp``).
    Unchanged where it calls a function that may take such a number."""
    if any(not (n in PLAIN or n.startswith("__aeabi_") or n.endswith("_image")) for n in _undefined(data)):
        return data
    out = bytearray(data)
    for kind, _, offset, size in _sections(data, wide=False):
        if kind == ATTRIBUTES:
            for tag, at in _values(data[offset : offset + size]):
                if tag == VFP_ARGS:
                    out[offset + at] = COMPATIBLE
    return bytes(out)


def _undefined(data: bytes) -> Iterator[str]:
    """Names of functions and data that another object must bring."""
    sections = list(_sections(data, wide=False))
    for kind, link, offset, size in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        for name, _, _, _, _, section in struct.iter_unpack("<IIIBBH", data[offset : offset + size]):
            if name and section == 0:
                yield _text(data, sections[link][2] + name)


def _values(data: bytes) -> Iterator[tuple[int, int]]:
    """``(tag, place of its value)`` of the file's attributes in a section's bytes; all values here are below 128."""
    if data[:1] != b"A" or data[5:11] != b"aeabi\0" or data[11:12] != b"\x01":
        return
    end = 11 + int.from_bytes(data[12:16], "little")
    at = 16
    while at < end:
        tag, at = _number(data, at)
        yield tag, at
        if tag == 32:
            _, at = _number(data, at)
        if tag in STRINGS:
            at = data.index(b"\0", at) + 1
        else:
            _, at = _number(data, at)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A ULEB128 number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
