"""C names for a Program's parts. Names from a model are hostile until they have been through here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

# First words of functions that the C library and POSIX own: a model of that name gets another prefix.
_C_WORDS = """
aligned at atomic clock cnd context dirent div dl dprintf fe fd fork futex getaddrinfo host if inet main mem mq mtx
nervure net netlink poll posix pthread rt sched sem shm sig sigaction socket std strto sys thrd time timer tss utime
wait wcs
"""
TAKEN = frozenset(_C_WORDS.split())
_API_WORDS = """
const_image param_image state_image init clock context context_bytes create create_in destroy entry export import input
output param params_changed profile reset restore run state status status_text
ok null memory alignment threads thread_start busy buffer forked space damaged foreign feature regions params states h
params_bytes states_bytes derived_bytes export_bytes
buffer_address buffer_copy buffer_create buffer_export buffer_release create_on device device_bytes device_input
device_output fetch run_on stream wait
driver old_driver no_device architecture device_memory old_copy shared_device_bytes pinned_bytes
"""
API = frozenset(_API_WORDS.split())


class Named(Protocol):
    """A Program, or an artifact that was made of one."""

    @property
    def name(self) -> str: ...

    @property
    def entries(self) -> Sequence[Any]: ...


def identifier(text: str, limit: int = 40) -> str:
    """Lower-case letters, digits and single underscores, never empty, never starting with a digit."""
    clean = re.sub(r"_+", "_", re.sub(r"[^a-z0-9]", "_", text.lower())).strip("_")[:limit].strip("_")
    return clean if clean and not clean[0].isdigit() else f"n{clean}"


def distinct(texts: Iterable[str], reserved: frozenset[str] = frozenset()) -> list[str]:
    """An identifier for each text, made distinct by a number where two fall together."""
    used = set(reserved)
    names: list[str] = []
    for text in texts:
        base = name = identifier(text)
        number = 1
        while name in used:
            number += 1
            name = f"{base}_{number}"
        used.add(name)
        names.append(name)
    return names


def prefix(program: Named) -> str:
    """What every public C name of the artifact starts with."""
    return prefix_of(program.name)


def prefix_of(text: str) -> str:
    """The same of an artifact that is called ``text``."""
    name = identifier(text)
    return f"{name}_model" if name in TAKEN else name


def entry_names(program: Named) -> list[str]:
    """The C name of each entry behind the prefix; ``NAME_input`` and ``NAME_output`` are free beside it."""
    names = distinct((e.name for e in program.entries), API)
    slots = frozenset(f"{n}_{kind}" for n in names for kind in ("input", "output"))
    return names if slots.isdisjoint(names) else distinct((e.name for e in program.entries), API | slots)


def comment(text: str, limit: int = 90) -> str:
    """Text that is inert in a C comment and in a string literal."""
    clean = re.sub(r"[^A-Za-z0-9_ .,:;=+\-()\[\]|/]", "_", text).replace("/", "|")
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."
