"""What whole models are on GPUs, without one: their kernels' registers, local and shared memory for every architecture,
read from the machine code, and how their results agree when this CPU plays the GPU.

    python tests/cuda_figures.py                       # every model of ../shared, default and fp16, cuda-sm80
    python tests/cuda_figures.py --target cuda resnet18 path/to/model.onnx
    python tests/cuda_figures.py --agree --precision fp16 lenet
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
from nervure.compiler import device
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.pool import compile_kernels
from nervure.compiler.kernels.templates import templates
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.frontends.onnx import load
from nervure.frontends.twin import open_session
from nervure.frontends.verify import random_inputs, reference, slice_error
from nervure.targets import cubin, fatbin, get
from nervure.targets.cuda import EMULATED
from nervure.targets.machine import Machine

ALL = ("cuda-sm80", "cuda-sm87", "cuda-sm89", "cuda-sm90", "cuda")
INT8 = models.SHARED / "models" / "quantized"
DEVICE = {t.name for t in templates() if t.device}


@dataclass
class Census:
    """The kernels of one model for one target. ``local``: bytes of a thread's local memory, where spilled registers
    go; by kernel, those that have any. ``broken``: limits of an architecture that a launch does not keep."""

    model: str
    target: str
    precision: str
    seconds: dict[str, float]
    launches: int
    kernels: int
    fallback: dict[str, int]  # templates for CPUs, run task by task, and their kernels
    registers: int
    shared: int
    image_bytes: int
    const_bytes: int
    arena_bytes: int
    local: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def spilled(self) -> dict[str, int]:
        """Kernels of device templates with local memory."""
        return {k: v for k, v in self.local.items() if not any(k.startswith(f"k_{f}_") for f in self.fallback)}


def census(source: Path | Graph, target: str, precision: str = "default") -> Census:
    """Plans a model and compiles its kernels for every architecture of the target; nothing is linked."""
    machine, times = get(target), [time.perf_counter()]
    gpu = machine.gpu
    assert gpu is not None
    entry = EntryGraph(_graph(source))
    times.append(time.perf_counter())
    program, pool = plan_program([entry], machine, Options(precision))
    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        files = compile_kernels(list(pool.drafts.values()), machine, Path(folder))
        kernels = device.read_kernels(files)
    times.append(time.perf_counter())
    modules = device.compile_images(kernels, machine)
    times.append(time.perf_counter())
    drafts = {d.spec.name: d for d in pool.drafts.values()}
    cpu = Counter(d.spec.template for d in drafts.values() if d.spec.template.split(".")[0] not in DEVICE)
    spent = np.diff(times).round(2).tolist()
    found = Census(
        entry.graph.name if isinstance(source, Graph) else source.stem,
        target,
        precision,
        dict(zip(("reading", "planning", "kernels", "images"), spent, strict=True)),
        sum(len(s.phases) for e in program.entries for s in e.steps),
        len(kernels),
        dict(cpu),
        registers=0,
        shared=max((k.shared for k in kernels), default=0),
        image_bytes=sum(len(m.image) for m in modules),
        const_bytes=len(program.const),
        arena_bytes=program.regions[0].nbytes,
    )
    _read_images(found, machine, kernels, modules)
    return found


def _read_images(found: Census, machine: Machine, kernels: Sequence[device.Kernel], modules: Sequence[Any]) -> None:
    by_name = {k.name: k for k in kernels}
    seen: set[tuple[str, int]] = set()
    for module in modules:
        for image in fatbin.read(module.image):
            gpu = get(f"cuda-sm{image.architecture}").gpu if not image.ptx else None
            for name, info in cubin.kernels(image.data).items() if gpu is not None else ():
                kernel = by_name[name]
                seen.add((name, image.architecture))
                found.registers = max(found.registers, info.registers)
                if info.local:
                    found.local[name] = max(info.local, found.local.get(name, 0))
                assert gpu is not None
                found.broken += [
                    f"sm_{image.architecture}: {b}" for b in cubin.within(gpu, info, kernel.threads, kernel.shared)
                ]
    assert machine.gpu is not None
    missing = {(k, a) for k in by_name for a in machine.gpu.images} - seen
    found.broken += [f"sm_{a}: no code of {k}" for k, a in sorted(missing)]


def _graph(source: Path | Graph) -> Graph:
    return source if isinstance(source, Graph) else load(source, free_dims(source))


def free_dims(path: Path) -> dict[str, int]:
    """Every dimension of the inputs that the file leaves open, as 1."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {t.name for t in graph.initializer}
    dims = [d for i in graph.input if i.name not in stored for d in i.type.tensor_type.shape.dim]
    return {d.dim_param: 1 for d in dims if d.dim_param}


