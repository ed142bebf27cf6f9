"""Gather, scatter, TopK, OneHot, NonZero and NonMaxSuppression, written as ONNX."""

from __future__ import annotations

from onnx import AttributeProto, helper

from .export_math import Rule, plain
from .exporter import OPSET, OWN_DOMAIN, Call, Writer

LOWEST = -3.0e38  # a score that every box has

RULES: dict[str, Rule] = {
    "gather": plain("Gather"),
    "gather_elements": plain("GatherElements"),
    "gather_nd": plain("GatherND"),
    "scatter_elements": plain("ScatterElements"),
    "scatter_nd": plain("ScatterND"),
}


def _one_hot(w: Writer, n: Call) -> None:
    w.emit("OneHot", [n.inputs[0], w.const(n.attrs["depth"]), n.inputs[1]], n.outs, axis=n.attrs["axis"])


def _topk(w: Writer, n: Call) -> None:
    k = w.const([n.attrs["k"]])
    w.emit("TopK", [n.inputs[0], k], n.outs, axis=n.attrs["axis"], largest=int(n.attrs["largest"]), sorted=1)


def _function(w: Writer, name: str, inputs: list[str], attributes: dict[str, int | float]) -> None:
    """Defines ``name`` as a function of the model, once: what is found, padded to ``bound`` rows, and their number.

    A function keeps the operation whole: whoever reads the file back finds its static bound again.
    """
    if name in w.functions:
        return
    inner = Writer({*inputs, *attributes, "rows", "count"})
    for key, value in attributes.items():
        kind = AttributeProto.INT if isinstance(value, int) else AttributeProto.FLOAT
        field = "value_int" if isinstance(value, int) else "value_float"
        inner.emit("Constant", [], [key])
        inner.nodes[-1].attribute.add(name=field, type=kind, ref_attr_name=key)
    axis = 1 if name == "BoundedNonZero" else 0
    settings = [key for key in attributes if key not in ("bound", "center_point_box")]
    found = inner.emit(name.removeprefix("Bounded"), [*inputs, *settings])
    if "center_point_box" in attributes:
        box = {"name": "center_point_box", "type": AttributeProto.INT, "ref_attr_name": "center_point_box"}
        inner.nodes[-1].attribute.add(**box)
    first, along = (inner.emit("Constant", [], value_ints=[number]) for number in (0, axis))
    length = inner.emit("Gather", [inner.emit("Shape", [found]), along], axis=0)
    pads = inner.emit("Concat", [first, inner.emit("Sub", ["bound", length])], axis=0)
    inner.emit("Pad", [found, pads, inner.emit("Constant", [], value_int=0), along], ["rows"])
    inner.emit("Squeeze", [length, first], ["count"])
    opsets = [helper.make_opsetid("", OPSET)]
    outs = ["rows", "count"]
    w.functions[name] = helper.make_function(OWN_DOMAIN, name, inputs, outs, inner.nodes, opsets, list(attributes))


def _nonzero(w: Writer, n: Call) -> None:
    attributes: dict[str, int | float] = {"bound": n.out_types[0].dims[1]}
    _function(w, "BoundedNonZero", ["x"], attributes)
    w.emit("BoundedNonZero", n.inputs, n.outs, domain=OWN_DOMAIN, **attributes)


def _nms(w: Writer, n: Call) -> None:
    score = n.attrs["score_threshold"]
    attributes: dict[str, int | float] = {
        "max_output": n.attrs["max_output"],
        "iou_threshold": float(n.attrs["iou_threshold"]),
        "score_threshold": LOWEST if score is None else float(score),
        "center_point_box": int(n.attrs["center_point_box"]),
        "bound": n.out_types[0].dims[0],
    }
    _function(w, "BoundedNonMaxSuppression", ["boxes", "scores"], attributes)
    w.emit("BoundedNonMaxSuppression", n.inputs, n.outs, domain=OWN_DOMAIN, **attributes)


RULES.update(one_hot=_one_hot, topk=_topk, nonzero=_nonzero, nms=_nms)
