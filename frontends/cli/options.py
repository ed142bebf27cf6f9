"""Options that several commands share, with their help texts."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


class Precision(enum.StrEnum):
    default = "default"
    exact = "exact"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"


class Optimize(enum.StrEnum):
    speed = "speed"
    size = "size"


class Emit(enum.StrEnum):
    library = "library"
    c = "c"


class Package(enum.StrEnum):
    cmake = "cmake"
    arduino = "arduino"
    zephyr = "zephyr"


class Mode(enum.StrEnum):
    run = "run"
    invoke = "invoke"


Model = Annotated[str, typer.Argument(help="An ONNX file, or FILE.py:NAME for a network in Python.", metavar="MODEL")]
ModelOrLibrary = Annotated[
    str, typer.Argument(help="An ONNX file, FILE.py:NAME, or a compiled .so or .a.", metavar="MODEL")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout (docs/cli.md describes it).")]
Target = Annotated[str, typer.Option("--target", "-t", help="What to compile for; `nervure targets` lists them.")]
TargetOrNone = Annotated[
    str | None, typer.Option("--target", "-t", help="What to compile for (host); others run in their emulator.")
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="What to compile for (host); may be given several times.")
]
Boards = Annotated[
    list[str] | None,
    typer.Option("--board", help="A microcontroller's board (`nervure targets`), or a TOML file with its memory."),
]
EmitOption = Annotated[Emit, typer.Option("--emit", help="c writes portable C99, NAME.c, for any compiler.")]
Packages = Annotated[
    list[Package] | None,
    typer.Option("--package", help="Also write a folder for this build system; may be given several times."),
]
Board = Annotated[
    str | None, typer.Option("--board", help="A microcontroller's board, or a TOML file with its memory.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="Worker threads.")]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        "--dim", metavar="NAME=N[,N...]", help="Size of a symbolic dimension; several sizes make one plan each."
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=D,D,...", help="Shape of an input (or size of a dimension: batch=1,8)."),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="exact leaves out Winograd and approximated functions; tf32, fp16 and bf16 are for GPUs.",
    ),
]
OptimizeOption = Annotated[Optimize, typer.Option("--optimize", help="size keeps weights at their original size.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the caches.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="[NAME=]FILE", help="A .npy, a .npz, or a picture for an input."),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="PRESET|KEYS",
        help="For pictures: imagenet, tf, unit, raw, or keys such as "
        "size=224,range=-1:1,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,scale=0.00392,layout=nchw,color=bgr,crop=0.875.",
    ),
]
Tolerance = Annotated[
    float | None, typer.Option("--tolerance", min=0.0, help="Largest relative error allowed (1e-3; exact: 2e-5).")
]
