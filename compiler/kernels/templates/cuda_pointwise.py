"""Elementwise and injective regions on a GPU: a thread for each run of neighbours in the first result's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ops import OPS, Kind
from ...ops.selection import POSITIONAL
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_walk import MOST, device_nest, over, rounds_each, streaming
from ._leaves import Leaf, all_leaves
from ._rows import effort

_APART = 4.0  # times that memory's sectors are asked for where an input lies across
_LONG = 24.0  # instructions of an element from which a run has four elements at most: the text grows with both


def plan(region: Region) -> list[Plan]:
    """One plan for every region without an anchor whose results have one shape and whose indices fit 32 bits."""
    body, gpu = region.body, region.machine.gpu
    out = region.outputs[0]
    if gpu is None or any(o.type.dims != out.type.dims for o in region.outputs):
        return []
    if any(body.node(n).attrs.get("block") is not None for n in body):
        return []  # passes/weights.py spells the scales of blocks out before
    if any(o.span > MOST for o in (*region.inputs, *region.outputs)):
        return []
    if not out.type.size:
        return [Plan("cuda_pointwise", (), 0.0, detail="pointwise, nothing")]
    program, shape = serialize(region), out.type.dims
    leaves = all_leaves(region)
    placed = any(body.node(n).op in POSITIONAL for n in body)
    solo = range(len(shape)) if placed else ()
    strides = [*(list(o.strides) for o in region.outputs), *(list(s) for _, s, _ in leaves)]
    ops = sum(effort(n["op"]) for n in program["nodes"])
    wide = max(o.type.itemsize for o in (*region.inputs, *region.outputs) if o.type.size > 1 or o is out)
    nest = device_nest(gpu, shape, strides, wide, solo=solo, most=16 if ops < _LONG else 4)
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    draft = Draft(KernelSpec("cuda_pointwise", {"program": program, "nest": nest}), args, nest["blocks"])
    return [
        Plan(
            "cuda_pointwise",
            (draft,),
            cost=streaming(
                region, gpu, nest["blocks"], nest["threads"], work=max(1.0, ops), again=_again(nest, leaves)
            ),
            inplace=_same_place(region, program),
            detail=f"pointwise, {nest['lanes']} elements a thread",
        )
    ]


def _again(nest: dict[str, Any], leaves: Sequence[Leaf]) -> float:
    """How often inputs are asked for, about: neighbouring threads that read far apart ask for the same sectors."""
    inner = nest["groups"][-1][-1] if nest["groups"] else None
    far = sum(s[inner] not in (0, 1) for _, s, _ in leaves) if inner is not None else 0
    return 1.0 + _APART * far / max(1, len(leaves))


def _same_place(region: Region, program: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Results that may lie where an input does: a thread reads what it overwrites, and nobody else does."""
    moves = any(OPS[region.body.node(n).op].kind in (Kind.INJECTIVE, Kind.VIEW) for n in region.body)
    if moves or any(n["op"] == "random_bits" for n in program["nodes"]):  # which reads its key elsewhere
        return ()
    return tuple(
        (i, j)
        for j, result in enumerate(region.outputs)
        for i, source in enumerate(region.inputs)
        if source.type == result.type and source.strides == result.strides
    )


def emit(k: Any, config: dict[str, Any]) -> None:
    from ..evaluate import Evaluator

    program, nest = config["program"], config["nest"]
    inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
    outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
    ev = Evaluator(k, program, inputs)
    k.contract = not rounds_each(program)

    def run(coords: list[Any], lanes: int) -> None:
        ev.begin()
        ev.store_all(outputs, coords, lanes)

    with k.grid(nest["blocks"], nest["threads"]) as (block, thread):
        over(k, nest, block, thread, run)


TEMPLATE = Template("cuda_pointwise", ("pointwise",), plan, {"cuda_pointwise": emit}, device=True)
