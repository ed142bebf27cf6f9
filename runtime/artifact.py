"""An artifact read as a file: what a compiled model says about itself, before any of its code is loaded.

A model library carries one ELF note (section ``.note.nervure``, owner ``nervure``, type 1): 32 bytes SHA-256 of the
whole file with these bytes zero, then canonical JSON. ELF: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import NervureError
from .driver import find_driver

FORMAT = 2
DIGEST_BYTES = 32
OWNER = b"nervure\0"
AR = b"!<arch>\n"
MACHINES = {62: "x86-64", 183: "aarch64", 40: "arm", 243: "riscv"}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: ``shape`` in elements, ``dtype`` in numpy's words (``bfloat16`` is held as uint16).

    ``count`` is the index of the output that says how many rows along ``count_axis`` are valid, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int | None = None
    count_axis: int = 0

    @property
    def type(self) -> str:
        """ONNX Runtime's word for it, e.g. ``tensor(float)``."""
        short = {"float32": "float", "float64": "double"}.get(self.dtype, self.dtype)
        return f"tensor({short})"


@dataclass(frozen=True, slots=True)
class Stored:
    """A parameter or state."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point. ``arena_bytes`` are its regions, ``worker_bytes`` come on top for each further thread."""

    name: str
    function: str
    bindings: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[dict[str, Any], ...]
    region_bytes: tuple[int, ...]
    worker_bytes: int
    lower_bound: int

    def arena_bytes(self, threads: int = 1) -> int:
        """Everything that a run needs beside weights and states: regions and the scratch of the workers."""
        return sum(self.region_bytes) + max(threads - 1, 0) * self.worker_bytes


