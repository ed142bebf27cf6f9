"""``nervure prune``: a model becomes a smaller one, with a report of what that brought and cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....compiler.prune.settings import CRITERIA
from ....errors import NervureError
from .. import options as o

if TYPE_CHECKING:
    from ...prune import Pruning

EXAMPLE = (
    "nervure prune model.onnx -o small.onnx --structure channels --target-latency 0.6x --data train.npz --epochs 5"
)
SHOWN = 40  # layers in the terminal; the page and --json have all
_WHAT, _TRAIN = "What to prune", "Training on"


def prune_command(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The pruned model, an ONNX file.")] = Path(
        "pruned.onnx"
    ),
    structure: Annotated[
        str,
        typer.Option(
            "--structure",
            metavar="WHAT",
            help="channels, heads, units, groups, blocks (joined by +) or all: the network shrinks; unstructured, "
            "block, block:4x16, 2:4, 2:4v, 2:4x16: zeros that kernels leave out.",
            rich_help_panel=_WHAT,
        ),
    ] = "channels",
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", metavar="0.75|75%", help="Part of the weights that goes.", rich_help_panel=_WHAT),
    ] = None,
    target_macs: Annotated[
        str | None,
        typer.Option("--target-macs", metavar="0.5x|1.2M", help="Multiply-adds that are left.", rich_help_panel=_WHAT),
    ] = None,
    target_params: Annotated[
        str | None,
        typer.Option("--target-params", metavar="0.5x|80K", help="Parameters that are left.", rich_help_panel=_WHAT),
    ] = None,
    target_ram: Annotated[
        str | None, typer.Option("--target-ram", metavar="0.5x|44K", help="Bytes of RAM.", rich_help_panel=_WHAT)
    ] = None,
    target_file: Annotated[
        str | None,
        typer.Option("--target-file", metavar="0.5x|256K", help="Bytes of the library.", rich_help_panel=_WHAT),
    ] = None,
    target_latency: Annotated[
        str | None,
        typer.Option(
            "--target-latency",
            metavar="0.6x|200us",
            help="Time of a run: measured on host, estimated elsewhere.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option("--criterion", metavar="|".join(CRITERIA), help="What a weight is worth.", rich_help_panel=_WHAT),
    ] = "l1",
    scope: Annotated[
        str,
        typer.Option(
            "--scope", metavar="global|layer", help="One ranking, or the same part of each.", rich_help_panel=_WHAT
        ),
    ] = "global",
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="PATTERN", help="Layers that stay as they are.", rich_help_panel=_WHAT),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", metavar="PATTERN=0.5", help="The part that goes of single layers.", rich_help_panel=_WHAT
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take a pattern that does not pay, too.", rich_help_panel=_WHAT)
    ] = False,
    optimize: Annotated[
        o.Optimize | None,
        typer.Option(
            "--optimize",
            help="What to compile for: speed, or size (where --target-file is given).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            help="An .npz with the inputs and y: a fifth is held out.",
            rich_help_panel=_TRAIN,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            "--test", metavar="FILE", help="Samples that judge instead of a fifth of --data.", rich_help_panel=_TRAIN
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", min=0, help="How often the data are gone through after pruning.", rich_help_panel=_TRAIN
        ),
    ] = 0,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="Adam's, falling as a cosine.", rich_help_panel=_TRAIN)
    ] = 1e-3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of one step.", rich_help_panel=_TRAIN)
    ] = 32,
    distill: Annotated[
        bool, typer.Option("--distill", help="The dense model's outputs teach, too.", rich_help_panel=_TRAIN)
    ] = False,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Prune and train in turns, so often.", rich_help_panel=_TRAIN)
    ] = 1,
    tune: Annotated[
        Path | None,
        typer.Option("--tune", metavar="RECORD.json", help="Keep what is measured; choose by it from then on."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write one self-contained page.")
    ] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="How sensitive each layer is, for the page (needs data).")
    ] = False,
    timed: Annotated[bool, typer.Option("--latency/--no-latency", help="Time both artifacts.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything drawn by chance.")] = 0,
    target: o.Target = "host",
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Prune a model and say what that brought: bytes and time, layer by layer, and accuracy.

    Channels, heads, units and blocks are taken out with all that hangs on them: the network shrinks. Patterns are zeros
    that kernels leave out; one that is not faster on the target is refused, with the figures. Where a target is out of
    reach, nothing is written.
    """
    from ...prune import prune
    from ..console import print_json, progress
    from ..delivery import check_files, hand_over
    from ..network import network
    from ..prune_page import render
    from ..values import parse_named

    check_files(output, report, "a pruned model")
    given = network(model)
    with progress(given.title) as tell:
        made = prune(
            given.source,
            structure=structure,
            criterion=criterion,
            scope=scope,
            sparsity=sparsity,
            macs=target_macs,
            params=target_params,
            ram=target_ram,
            file=target_file,
            latency=target_latency,
            data=data,
            test=test,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            distill=distill,
            steps=steps,
            keep=tuple(keep or ()),
            layers=_parts(layer or []),
            target=target,
            tune=tune,
            force=force,
            optimize=None if optimize is None else optimize.value,
            timed=timed,
            scan=scan,
            seed=seed,
            dims={n: v[0] for n, v in parse_named(dim or (), "--dim").items()},
            shapes=parse_named(shape or (), "--shape"),
            progress=tell,
        )
    hand_over(made.save, output, report, lambda: render(made.report))
    facts = made.report.as_dict() | {"file": str(output), "page": str(report) if report else None}
    if as_json:
        return print_json(facts)
    _show(made, facts)


