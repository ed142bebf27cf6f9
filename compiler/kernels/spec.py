"""What the compiler asks of a template, and what a template answers: data that crosses to the worker processes.

A template is one file in ``templates/``. On the compiler's side its planner reads a ``Region`` (a fused operation with
the memory strides of its tensors) and a machine and proposes ``Plan``s; the cheapest wins. On the worker's side its
emitters write the kernel of one ``KernelSpec`` through a ``Builder``. Neither imports TVM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from ...targets.machine import Machine
from ..ir import Graph, Value
from ..ops import OPS, Kind
from ..types import TensorType

INLINED = ("copy", "transpose", "slice", "expand")  # movement that kernels read through (functions.MOVES)


@dataclass(frozen=True)
class Operand:
    """One tensor at the border of a region: logical type, element strides for each logical axis (what the layout
    pass chose; a view's strides are its base's), and the array where it is a constant. ``aligned``: bytes (a power of
    two, 16 at most) that the first element's address is a multiple of, for loads of several elements."""

    type: TensorType
    strides: tuple[int, ...]
    const: np.ndarray | None = None
    aligned: int = 16

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both counted: the extent a kernel may touch."""
        if not all(self.type.dims):
            return 0
        return 1 + sum((d - 1) * abs(s) for d, s in zip(self.type.dims, self.strides, strict=True))


@dataclass(frozen=True)
class Region:
    """A fused operation. ``body`` is its graph: elementwise work before the anchor, the anchor (a contraction,
    reduction, ... or none), elementwise work after it. ``inputs`` and ``outputs`` go with the body's.

    Several anchors are reductions over the same axes (``op`` is then ``reductions``), as is one whose result goes back
    to the rows that it is of."""

    body: Graph
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    machine: Machine
    exact: bool = False  # no Winograd, no approximations
    fast: bool = False  # on GPUs: factors of products rounded to TF32
    small: bool = False  # prefer few bytes over speed
    tuned: Mapping[str, Any] = field(default_factory=dict)  # measured choices, from a tuning record

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """The body's nodes that an evaluator cannot inline (neither elementwise nor one of ``INLINED``), in order."""
        fused = (Kind.STORED, Kind.ELEMENTWISE)
        nodes = [(n, self.body.node(n).op) for n in self.body]
        return tuple(n for n, op in nodes if OPS[op].kind not in fused and op not in INLINED)

    @cached_property
    def anchor(self) -> int | None:
        """The first (mostly the only) anchor, if any."""
        return self.anchors[0] if self.anchors else None

    @cached_property
    def op(self) -> str:
        """The anchor's operator, ``pointwise`` or ``reductions``."""
        if self.anchor is None:
            return "pointwise"
        op = self.body.node(self.anchor).op
        spread = op.startswith("reduce_") and any(o.type.size > self.anchor_type.size for o in self.outputs)
        return "reductions" if len(self.anchors) > 1 or spread else op

    @property
    def attrs(self) -> Mapping[str, Any]:
        return {} if self.anchor is None else self.body.node(self.anchor).attrs

    @cached_property
    def operands(self) -> tuple[int | None, ...]:
        """For each input of the anchor the region input that feeds it directly; None if it is absent or computed."""
        assert self.anchor is not None
        inputs = self.body.inputs
        args = self.body.args(self.anchor)
        return tuple(inputs.index(a.node) if a is not None and a.node in inputs else None for a in args)

    def operand(self, arg: int) -> int | None:
        """``operands[arg]``; None where the anchor has fewer inputs."""
        return self.operands[arg] if arg < len(self.operands) else None

    def follows(self, output: int, source: int) -> bool:
        """Whether each element of a result is computed from that element of an input, not only through an anchor."""
        stack, seen = [self.body.outputs[output].node], set()
        while stack:
            node = stack.pop()
            if node == self.body.inputs[source]:
                return True
            if node not in seen and node not in self.anchors:
                stack += self.body.nx.predecessors(node)
            seen.add(node)
        return False

    @cached_property
    def anchor_type(self) -> TensorType:
        """The type of the anchor's first output."""
        assert self.anchor is not None
        return self.body.type(Value(self.anchor))


@dataclass(frozen=True)
class Arg:
    """What a kernel's pointer argument points at: ``in``/``out`` (region operand ``index``), ``const`` (packed array
    ``index`` of the plan), ``shared`` (scratch of the step), ``worker`` (each worker's own) or ``derived`` (what was
    prepared elsewhere) at ``offset`` bytes."""

    kind: str
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class KernelSpec:
    """One kernel, wholly described by JSON values; its name is a digest, so equal kernels are made once."""

    template: str
    config: Mapping[str, Any]

    @cached_property
    def canonical(self) -> str:
        return json.dumps([self.template, self.config], sort_keys=True, separators=(",", ":"))

    @cached_property
    def name(self) -> str:
        """The C symbol."""
        digest = hashlib.sha256(self.canonical.encode()).hexdigest()[:16]
        return f"k_{self.template.replace('.', '_')}_{digest}"


@dataclass(frozen=True)
class Draft:
    """One phase of a plan. ``tasks`` is the extent of the kernel's parallel loop; None when it has none. A phase that
    does nothing but prepare weights, in a part of the shared scratch that is its last argument and that no other phase
    writes, says how many bytes those are (``prepares``): it need not run again until the weights change. One that only
    copies input i to output j (``copies``) is left out where both lie in one place."""

    spec: KernelSpec
    args: tuple[Arg, ...]
    tasks: int | None = None
    prepares: int = 0
    copies: tuple[int, int] | None = None


@dataclass(frozen=True)
class Plan:
    """How one template would do one region."""

    template: str
    phases: tuple[Draft, ...]
    cost: float  # estimated nanoseconds on one core: what plans are compared by
    consts: tuple[np.ndarray, ...] = ()  # packed weights, in the layout the kernel wants
    shared_bytes: int = 0
    worker_bytes: int = 0
    inplace: tuple[tuple[int, int], ...] = ()  # (input, output) pairs that may share one buffer
    detail: str = ""  # template and tile, for reports
    # (input, output, lead): the output may lie over the input where it starts ``lead`` bytes or more before it: each
    # byte is written after the last read of what lay there. The kernels must not be told that nothing overlaps.
    overlaps: tuple[tuple[int, int, int], ...] = ()


Planner = Callable[[Region], Sequence[Plan]]


@dataclass(frozen=True)
class Template:
    """One row of the kernel table: which operators it serves, its planner and its emitters by kernel name."""

    name: str
    ops: tuple[str, ...]
    plan: Planner
    emitters: Mapping[str, Callable[..., None]]  # spec.template -> emit(builder, config)
    device: bool = False  # for a GPU (its builder is a device.DeviceBuilder), not for CPUs


def deferred(module: str, name: str = "emit") -> Callable[..., None]:
    """An emitter of ``templates/MODULE.py``, which imports TVM: it is loaded when a kernel is written, in a worker."""

    def emit(k: Any, config: Mapping[str, Any]) -> None:
        getattr(import_module(f"{__package__}.templates.{module}"), name)(k, config)

    return emit


def machine_key(machine: Machine) -> str:
    """The part of a machine that decides a kernel's bytes, as canonical JSON."""
    return json.dumps(machine.record(), sort_keys=True, separators=(",", ":"))
