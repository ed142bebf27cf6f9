"""What a step is, in the words of a C programmer: a name for its kernel, the shapes that it works on, its products."""

from __future__ import annotations

from typing import Any

from ..kernels.spec import Region
from ..ops import OPS, Call
from ..types import TensorType

_PRODUCTS = ("conv", "conv_integer", "conv_transpose", "matmul", "matmul_integer", "attention")


def about(region: Region) -> dict[str, Any]:
    """``kernel``: words such as ``conv_3x3_s2_48x48x8``; ``shapes``: operands and results; ``macs``: products that are
    summed up, 0 for what does not."""
    return {"kernel": "_".join(_words(region)), "shapes": _shapes(region), "macs": _macs(region)}


def _words(region: Region) -> list[str]:
    words, body = [region.op], region.body
    if region.anchor is None:
        names = [body.node(n).op for n in body.order() if body.node(n).op not in ("input", "const")]
        words = list(dict.fromkeys(names))[:3] or ["copy"]
    elif region.op in ("conv", "conv_integer"):
        attrs, args = region.attrs, region.body.args(region.anchor)
        weights = region.body.type(args[1]).dims  # type: ignore[arg-type]
        words = ["depthwise" if attrs["group"] > 1 and weights[1] == 1 else "conv", "x".join(map(str, weights[2:]))]
        if max(attrs["strides"], default=1) > 1:
            words.append("s" + "x".join(map(str, dict.fromkeys(attrs["strides"]))))
    words = [w.removesuffix("_integer") for w in words]
    return [*words, _extent(region.outputs[0].type, region)]


def _extent(out: TensorType, region: Region) -> str:
    """The dimensions of a result without the batch of one, channels last as they mostly lie in memory."""
    dims = list(out.dims)
    if len(dims) > 1 and dims[0] == 1:
        dims = dims[1:]
    if region.op in ("conv", "conv_integer") and len(dims) > 1:
        dims = [*dims[1:], dims[0]]
    return "x".join(map(str, dims)) or "scalar"


def _shapes(region: Region) -> str:
    def text(kind: TensorType) -> str:
        return f"{kind.dtype}[{','.join(map(str, kind.dims))}]"

    given = [text(o.type) for o in region.inputs if o.const is None]
    made = [text(o.type) for o in region.outputs]
    return f"{', '.join(given) or 'nothing'} -> {', '.join(made)}"


def _macs(region: Region) -> int:
    total = 0.0
    for node in region.anchors:
        op = region.body.node(node).op
        rule = OPS[op].cost
        if op in _PRODUCTS and rule is not None:
            args = tuple(None if a is None else region.body.type(a) for a in region.body.args(node))
            total += rule(Call(args, region.body.node(node).attrs)).flops / 2
    return int(total)
