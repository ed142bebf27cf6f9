"""``inspect --html``: one self-contained page. Geometry is computed here, ``inspect.html.j2`` draws it.

Names from a model are escaped by Jinja in HTML and SVG and by ``tojson`` inside the data block; the page's policy
allows its own script by digest and nothing else, so that not even an escape that failed would run.
"""

from __future__ import annotations

import base64
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...compiler.ir import STORED, Graph, Value
from ...compiler.ops import OPS
from ...errors import MissingTool, printable
from .console import count, size
from .drawing import Drawing, draw
from .overview import Overview

if TYPE_CHECKING:
    import jinja2

BOX_WIDTH, ROW, HEAD, FOOT = 188.0, 18.0, 6.0, 20.0
MOST_ROWS = 6
PLAN_WIDTH, PLAN_LEFT, PLAN_HEIGHT, STRIP = 1120.0, 74.0, 300.0, 84.0
LETTERS = 27  # that fit in a box


def render(view: Overview) -> str:
    """The page as text."""
    here = Path(__file__).parent
    script = (here / "inspect.js.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts = clean(view.facts)
    graph = _graph(view.fused, facts) if view.fused is not None else None
    return (
        environment()
        .get_template("inspect.html.j2")
        .render(
            f=facts,
            graph=graph,
            plan=_plan(facts) if facts["buffers"] else None,
            layers=_layers(facts),
            steps=_bars(facts["steps"]),
            script=script,
            digest=digest,
            data=_data(facts, graph),
        )
    )


def environment(**filters: Any) -> jinja2.Environment:
    """Jinja's environment of every page, with further filters; ``MissingTool`` without Jinja."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingTool("drawing the page needs Jinja", hint="pip install 'nervure[compile]'") from error
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": size, "count": count, "short": shorten, "px": px, **filters}
    return made


def shorten(text: str, limit: int = LETTERS) -> str:
    """The ends of a long name: its middle says least."""
    text = printable(text)
    keep = limit * 2 // 5
    return text if len(text) <= limit else f"{text[: limit - keep - 1]}…{text[-keep:]}"


def px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def clean(value: Any) -> Any:
    """Every string printable and of bounded length."""
    if isinstance(value, str):
        return printable(value, 300, newlines=True)
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return [clean(v) for v in value] if isinstance(value, list | tuple) else value


# -- the graph -------------------------------------------------------------------------------------------------------


def _graph(graph: Graph, facts: dict[str, Any]) -> dict[str, Any]:
    """Boxes and edges of the fused graph, constants left out, outputs as boxes of their own."""
    steps: dict[str, list[int]] = {}
    for s in facts["steps"]:
        steps.setdefault(s["name"], []).append(s["step"])
    most = max((s["cycles"] for s in facts["steps"]), default=0.0) or 1.0
    keys = [k for k in graph.order() if graph.node(k).op != "const"]
    place = {k: i for i, k in enumerate(keys)}
    boxes = [_box(graph, k, steps, facts["steps"], most) for k in keys]
    edges = sorted(
        {(place[a.node], place[k]) for k in keys for a in graph.args(k) if a is not None and a.node in place}
    )
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        if value.node in place:
            edges.append((place[value.node], len(boxes)))
        boxes.append(_terminal("output", name, str(graph.type(value))))
    drawn = draw([(BOX_WIDTH, b["height"]) for b in boxes], edges)
    for box, (x, y) in zip(boxes, drawn.boxes, strict=True):
        box |= {"x": x, "y": y}
    return {
        "boxes": [{"id": i, **b} for i, b in enumerate(boxes)],
        "edges": [{"from": s, "to": t, "d": _path(p)} for (s, t), p in zip(edges, drawn.paths, strict=True)],
        **_extent(drawn),
    }


def _extent(drawn: Drawing) -> dict[str, float]:
    return {"width": drawn.width, "height": drawn.height}


def _terminal(kind: str, name: str, type: str) -> dict[str, Any]:
    rows = [{"op": kind, "kind": "stored"}]
    return {"name": printable(name, 300), "type": type, "rows": rows, "kind": kind, "steps": [], "share": 0.0} | {
        "height": HEAD + ROW + 2 * FOOT - 6,
        "lines": [shorten(name), type],
        "facts": [],
    }


def _box(
    graph: Graph, key: int, steps: dict[str, list[int]], rows: list[dict[str, Any]], most: float
) -> dict[str, Any]:
    node = graph.node(key)
    name, type = printable(node.names[0], 300), ", ".join(map(str, node.types))
    if node.op in STORED:
        return _terminal(node.op, name, type)
    body = node.attrs.get("body")
    ops = (
        [body.node(k).op for k in body.order() if body.node(k).op not in STORED]
        if isinstance(body, Graph)
        else [node.op]
    )
    shown = [{"op": op, "kind": OPS[op].kind.value if op in OPS else "opaque"} for op in ops]
    if len(shown) > MOST_ROWS:
        shown = [*shown[: MOST_ROWS - 1], {"op": f"and {len(ops) - MOST_ROWS + 1} more", "kind": "stored"}]
    own = steps.get(name, [])
    weights = [a for a in graph.args(key) if a is not None and graph.node(a).op == "const"]
    return {
        "name": name,
        "type": type,
        "rows": shown,
        "kind": "group" if isinstance(body, Graph) else "view",
        "steps": own,
        "share": sum(rows[s]["cycles"] for s in own) / most,
        "height": HEAD + ROW * len(shown) + FOOT,
        "lines": [type],
        "facts": _inside(graph, key, body, weights),
    }


def _inside(graph: Graph, key: int, body: Any, weights: list[Value]) -> list[list[str]]:
    """The rows of the panel for a box: constants, then the operations inside with their attributes."""
    found = [["constant", f"{printable(graph.tensor_name(w), 80)}: {graph.type(w)}"] for w in weights[:12]]
    inner, keys = (body, body.order()) if isinstance(body, Graph) else (graph, [key])
    for k in keys:
        node = inner.node(k)
        if node.op in STORED:
            continue
        attrs = ", ".join(
            f"{n}={printable(str(v), 60)}" for n, v in node.attrs.items() if v is not None and not isinstance(v, Graph)
        )
        found.append([node.op, f"{', '.join(map(str, node.types))}{f'  ({attrs})' if attrs else ''}"])
    return found[:60]


def _path(points: list[tuple[float, float]]) -> str:
    """A curve between each pair of layers, straight inside them."""
    d = f"M{px(points[0][0])} {px(points[0][1])}"
    for i, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        if i % 2:
            d += f"V{px(by)}"
        else:
            middle = px((ay + by) / 2)
            d += f"C{px(ax)} {middle} {px(bx)} {middle} {px(bx)} {px(by)}"
    return d


# -- the plan --------------------------------------------------------------------------------------------------------


def _plan(facts: dict[str, Any]) -> dict[str, Any]:
    """Rectangles (time x offset) of every region, the live bytes, cost and weights of each step, on one time axis."""
    count_ = max([len(facts["steps"]), *(b["last"] for b in facts["buffers"])])
    unit = PLAN_WIDTH / max(1, count_)
    regions = []
    for region in sorted({b["region"] for b in facts["buffers"]}):
        own = [b for b in facts["buffers"] if b["region"] == region]
        top = max(b["offset"] + b["nbytes"] for b in own) or 1
        scale = PLAN_HEIGHT / top
        rects = [
            {
                **b,
                "x": b["first"] * unit,
                "y": PLAN_HEIGHT - (b["offset"] + b["nbytes"]) * scale,
                "w": max(1.0, (min(b["last"], count_ - 1) - b["first"] + 1) * unit),
                "h": max(0.5, b["nbytes"] * scale),
                "label": _label("scratch" if b["scratch"] else b["name"], (b["last"] - b["first"] + 1) * unit),
                "end": _end(b, facts),
            }
            for b in own
        ]
        regions.append({"name": facts["regions"][region], "bytes": top, "rects": rects})
    live = [sum(b["nbytes"] for b in facts["buffers"] if b["first"] <= t <= b["last"]) for t in range(count_)]
    live[: len(facts["live"])] = [r["bytes"] for r in facts["live"]]  # shared bytes once
    highest = max([*live, facts["arena_bytes"] or 0, 1])
    curve = "".join(
        f"L{px(t * unit)} {px(STRIP - v / highest * STRIP)}H{px((t + 1) * unit)}" for t, v in enumerate(live)
    )
    return {
        "unit": unit,
        "count": count_,
        "regions": regions,
        "live": f"M0 {STRIP}{curve}V{STRIP}Z",
        "peak": max(live),
        "highest": highest,
        "bound_y": STRIP - facts["arena_lower_bound_bytes"] / highest * STRIP,
        "arena_y": STRIP - facts["arena_bytes"] / highest * STRIP,
        "strips": [_strip(facts["steps"], k, unit) for k in ("cycles", "weight_bytes")],
        "ticks": _ticks(count_, unit),
    }


def _layers(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the picture of liveness: the live buffers of each step as parts of a bar, in percent of the longest."""
    most = max([r["bytes"] + r["saved_bytes"] for r in facts["live"]], default=0) or 1
    top = max([r["bytes"] for r in facts["live"]], default=0)
    inputs, outputs = ({p["name"] for p in facts[k]} for k in ("inputs", "outputs"))
    rows = []
    for r in facts["live"]:
        parts = []
        for b in r["buffers"]:
            kind = "input" if b["name"] in inputs else "output" if b["name"] in outputs else "inner"
            parts.append({**b, "kind": "scratch" if b["scratch"] else kind, "w": 100 * b["bytes"] / most})
        step = facts["steps"][r["step"]]
        rows.append({**r, "name": step["name"], "op": step["op"], "parts": parts, "peak": r["bytes"] == top})
    return rows


def _label(name: str, width: float) -> str:
    room = int(width / 6.6)
    return shorten(name, room) if room >= min(8, len(name)) else ""


def _end(buffer: dict[str, Any], facts: dict[str, Any]) -> str:
    if buffer["scratch"]:
        return "scratch"
    if buffer["name"] in {p["name"] for p in facts["inputs"]}:
        return "input"
    return "output" if buffer["last"] >= len(facts["steps"]) else "inner"


def _strip(steps: list[dict[str, Any]], key: str, unit: float) -> dict[str, Any]:
    most = max((s[key] for s in steps), default=0) or 1
    bars = [{"step": s["step"], "x": s["step"] * unit, "h": s[key] / most * (STRIP - 24)} for s in steps if s[key]]
    return {"key": key, "most": most, "bars": bars}


def _ticks(count_: int, unit: float) -> list[dict[str, Any]]:
    every = next(e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if e * unit >= 34)
    return [{"step": t, "x": (t + 0.5) * unit} for t in range(0, count_, every)]


def _bars(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table, with the lengths of their bars in percent of the longest."""
    longest = {k: max((s[k] for s in steps), default=0) or 1 for k in ("cycles", "flops", "bytes", "weight_bytes")}
    total = sum(s["cycles"] for s in steps) or 1
    return [
        s | {f"{k}_bar": 100 * s[k] / m for k, m in longest.items()} | {"share": s["cycles"] / total} for s in steps
    ]


def _data(facts: dict[str, Any], graph: dict[str, Any] | None) -> dict[str, Any]:
    """What the script knows: boxes and steps as text, never as markup."""
    boxes = [
        {
            "name": b["name"],
            "type": b["type"],
            "steps": b["steps"],
            "facts": b["facts"],
            "kind": b["kind"],
            "ops": [r["op"] for r in b["rows"]],
        }
        for b in (graph["boxes"] if graph else [])
    ]
    steps = [
        {
            "name": s["name"],
            "op": s["op"],
            "facts": [
                ["FLOP", count(s["flops"])],
                ["bytes moved", size(s["bytes"])],
                ["weights", size(s["weight_bytes"])],
                ["estimated cycles", count(s["cycles"])],
                ["kernel", s["detail"]],
                *[["from", o] for o in s["origin"][:8]],
            ],
        }
        for s in facts["steps"]
    ]
    edges = [[e["from"], e["to"]] for e in graph["edges"]] if graph else []
    total = sum(s["cycles"] for s in facts["steps"]) or 1
    dear = sorted(facts["steps"], key=lambda s: (-s["cycles"], s["step"]))[:12]
    dearest = [[s["step"], f"{s['cycles'] / total:.1%}"] for s in dear if s["cycles"]]
    return {"boxes": boxes, "steps": steps, "edges": edges, "dearest": dearest}