def _parts(given: list[str]) -> dict[str, float]:
    """``conv*=0.5`` for each."""
    found: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            found[name] = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise NervureError(f"--layer {text!r} is no layer and part", hint="write it as --layer 'conv*=0.5'")
    return found


# -- the terminal ------------------------------------------------------------------------------------------------------


def _show(made: Pruning, facts: dict[str, Any]) -> None:
    from ..console import cell, note, out

    report, screen = made.report, out()
    screen.print(_table(report))
    for line in lines(facts):
        screen.print(cell(line))
    for text in report.notes:
        note(text)
    page = f", {facts['page']}" if facts["page"] else ""
    screen.print(cell(f"written: {facts['file']}{page} in {report.seconds:.1f} s"))


def _table(report: Any) -> Any:
    """The layers in the network's order, dense and pruned beside each other."""
    from ..console import cell, count, row, size, table
    from ..page import shorten

    us = "us" if report.timed else "us (estimated)"
    made = table(
        f"{report.model}: {report.settings['structure']}, {len(report.layers)} layers",
        "layer", "op", "kept", "MACs", "bytes", us, "", right=("kept", "MACs", "bytes", us),
    )  # fmt: skip
    for r in report.layers[:SHOWN]:
        row(
            made, shorten(r["name"], 44), r["op"], f"{r['kept']:.0%}", _pair(r["macs"], count), _pair(r["bytes"], size),
            _pair(r["us"], lambda v: f"{v:.1f}"), cell(r["why"] or _slower(r), "dim" if r["why"] else "yellow"),
        )  # fmt: skip
    if len(report.layers) > SHOWN:
        more = f"and {len(report.layers) - SHOWN} more (--json and --report have all)"
        row(made, cell(more, "dim"), "", "", "", "", "", "")
    rest = _pair(report.rest_us, lambda v: f"{v:.1f}")
    row(made, cell("between layers", "dim"), "", "", "", "", rest, "")
    return made


def _pair(pair: dict[str, Any], word: Any) -> str:
    if pair["pruned"] is None:
        return f"{word(pair['dense'])} to -"
    was, now = word(pair["dense"]), word(pair["pruned"])
    return was if was == now else f"{was} to {now}"


def _slower(row: dict[str, Any]) -> str:
    was, now = row["us"]["dense"], row["us"]["pruned"]
    return "slower" if now is not None and row["kept"] < 1 and now > 1.1 * was and now > 0.5 else ""


def lines(facts: dict[str, Any]) -> list[str]:
    """The totals, a line each."""
    from ..console import count, size

    was, now = facts["totals"]["dense"], facts["totals"]["pruned"]
    said = [
        ", ".join(
            f"{name} {word(was[key])} to {word(now[key])} ({now[key] / (was[key] or 1):.2f}x)"
            for name, key, word in group
        )
        for group in (
            (("MACs", "macs", count), ("parameters", "params", count)),
            (("library", "library", size), ("ONNX", "onnx", size), ("RAM", "ram", size)),
        )
    ]
    t = facts["latency"]
    if t:
        said.append(f"latency {t['dense']:.3f} ms to {t['pruned']:.3f} ms: {t['ratio']:.2f}x, measured in turns")
    else:
        said.append(f"latency, estimated: {was['estimate_us']:.1f} us to {now['estimate_us']:.1f} us")
    a = facts["accuracy"]
    if a:
        tuned = "" if a["tuned"] is None else f", trained on {a['tuned']:.4f}"
        words = f"dense {a['dense']:.4f}, pruned {a['pruned']:.4f}{tuned}, drop {a['drop']:+.4f}"
        said.append(f"{a['metric']}: {words} on {a['on']}")
    b = facts["budget"]
    if b:
        how = "measured" if b["measured"] else "by the cost model" if b["kind"] == "latency" else "reached"
        said.append(f"target {b['target']}: {reached(b)} {how}")
    return said


def reached(budget: dict[str, Any]) -> str:
    """What a target came to, as the target was said."""
    from ....compiler.prune.budget import told

    if budget["kind"] == "sparsity":
        return f"sparsity {1 - budget['reached']:.4g}"
    return f"{budget['reached'] / (budget['dense'] or 1.0):.2f}x, {told(budget['kind'], budget['reached'])},"