ASKED = {"default": 1e-3, "exact": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2}  # of real models on their own inputs


@dataclass
class Agreement:
    """How the results of the kernels, played by this CPU, differ from the reference's (``verify.slice_error``)."""

    model: str
    precision: str
    error: float
    limit: float
    seconds: dict[str, float]

    @property
    def holds(self) -> bool:
        return self.error <= self.limit


def agreement(
    source: Path | Graph,
    given: Mapping[str, np.ndarray] | None = None,
    precision: str = "default",
    target: str = "cuda-sm80",
) -> Agreement:
    """Runs a model on the GPU that this CPU plays. The reference is ONNX Runtime, of a graph the op table's references;
    for a quantized model its integer arithmetic, which is to be met to the bit."""
    begin = time.perf_counter()
    graph = _graph(source)
    with tempfile.TemporaryDirectory() as folder:
        artifact = compile_entries(
            [EntryGraph(graph)], get(target + EMULATED), Path(folder) / "model.so", Options(precision)
        )
        built = time.perf_counter()
        session = open_session(artifact)
        inputs = given or random_inputs(artifact.entries[0].inputs, seed=5)
        started = time.perf_counter()
        got = session.run(None, dict(inputs))
    ran = time.perf_counter()
    exact = bool(graph.find("quantize"))
    if exact or isinstance(source, Graph):
        lowered = canonicalize(graph)
        wanted = interpret(lowered, [inputs[lowered.node(k).names[0]] for k in lowered.inputs])
    else:
        wanted = reference(source, inputs)
    errors = [slice_error(y, w) for y, w in zip(got, wanted, strict=True)]
    limit = 0.0 if exact else ASKED[precision]
    name = source.name if isinstance(source, Graph) else source.stem
    return Agreement(name, precision, max(errors), limit, {"build": built - begin, "run": ran - started})


def found(name: str) -> tuple[Path, dict[str, np.ndarray] | None]:
    """A model of ../shared by its name with its input, or a file."""
    if name.endswith(".onnx"):
        held = Path(name).with_suffix(".npz")
        return Path(name), dict(np.load(held)) if held.exists() else None
    return models.model(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", help="names of ../shared/models, or files; all of them")
    parser.add_argument("--target", action="append", choices=ALL)
    parser.add_argument("--precision", action="append", choices=list(ASKED))
    parser.add_argument("--agree", action="store_true", help="run the kernels on this CPU instead of compiling them")
    parser.add_argument("--json", type=Path, help="append each row to this file")
    given = parser.parse_args()
    bad = 0
    for name in given.models or models.names():
        for precision in given.precision or ("default", "fp16"):
            for target in given.target or ("cuda-sm80",):
                bad += _row(name, precision, target, given)
    return 1 if bad else 0


def _row(name: str, precision: str, target: str, given: argparse.Namespace) -> bool:
    try:
        path, inputs = found(name)
        row: Any = agreement(path, inputs, precision, target) if given.agree else census(path, target, precision)
    except Exception as error:
        print(f"{name} {precision} {target}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        return True
    if given.json:
        with given.json.open("a") as out:
            out.write(json.dumps({"target": target, **asdict(row)}) + "\n")
    if given.agree:
        times = " ".join(f"{k} {v:.1f}" for k, v in row.seconds.items())
        print(f"{row.model} {precision} error {row.error:.2e} of {row.limit:.0e} s: {times}", flush=True)
        return not row.holds
    print(
        f"{row.model} {precision} {target} launches {row.launches} kernels {row.kernels} fallback {row.fallback} "
        f"registers {row.registers} local {row.spilled} shared {row.shared} images {row.image_bytes >> 10} KB "
        f"s: {row.seconds} {row.broken or ''}",
        flush=True,
    )
    return bool(row.broken or row.spilled)


if __name__ == "__main__":
    sys.exit(main())
