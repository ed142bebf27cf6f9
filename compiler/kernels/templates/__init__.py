"""The kernel table: one file a template. Adding a template is adding its file and its name here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from ..spec import Plan, Region, Template
from ._cuda_fallback import by_threads

NAMES = (
    "attention",
    "concat",
    "conv",
    "conv_grad_weight",
    "conv_transpose",
    "cuda_attention",
    "cuda_conv",
    "cuda_conv_grad_weight",
    "cuda_conv_simt",
    "cuda_conv_transpose",
    "cuda_depthwise",
    "cuda_gather",
    "cuda_gemv",
    "cuda_lookup",
    "cuda_matmul",
    "cuda_max_pool_grad",
    "cuda_move",
    "cuda_nms",
    "cuda_nonzero",
    "cuda_norm",
    "cuda_pointwise",
    "cuda_pool",
    "cuda_recurrent",
    "cuda_recurrent_integer",
    "cuda_recurrent_training",
    "cuda_reduce",
    "cuda_resize",
    "cuda_rows",
    "cuda_sample",
    "cuda_scan",
    "cuda_scatter",
    "cuda_softmax",
    "cuda_softmax_integer",
    "cuda_topk",
    "cuda_transpose",
    "depthwise",
    "dot_conv",
    "dot_depthwise",
    "dot_matmul",
    "dot_sparse",
    "dot_tiles",
    "dsp_conv",
    "dsp_depthwise",
    "dsp_few",
    "dsp_matmul",
    "gather",
    "gather_narrow",
    "helium_depthwise",
    "helium_dot",
    "helium_windows",
    "image_lanes",
    "image_lanes_grad",
    "image_winograd",
    "lookup",
    "matmul",
    "max_pool_grad",
    "narrow",
    "nms",
    "nonzero",
    "norm",
    "pad",
    "plain",
    "pointwise",
    "pool",
    "recurrent",
    "recurrent_integer",
    "recurrent_training",
    "reduce",
    "reshape",
    "resize",
    "rows",
    "sample",
    "scan",
    "scatter",
    "softmax",
    "softmax_integer",
    "sparse_blocks",
    "sparse_lanes",
    "sparse_rows",
    "tile",
    "topk",
    "transpose",
    "winograd",
    "winograd_grad_weight",
)


@cache
def templates() -> tuple[Template, ...]:
    return tuple(import_module(f".{name}", __name__).TEMPLATE for name in NAMES)


def emitter(name: str) -> Callable[..., None]:
    """The function that writes kernels of this name, ``template`` or ``template.part``."""
    return import_module(f".{name.split('.')[0]}", __name__).TEMPLATE.emitters[name]  # type: ignore[no-any-return]


def plans(region: Region) -> list[Plan]:
    """Every template's proposals for a region, cheapest first (ties by template name: deterministic). On a GPU those
    for CPUs, run task by task, are for what has no other."""
    gpu = region.machine.gpu is not None
    found = [plan for t in templates() if t.device == gpu and region.op in t.ops for plan in t.plan(region)]
    if gpu and not found:
        found = [by_threads(p) for t in templates() if not t.device and region.op in t.ops for p in t.plan(region)]
    if region.machine.readable:  # C for people: where there are plain loops, they are it
        found = [p for p in found if p.template == "plain"] or found
    return sorted(found, key=lambda p: (p.cost, p.template, p.detail))
