"""A compiled model as a folder that another build system takes: CMake, Arduino, Zephyr.

``files`` gives the content of such a folder, for a static library or for portable C. Names in it are C identifiers
(the model's prefix) and file names of letters, digits, ``_``, ``.`` and ``-``: nothing else comes from the model.
Layouts: CMake's find_package in config mode; Arduino's library specification 1.5 (precompiled libraries lie in
``src/{build.mcu}``, or in a folder below it that names the FPU and the float ABI); Zephyr's modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NervureError
from ..runtime.artifact import Artifact, Port
from ..targets.files import header_of

if TYPE_CHECKING:
    from .model import Model

FOLDER = Path(__file__).parent / "packaging"
# -mfpu of the cores' usual builds, by which Arduino looks for a precompiled library
FPU = {"cortex-m4": ("fpv4-sp-d16",), "cortex-m7": ("fpv5-d16", "fpv5-sp-d16"), "cortex-m33": ("fpv5-sp-d16",)}


def files(model: Model, kind: str) -> dict[str, bytes]:
    """The files of the package ``kind`` (``cmake``, ``arduino``, ``zephyr``) by their paths in its folder."""
    if kind not in KINDS:
        raise NervureError(f"package {kind!r} is unknown", hint=f"use one of: {', '.join(KINDS)}")
    if model.artifact.bare is None:
        raise NervureError(
            f"a package for {kind} holds a static library or C",
            hint="compile for a microcontroller (--target cortex-m4), or with --emit c",
        )
    made = KINDS[kind](_Parts(model))
    return {path: data if isinstance(data, bytes) else data.encode() for path, data in made.items()}


class _Parts:
    """What the packages are made of: the model's files, and the words of the templates."""

    def __init__(self, model: Model) -> None:
        artifact = model.artifact
        self.artifact, self.path = artifact, model.path
        self.source = model.path.suffix == ".c"
        self.name, self.target = artifact.prefix, str(artifact.block["machine"]["name"])
        self.library = model.path.name
        self.header = header_of(model.path).name
        for file in (self.library, self.header):
            assert re.fullmatch(r"[A-Za-z0-9_.+-]+", file), file
        self.words = {
            "name": self.name,
            "NAME": self.name.upper(),
            "target": self.target,
            "library": self.library,
            "source": self.library,
            "header": self.header,
            "entry": artifact.entries[0].name,
            "ram": str(sum(r["bytes"] for r in _regions(artifact))),
        }

    @property
    def kind(self) -> str:
        """Which templates it takes."""
        return "sources" if self.source else "library"

    def fill(self, template: str, **more: str) -> str:
        """A template with its words."""
        text = (FOLDER / template).read_text(encoding="utf-8")
        for key, value in (self.words | more).items():
            text = text.replace(f"@{key}@", value)
        return text

    def code(self, include: str, library: str, source: str) -> dict[str, bytes]:
        """The model's own files in folders of these names."""
        held = {f"{include}/{self.header}": header_of(self.path).read_bytes()}
        return held | {f"{source if self.source else library}/{self.library}": self.path.read_bytes()}


def _regions(artifact: Artifact) -> list[dict[str, int]]:
    assert artifact.bare is not None
    return list(artifact.bare["regions"])


def _cmake(parts: _Parts) -> Mapping[str, str | bytes]:
    return {
        "CMakeLists.txt": parts.fill("cmake_lists.cmake"),
        f"{parts.name}Config.cmake": parts.fill(f"cmake_{parts.kind}.cmake"),
        **parts.code("include", "lib", "src"),
    }


def _arduino(parts: _Parts) -> Mapping[str, str | bytes]:
    properties = parts.fill("arduino.properties", paragraph=_paragraph(parts))
    made: dict[str, str | bytes] = {f"examples/{parts.name}/{parts.name}.ino": _sketch(parts)}
    if parts.source:
        return made | {"library.properties": properties, **parts.code("src", "src", "src")}
    data, place = parts.path.read_bytes(), f"src/{parts.target}"
    folders = [place, *(f"{place}/{fpu}-{abi}" for fpu in FPU.get(parts.target, ()) for abi in ("hard", "softfp"))]
    link = parts.library.removeprefix("lib").removesuffix(".a")
    made["library.properties"] = properties + f"precompiled=true\nldflags=-l{link}\n"
    made[f"src/{parts.header}"] = header_of(parts.path).read_bytes()
    return made | {f"{folder}/lib{link}.a": data for folder in folders}


def _paragraph(parts: _Parts) -> str:
    form = "Portable C99." if parts.source else f"Precompiled for {parts.target}."
    return f"{form} All memory is the caller's ({parts.words['ram']} bytes), weights stay in flash."


def _sketch(parts: _Parts) -> str:
    names = [r["name"] for r in _regions(parts.artifact)]
    big, entry = parts.name.upper(), parts.artifact.entries[0]
    calls = f"{parts.name}_{entry.name}"
    inputs = [f"  // {_port(p)}: fill {calls}_input(&memory, {i})" for i, p in enumerate(entry.inputs)]
    outputs = [f"  // {_port(p)}: read {calls}_output(&memory, {i})" for i, p in enumerate(entry.outputs)]
    return parts.fill(
        "arduino.ino",
        blocks="\n".join(f"static {big}_{str(n).upper()}(block_{n});" for n in names),
        fields=", ".join(f"block_{n}" for n in names),
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
    )


def _port(port: Port) -> str:
    return f"{port.dtype}[{', '.join(map(str, port.shape))}]"


def _zephyr(parts: _Parts) -> Mapping[str, str | bytes]:
    core = f"\tdepends on CPU_{parts.target.upper().replace('-', '_')}\n\tdepends on FPU\n"
    return {
        "zephyr/module.yml": parts.fill("zephyr_module.yml"),
        "zephyr/CMakeLists.txt": parts.fill(f"zephyr_{parts.kind}.cmake"),
        "zephyr/Kconfig": parts.fill("zephyr_kconfig", depends="" if parts.source else core),
        **parts.code("include", "lib", "src"),
    }


KINDS: dict[str, Callable[[_Parts], Mapping[str, str | bytes]]] = {
    "cmake": _cmake,
    "arduino": _arduino,
    "zephyr": _zephyr,
}
