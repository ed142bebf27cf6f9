"""``nervure doctor``: what is installed, what is missing, and the command that brings it."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..options import Json

_USES = {
    "": "run compiled models",
    "compile": "compile models, the command line",
    "verify": "compare with ONNX Runtime",
    "cuda": "compile for Nvidia GPUs",
}


EXAMPLE = "nervure doctor --json"


def doctor_command(as_json: Json = False) -> None:
    """Say what is installed, what is missing and how to get it; the CPU, the caches, the emulators."""
    from ..console import print_json, progress

    with progress("looking around"):
        facts = examine()
    if as_json:
        return print_json(facts)
    _show(facts)


def examine() -> dict[str, Any]:
    """Everything that ``doctor`` knows; ``missing`` is a list of ``{name, use, command}``."""
    from .... import __version__

    packages = _packages()
    emulators = _emulators()
    missing = [
        {
            "name": p["name"],
            "use": _USES[p["extra"]],
            "command": f"pip install 'nervure[{p['extra']}]'" if p["extra"] else "pip install nervure",
        }
        for p in packages
        if p["version"] is None
    ]
    missing += [
        {"name": e["command"], "use": f"run programs for {', '.join(e['targets'])} here", "command": e["hint"]}
        for e in emulators
        if not e["installed"]
    ]
    return {
        "nervure": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "can": {extra or "run": all(p["version"] for p in packages if p["extra"] in ("", extra)) for extra in _USES},
        "packages": packages,
        "missing": missing,
        "cpu": cpu(),
        "gpu": gpu(),
        "cache": _cache(),
        "emulators": emulators,
    }


def cpu() -> dict[str, Any]:
    """The processor: its name, how many cores this process may use, the target that ``host`` becomes."""
    from ....errors import NervureError
    from ....targets import cpuinfo, host

    info = cpuinfo()
    name = (
        info.get("model name")
        or info.get("Model")
        or info.get("Hardware")
        or platform.processor()
        or platform.machine()
    )
    facts: dict[str, Any] = {"name": name, "cores": len(os.sched_getaffinity(0))}
    try:
        machine = host()
    except NervureError as error:
        return facts | {"host": None, "why": error.what}
    return facts | {
        "host": machine.mcpu,
        "vector_bits": machine.vector_bytes * 8,
        "features": [f.name for f in machine.features],
        "dot_products": [i.name for i in machine.instructions],
        "l1_bytes": machine.l1,
        "l2_bytes": machine.l2,
        "l3_bytes": machine.l3,
    }


def gpu() -> dict[str, Any]:
    """The Nvidia driver, its devices with the targets that run on each, and what compiles kernels; ``why`` where one of
    them is not there."""
    from dataclasses import asdict

    from ....errors import NervureError
    from ....runtime.driver import find_driver
    from ....targets import MACHINES
    from ....targets.nvrtc import compiler_version

    facts: dict[str, Any] = {"driver": None, "cuda": None, "devices": [], "compiler": None, "why": None}
    try:
        facts["compiler"] = compiler_version()
    except NervureError as error:
        facts["why"] = error.what
    try:
        driver = find_driver()
    except NervureError as error:
        return facts | {"why": error.what}
    targets = {m.name: m.gpu for m in MACHINES.values() if m.gpu is not None}
    rows = [
        asdict(d) | {"targets": [n for n, g in targets.items() if g is not None and g.runs_on(d.architecture)]}
        for d in driver.devices
    ]
    return facts | {"driver": True, "cuda": ".".join(map(str, driver.cuda)), "devices": rows}


def _packages() -> list[dict[str, Any]]:
    """The requirements of nervure itself, with what is installed; its own metadata says what they are."""
    try:
        wanted = metadata.requires("nervure") or []
    except metadata.PackageNotFoundError:
        wanted = ["numpy"]
    rows = []
    for line in wanted:
        requirement, _, marker = line.partition(";")
        found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        if not found or (extra[1] if extra else "") not in _USES:
            continue
        rows.append(
            {
                "name": found[0],
                "extra": extra[1] if extra else "",
                "wanted": requirement.strip()[len(found[0]) :].strip(),
                "version": _version(found[0]),
            }
        )
    return rows


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cache() -> dict[str, Any]:
    from ....targets.files import cache_dir

    folder = cache_dir()
    parts = {p.name: _size(p) for p in sorted(folder.iterdir()) if p.is_dir()} if folder.is_dir() else {}
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    return {
        "folder": str(folder),
        "bytes": sum(parts.values()),
        "parts": parts,
        "writable": os.access(parent, os.W_OK),
    }


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _emulators() -> list[dict[str, Any]]:
    from ....targets import get, names
    from .targets import how_it_runs

    rows: dict[str, dict[str, Any]] = {}
    for name in names()[1:]:
        machine = get(name)
        if machine.emulator is None:
            continue
        how = how_it_runs(machine)
        entry = rows.setdefault(
            machine.emulator[0],
            {"command": machine.emulator[0], "installed": how["available"], "hint": how["hint"], "targets": []},
        )
        entry["targets"].append(name)
    return list(rows.values())


def _show(facts: dict[str, Any]) -> None:
    from ..console import cell, out, row, size, table

    screen, cpu_facts, cache = out(), facts["cpu"], facts["cache"]
    screen.print(
        cell(f"nervure {facts['nervure']}, Python {facts['python']} ({facts['executable']}), {facts['system']}")
    )
    screen.print(cell(f"CPU: {cpu_facts['name']}, {cpu_facts['cores']} cores usable"))
    if cpu_facts["host"]:
        screen.print(cell(f"     target host = {cpu_facts['host']}, {cpu_facts['vector_bits']} bit vectors"))
        for line in _wrapped(cpu_facts["features"]):
            screen.print(cell(f"     {line}"))
    for line in _gpu_lines(facts["gpu"]):
        screen.print(cell(line))
    parts = ", ".join(f"{k} {size(v)}" for k, v in cache["parts"].items())
    state = "" if cache["writable"] else " (not writable: set NERVURE_CACHE_DIR)"
    screen.print(cell(f"cache: {cache['folder']}, {size(cache['bytes'])}{f' ({parts})' if parts else ''}{state}"))
    screen.print()
    made = table("packages", "package", "installed", "wanted", "for")
    for p in facts["packages"]:
        version = cell(p["version"], "green") if p["version"] else cell("missing", "red")
        row(made, p["name"], version, p["wanted"], _USES[p["extra"]])
    screen.print(made)
    screen.print()
    made = table("emulators", "program", "state", "targets")
    for e in facts["emulators"]:
        row(
            made,
            e["command"],
            cell("ready", "green") if e["installed"] else cell("missing", "red"),
            ", ".join(e["targets"]),
        )
    screen.print(made)
    screen.print()
    if not facts["missing"]:
        return screen.print(cell("nothing is missing", "green"))
    made = table("missing", "what", "needed to", "how to get it")
    for m in facts["missing"]:
        row(made, m["name"], m["use"], m["command"])
    screen.print(made)


def _gpu_lines(facts: dict[str, Any]) -> list[str]:
    from ..console import size

    compiled = f"kernels are compiled by {facts['compiler']}" if facts["compiler"] else "no compiler for kernels"
    if not facts["devices"]:
        return [f"GPU: none ({facts['why']}); {compiled}"]
    lines = [f"GPU: driver for CUDA {facts['cuda']}; {compiled}"]
    for d in facts["devices"]:
        about = f"sm_{d['architecture']}, {d['multiprocessors']} multiprocessors, {size(d['memory'])}"
        runs = f"runs {', '.join(d['targets'])}" if d["targets"] else "no target is for it"
        lines.append(f"     {d['number']}: {d['name']}, {about}; {runs}")
    return lines


def _wrapped(words: list[str], width: int = 90) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(words), width) or ["no features beyond the baseline"]
