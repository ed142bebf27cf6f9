"""``nervure quantize``: a model becomes a quantized ONNX file, with a report of what that cost."""

from __future__ import annotations

import enum
import inspect
import shlex
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....compiler.quantize.settings import Settings
from ...quantize_settings import WeightSettings
from .. import options as o

if TYPE_CHECKING:
    from ...quantize import Quantization


EXAMPLE = "nervure quantize model.onnx -o int8.onnx --calibration data.npz --labelled test.npz --max-drop 0.5%"
SHOWN = 24  # layers in the terminal; the page and --json have all


class QuantizeMode(enum.StrEnum):
    static = "static"
    dynamic = "dynamic"
    weights = "weights"


class Promote(enum.StrEnum):
    auto = "auto"
    int16 = "int16"
    float = "float"


def quantize_command(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The quantized model, an ONNX file.")] = Path(
        "quantized.onnx"
    ),
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            "-c",
            metavar="DATA",
            help="An .npz with an array for each input, a folder of pictures, or MODULE:FUNCTION.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="How many samples to look at (all, at most 1,024).")
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess", metavar="PRESET|KEYS|FILE", help="For pictures: as in `run`, or a TOML or JSON file."
        ),
    ] = None,
    mode: Annotated[
        QuantizeMode, typer.Option("--mode", help="static needs samples; dynamic and weights do without.")
    ] = QuantizeMode.static,
    labelled: Annotated[
        Path | None, typer.Option("--labelled", metavar="FILE", help="An .npz with the inputs and y: the accuracy.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option("--evaluate", metavar="MODULE:FUNCTION", help="A score of the compiled model, higher is better."),
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option("--max-drop", metavar="0.5%", help="What the score may lose; layers are promoted.")
    ] = None,
    max_sqnr_loss: Annotated[
        str | None,
        typer.Option("--max-sqnr-loss", metavar="1%|20dB", help="Noise of the outputs, in parts of their power."),
    ] = None,
    promote: Annotated[
        Promote, typer.Option("--promote", help="What the worst layers become until the budget holds.")
    ] = Promote.auto,
    optimize: Annotated[
        o.Optimize,
        typer.Option("--optimize", help="speed: what integers do not speed up stays float; size: all."),
    ] = o.Optimize.speed,
    tune: Annotated[
        Path | None,
        typer.Option("--tune", metavar="RECORD.json", help="Time each layer in both forms, once; keep the record."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write one self-contained page.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time both artifacts.")] = True,
    target: o.Target = "host",
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
    **settings: Any,
) -> None:
    """Quantize a model and say what it cost, layer by layer.

    The result is ONNX with quantizers (QDQ), which other tools run too. With --max-drop or --max-sqnr-loss the layers
    that do most damage get 16 bits or stay in float until the budget holds, measured on the compiled model; where it
    cannot be met, nothing is written.
    """
    from ...calibration_files import imported
    from ...quantize import quantize
    from ..console import print_json, progress
    from ..delivery import check_files, hand_over
    from ..network import network
    from ..quantize_page import render
    from ..values import parse_named

    check_files(output, report, "a quantized model")
    given = network(model)
    sizes = parse_named(shape or (), "--shape")
    single = {n: v[0] for n, v in parse_named(dim or (), "--dim").items()}
    function = None
    if evaluate is not None:
        module, _, name = evaluate.rpartition(":")
        function = imported(module, name)
    with progress(given.title) as tell:
        made = quantize(
            given.source,
            calibration,
            mode=mode.value,
            samples=samples,
            preprocess=preprocess,
            dims=single,
            shapes=sizes,
            max_drop=max_drop,
            max_sqnr_loss=max_sqnr_loss,
            evaluate=function,
            labelled=labelled,
            promote=promote.value,
            optimize=optimize.value,
            tune=tune,
            target=target,
            latency=latency,
            progress=tell,
            **{n: v for n, v in settings.items() if v is not None},
        )
    wishes = {"optimize": None if optimize is o.Optimize.speed else optimize.value, "tune": tune}
    command = _command(model, output, calibration, {**wishes, **settings}, made)
    hand_over(made.save, output, report, lambda: render(made.report, command))
    facts = made.report.as_dict() | {"command": command, "file": str(output), "page": str(report) if report else None}
    if as_json:
        return print_json(facts)
    _show(made, facts)


# -- options from the fields of Settings -------------------------------------------------------------------------------


def _option(field: Field[Any]) -> inspect.Parameter:
    """The command-line option of one setting: ``per_channel`` is --per-channel/--no-per-channel, ``float_patterns``
    is --float, which may be given several times."""
    name = field.name.replace("_", "-")
    doc, choices, limits = (field.metadata[k] for k in ("doc", "choices", "range"))
    text = f"{doc[:1].upper()}{doc[1:]}."
    shown: dict[str, Any] = {"help": text, "rich_help_panel": "How to quantize"}
    kind: Any
    if field.name.endswith("_patterns"):
        names, kind = [f"--{name.removesuffix('-patterns')}"], list[str] | None
        shown["metavar"] = "PATTERN"
    elif isinstance(field.default, bool):
        names, kind = [f"--{name}/--no-{name}"], bool | None
        shown["help"] = f"{text} [default: {'yes' if field.default else 'no'}]"
    else:
        plain = int if isinstance(field.default, int) else str if isinstance(field.default, str) else float
        names, kind = [f"--{name}"], plain | None
        if choices:
            shown["metavar"] = "|".join(map(str, choices))
        elif limits:
            shown["metavar"] = f"{limits[0]:g}..{limits[1]:g}"
        if field.default is not None:
            shown["help"] = f"{text} [default: {field.default}]"
    annotation = Annotated[kind, typer.Option(*names, **shown)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_options(function: Any, settings: Sequence[Field[Any]]) -> None:
    """Gives a command the options of settings; it receives them as keywords, None where they are not given."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [_option(f) for f in settings]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    function.__signature__ = signature.replace(parameters=[*parameters, *more])


# of what both have, the one for weights knows more kinds of weights, the other says more about patterns
_FIELDS = {f.name: f for f in (*fields(Settings), *(f for f in fields(WeightSettings) if f.name != "float_patterns"))}
_with_options(quantize_command, list(_FIELDS.values()))


# -- what is written and shown -----------------------------------------------------------------------------------------


def _command(
    model: str, output: Path, calibration: str | None, settings: dict[str, Any], made: Quantization
) -> str | None:
    """The command that does what accuracy control did, or would do about the worst layers; None if there is nothing to
    repair."""
    if not made.report.repair:
        return None
    words = ["nervure", "quantize", model, "-o", str(output)]
    if calibration is not None:
        words += ["--calibration", calibration]
    if made.report.mode != "static":
        words += ["--mode", made.report.mode]
    for name, value in settings.items():
        words += _words(name.replace("_", "-"), value)
    for option, pattern in made.report.repair:
        words += [option, pattern]
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name}"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [w for v in value for w in (f"--{name.removesuffix('-patterns')}", str(v))]
    return [f"--{name}", str(value)]


def _show(made: Quantization, facts: dict[str, Any]) -> None:
    from ..console import cell, note, out, size

    report, screen = made.report, out()
    screen.print(_table(report))
    for line in _lines(facts, size):
        screen.print(cell(line))
    if report.control and report.control["promoted"]:
        promoted = ", ".join(f"{n} to {k}" for n, k in report.control["promoted"].items())
        screen.print(cell(f"promoted: {promoted}", "yellow"))
    if facts["command"]:
        done = bool(report.control)
        screen.print(cell("the same again: " if done else "what may repair it: ", "bold"), end="")
        screen.print(facts["command"], soft_wrap=True)
    for text in report.notes:
        note(text)
    page = f", {facts['page']}" if facts["page"] else ""
    screen.print(cell(f"written: {facts['file']}{page} in {report.seconds:.1f} s"))


def _table(report: Any) -> Any:
    """The layers, the most damaging first."""
    from ..console import cell, row, table
    from ..page import shorten

    ranked = report.ranked
    floats = [r for r in report.layers if r["format"] == "float"]
    made = table(
        f"{report.model}: {len(ranked)} layers quantized, {len(floats)} in float",
        "layer", "op", "format", "SQNR dB", "cause", "damage", right=("SQNR dB", "damage"),
    )  # fmt: skip
    for r in ranked[:SHOWN]:
        style = "" if r["sqnr_db"] is None or r["sqnr_db"] >= 20 else "yellow" if r["sqnr_db"] >= 10 else "red"
        row(
            made,
            shorten(r["name"], 48),
            r["op"],
            r["format"],
            cell("" if r["sqnr_db"] is None else f"{r['sqnr_db']:.1f}", style),
            _cause(r),
            _damage(r),
        )
    for r in floats[:SHOWN]:
        row(
            made, shorten(r["name"], 48), r["op"], cell("float", "dim"), "", cell(r.get("why") or "", "dim"), _damage(r)
        )
    hidden = max(0, len(ranked) - SHOWN) + max(0, len(floats) - SHOWN)
    if hidden:
        row(made, cell(f"and {hidden} more (--json and --report have all)", "dim"), "", "", "", "", "")
    return made


def _damage(row: dict[str, Any]) -> str:
    return f"{max(0.0, row['damage']):.1%}" if "damage" in row else ""


def _cause(row: dict[str, Any]) -> str:
    """What most of a layer's own noise comes from: ``rounding of weights 83%``."""
    from ..quantize_page import cause

    name = cause(row)
    return f"{name} {row['causes'][name.split()[0]]:.0%}" if name else ""


def _lines(facts: dict[str, Any], size: Any) -> list[str]:
    said = []
    for port in facts["outputs"][:4]:
        db = "no noise" if port["sqnr_db"] is None else f"SQNR {port['sqnr_db']:.1f} dB"
        said.append(f"output {port['name']}: {db} over {facts['compared']} samples")
    if facts["agreement"] is not None:
        said.append(f"same class as float: {facts['agreement']:.1%}")
    if facts["accuracy"]:
        a = facts["accuracy"]
        over = f" over {a['samples']} samples" if a["samples"] else ""
        said.append(
            f"{a['metric']}: float {a['float']:.4f}, quantized {a['quantized']:.4f}, drop {a['drop']:+.4f}{over}"
        )
    plain, ours = facts["size"]["float"], facts["size"]["quantized"]
    said.append(
        f"ONNX {size(plain['onnx'])} to {size(ours['onnx'])} ({ours['onnx'] / plain['onnx']:.2f}x), weights "
        f"{size(plain['weights'])} to {size(ours['weights'])}, arena {size(facts['ram']['float'])} to "
        f"{size(facts['ram']['quantized'])}"
    )
    if facts["latency"]:
        t = facts["latency"]
        said.append(f"latency {t['float']:.3f} ms to {t['quantized']:.3f} ms, {t['speedup']:.2f}x as fast")
    return said