@dataclass(frozen=True)
class Artifact:
    """A verified model library. ``block`` is the JSON that it carries; the rest is read from it."""

    path: Path
    size: int
    digest: str  # of all bytes but its own
    bits: int
    machine: int
    block: dict[str, Any]
    entries: tuple[Entry, ...]
    params: tuple[Stored, ...]
    states: tuple[Stored, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, read anew."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def name(self) -> str:
        """What the model is called: its file's or network's name, or what the compile was told."""
        return str(self.block["name"])

    @property
    def prefix(self) -> str:
        """What its C functions start with."""
        return str(self.block["prefix"])

    @property
    def meta(self) -> dict[str, Any]:
        """Free facts: versions, options; ``training`` says what ``Trainer`` must know."""
        return dict(self.block.get("meta", {}))

    @property
    def weights_bytes(self) -> int:
        """Constants and parameters in the file."""
        return int(self.block["weights_bytes"])

    @property
    def params_bytes(self) -> int:
        """RAM of the parameters of a context."""
        return int(self.block["params_bytes"])

    @property
    def states_bytes(self) -> int:
        """RAM of the states of a context."""
        return int(self.block["states_bytes"])

    @property
    def derived_bytes(self) -> int:
        """RAM of what a context derives from its parameters and keeps (packed weights, folded scales)."""
        return int(self.block["derived_bytes"])

    def context_bytes(self, threads: int = 1) -> int:
        """All RAM of a context: parameters, states, what is derived, arena, workers."""
        return int(self.block["context_bytes"]) + max(threads - 1, 0) * int(self.block["context_worker_bytes"])

    def ram(self, threads: int = 1) -> dict[str, int]:
        """Bytes that stay (``parameters``, ``states``, ``derived``), then those of the arena that each entry needs
        while it runs, by name."""
        kept = {"parameters": self.params_bytes, "states": self.states_bytes, "derived": self.derived_bytes}
        return kept | {f"arena of {e.name}": e.arena_bytes(threads) for e in self.entries}

    @property
    def export_bytes(self) -> int:
        """Size of the blob that holds all parameters and states."""
        return int(self.block["export_bytes"])

    @property
    def bare(self) -> dict[str, Any] | None:
        """Of a static library for a machine without an operating system: ``align``, ``regions`` (C name and bytes of
        the caller's blocks), ``kept_bytes`` (of the first: what stays), ``flash`` (bytes of ``code``, ``constants``,
        ``weights``). None for others."""
        return self.block.get("bare")

    @property
    def gpu(self) -> dict[str, Any] | None:
        """Of a model for a GPU: ``architectures`` (80 for 8.0) that it holds machine code for, ``ptx`` (that of its
        PTX, or None), ``kernels`` (name: blocks, threads, bytes of shared memory), ``image_bytes``;
        ``device_bytes`` and ``pinned_bytes`` (page-locked memory of the host) of each context, ``shared_bytes`` of
        all together (weights); ``emulated`` where this CPU plays the GPU; its ``driver``. None for others."""
        return self.block.get("gpu")

    @property
    def code_bytes(self) -> int:
        """The file without the images of constants, parameters and states; of a static library its code and the
        constants of that, which is what takes flash."""
        if self.bare is not None:
            return int(self.bare["flash"]["code"]) + int(self.bare["flash"]["constants"])
        return self.size - int(self.block["image_bytes"])

    def entry(self, name: str) -> Entry:
        """The entry of that name, or the first of that function."""
        for entry in self.entries:
            if name == entry.name:
                return entry
        for entry in self.entries:
            if name == entry.function:
                return entry
        raise NervureError(
            f"the model has no entry point {name!r}",
            where=str(self.path),
            hint=f"it has: {', '.join(e.name for e in self.entries)}",
        )

    def check_host(self) -> None:
        """``NervureError`` where this machine cannot run it: another architecture, a CPU without its features, or
        no driver or device where it is for a GPU."""
        bits, machine = host_machine()
        if (self.bits, self.machine) != (bits, machine):
            made = self.block["machine"]["name"]
            raise NervureError(
                f"this model was compiled for {MACHINES.get(self.machine, 'another machine')} ({made}), "
                f"this machine is {MACHINES.get(machine, platform.machine())}",
                where=str(self.path),
                hint="compile it for this machine, or run it where it belongs",
            )
        there = cpu_features()
        lacking = [f for f in self.block["machine"]["features"] if f not in there]
        if there and lacking:
            raise NervureError(
                f"this CPU lacks {', '.join(lacking[:8])}",
                where=str(self.path),
                why=f"the model was compiled for {self.block['machine']['name']} ({self.block['machine']['mcpu']})",
                hint="compile it with --target host on this machine, or for a plainer target such as x86-64-v3",
            )
        if self.gpu is not None:
            find_driver(self.gpu["driver"])


def host_machine() -> tuple[int, int]:
    """ELF class (bits) and machine number of the running Python."""
    bits = 64 if sys.maxsize > 1 << 32 else 32
    kind = platform.machine().lower()
    if kind in ("x86_64", "amd64"):
        return bits, 62 if bits == 64 else 3
    if kind in ("aarch64", "arm64"):
        return bits, 183 if bits == 64 else 40
    return bits, 40 if kind.startswith("arm") else 0


def cpu_features() -> frozenset[str]:
    """Feature names of the first processor in /proc/cpuinfo; empty where that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def read_artifact(path: str | Path) -> Artifact:
    """Reads and verifies a model library made for any machine, without loading it.

    ``NervureError`` says what is wrong: not there, not a model, cut short, changed after it was made, too new.
    """
    path = Path(path)
    try:
        data = _map(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise NervureError("cannot read the model", where=str(path), why=why) from error
    bits, machine, note = find_note(path, data)
    verify_digest(path, data, note)
    block = _block(path, data[note[0] + DIGEST_BYTES : note[0] + note[1]])
    if block.get("format") != FORMAT:
        raise NervureError(
            f"the model's format is {block.get('format')!r}, this nervure reads {FORMAT}",
            where=str(path),
            hint="compile it again, or use the nervure that made it",
        )
    return described(path, len(data), data[note[0] : note[0] + DIGEST_BYTES].hex(), bits, machine, block)


def described(path: Path, size: int, digest: str, bits: int, machine: int, block: dict[str, Any]) -> Artifact:
    """The artifact that ``block`` describes; ``NervureError`` where that is broken."""
    try:
        return Artifact(
            path=path,
            size=size,
            digest=digest,
            bits=bits,
            machine=machine,
            block=block,
            entries=tuple(_entry(e) for e in block["entries"]),
            params=tuple(_stored(s) for s in block["params"]),
            states=tuple(_stored(s) for s in block["states"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NervureError("the model's description is broken", where=str(path), why=repr(error)) from error


def _map(path: Path) -> bytes | mmap.mmap:
    """The file's bytes, mapped: the loader will map the same pages, so that they are in memory once."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a file")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def digest_of(data: bytes | mmap.mmap, at: int) -> bytes:
    """SHA-256 of ``data`` with the digest's own place, 32 bytes at ``at``, taken as zero."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(bytes(DIGEST_BYTES))
    digest.update(view[at + DIGEST_BYTES :])
    return digest.digest()


def verify_digest(path: Path, data: bytes | mmap.mmap, note: tuple[int, int]) -> None:
    """``NervureError`` where the digest at ``note`` (offset, size) is not that of all other bytes."""
    at = note[0]
    if digest_of(data, at) != data[at : at + DIGEST_BYTES]:
        raise NervureError(
            "the model file is corrupted",
            where=str(path),
            why="its bytes do not match the digest that it carries",
            hint="copy or compile it again",
        )


def find_note(path: Path, data: bytes | mmap.mmap) -> tuple[int, int, tuple[int, int]]:
    """ELF class in bits, machine, and (offset, size) of the note's contents."""
    if data[:8] == AR:
        return _archived(path, data)
    if data[:4] != b"\x7fELF":
        what = "the file is empty" if not data else "this is not a model library (not an ELF file)"
        raise NervureError(what, where=str(path), hint="give the .so that nervure compile wrote")
    try:
        wide = {1: False, 2: True}[data[4]]
        if data[5] != 1:
            _cut(path)
        machine, program_headers, width, count, sections_end = _header(data, wide)
        for i in range(count):
            fields = struct.unpack_from("<IIQQQQQQ" if wide else "<IIIIIIII", data, program_headers + i * width)
            kind, offset, size = (fields[0], fields[2], fields[5]) if wide else (fields[0], fields[1], fields[4])
            if offset + size > len(data):
                _cut(path)
            found = _note(data, offset, size) if kind == 4 else None
            if found:
                if sections_end > len(data):
                    _cut(path)
                return 64 if wide else 32, machine, found
    except (struct.error, IndexError, KeyError, OverflowError):
        _cut(path)
    raise NervureError("this library is not a nervure model", where=str(path), why="it carries no nervure note")


def _archived(path: Path, data: bytes | mmap.mmap) -> tuple[int, int, tuple[int, int]]:
    """The same of a static library: an ``ar`` file of 32-bit ELF objects, one of which holds the note in a section."""
    at, machine = len(AR), 0
    try:
        while at < len(data):
            size = int(data[at + 48 : at + 58])
            start, end = at + 60, at + 60 + size
            if end > len(data):
                _cut(path)
            if data[start : start + 5] == b"\x7fELF\x01":
                (machine,) = struct.unpack_from("<H", data, start + 18)
                (table,) = struct.unpack_from("<I", data, start + 32)
                width, count = struct.unpack_from("<HH", data, start + 46)
                for i in range(count):
                    kind, _, _, offset, length = struct.unpack_from("<IIIII", data, start + table + i * width + 4)
                    found = _note(data, start + offset, length) if kind == 7 else None
                    if found:
                        return 32, machine, found
            at = end + size % 2
    except (struct.error, ValueError):
        _cut(path)
    raise NervureError("this library is not a nervure model", where=str(path), why="it carries no nervure note")


def _header(data: bytes | mmap.mmap, wide: bool) -> tuple[int, int, int, int, int]:
    """Machine, offset, width and count of the program headers, and the file's end by the section headers."""
    (machine,) = struct.unpack_from("<H", data, 18)
    start, sections = struct.unpack_from("<QQ" if wide else "<II", data, 32 if wide else 28)
    width, count, section_width, section_count = struct.unpack_from("<HHHH", data, 54 if wide else 42)
    return machine, start, width, count, sections + section_width * section_count


def _note(data: bytes | mmap.mmap, offset: int, size: int) -> tuple[int, int] | None:
    end = offset + size
    while offset + 12 <= end:
        name_size, content_size, kind = struct.unpack_from("<III", data, offset)
        content = offset + 12 + -(-name_size // 4) * 4
        if data[offset + 12 : offset + 12 + name_size] == OWNER and kind == 1 and content_size >= DIGEST_BYTES:
            return (content, content_size) if content + content_size <= len(data) else None
        offset = content + -(-content_size // 4) * 4
    return None


def _cut(path: Path) -> NoReturn:
    raise NervureError(
        "the model file is truncated or damaged",
        where=str(path),
        why="it ends before its own header says",
        hint="copy or compile it again",
    ) from None


def _block(path: Path, text: bytes) -> dict[str, Any]:
    try:
        block = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NervureError("the model's description is broken", where=str(path), why=str(error)) from error
    return block if isinstance(block, dict) else {}


def _port(row: dict[str, Any]) -> Port:
    return Port(row["name"], row["dtype"], tuple(row["shape"]), row.get("count"), row.get("count_axis", 0))


def _stored(row: dict[str, Any]) -> Stored:
    return Stored(row["name"], row["dtype"], tuple(row["shape"]))


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        name=row["name"],
        function=row["function"],
        bindings=dict(row["bindings"]),
        inputs=tuple(_port(p) for p in row["inputs"]),
        outputs=tuple(_port(p) for p in row["outputs"]),
        steps=tuple(row["steps"]),
        region_bytes=tuple(row["region_bytes"]),
        worker_bytes=int(row["worker_bytes"]),
        lower_bound=int(row["lower_bound"]),
    )
