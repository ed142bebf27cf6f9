"""Programs built by hand, over kernels in runtime/kernels.c: what the runtime must do, without the compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from nervure.compiler.program import Entry, Phase, Port, Program, Ref, Region, Step, Stored
from nervure.compiler.types import TensorType

KERNELS = Path(__file__).parent / "runtime" / "kernels.c"
WEIGHTS = np.linspace(-1, 2, 64, dtype=np.float32)
INPUT, OUTPUT, CONST, PARAM, STATE = (Ref(b) for b in ("input", "output", "const", "param", "state"))


def port(name: str, dtype: str, shape: tuple[int, ...], offset: int, region: int = 0, **more: int) -> Port:
    return Port(name, TensorType(dtype, shape), Ref("region", offset, region), **more)


START = Ref("region")


def step(kernel: str, *args: Ref, tasks: int = 1, ranged: bool = False, scratch: Ref = START) -> Step:
    return Step(kernel, kernel, (Phase(kernel, args, tasks, ranged, scratch),), origin=(f"line of {kernel}",))


def batch_entry(batch: int) -> Entry:
    """y = sum of 0.1 * x * w over each group of 64: ranged phases, scratch of the workers, a phase of one worker."""
    rows, size = 4 * batch, 256 * batch
    product, sums = Ref("region", size), Ref("region", 2 * size)
    own = Ref("region", 3 * size + 64)
    groups = tuple(Phase("total4", (Ref("region", 2 * size + 16 * i), Ref("output", 4 * i))) for i in range(batch))
    return Entry(
        "infer",
        (port("x", "float32", (batch, 64), 0),),
        (port("y", "float32", (batch,), 3 * size),),
        (
            step("multiply", INPUT, CONST, product, tasks=rows, ranged=True),
            step("row_sums", product, sums, Ref("worker"), tasks=rows, ranged=True, scratch=own),
            Step("y", "sum", groups),
        ),
        worker_bytes=64,
        bindings={"batch": batch},
        region_bytes=(3 * size + 128,),
        lower_bound=2 * size,
    )


def batches() -> Program:
    """Two batch sizes over the same constants."""
    entries = tuple(map(batch_entry, (1, 8)))
    return Program("batches", entries, const=WEIGHTS.tobytes(), regions=(Region("arena", 3 * 2048 + 128),))


def trainable() -> Program:
    """``infer`` uses a derived copy (2 w), ``train_step`` adds to w, ``refresh`` makes the copy; and a state."""
    x = port("x", "float32", (64,), 0)
    infer = Entry(
        "infer",
        (x,),
        (port("y", "float32", (64,), 256), port("seen", "int32", (4,), 512)),
        (
            step("multiply", INPUT, Ref("derived"), OUTPUT, tasks=4, ranged=True),
            step("count4", STATE, Ref("output", 0, 1)),
        ),
        region_bytes=(576,),
    )
    train = Entry(
        "train_step",
        (x,),
        (),
        (step("add64", INPUT, PARAM),),
        region_bytes=(256,),
        updates_params=True,
        reads_derived=False,
    )
    refresh = Entry("refresh", (), (), (step("twice64", PARAM, Ref("derived")),))
    return Program(
        "trainable",
        (infer, train, refresh),
        params=(Stored("w", TensorType("float32", (64,)), 0, WEIGHTS),),
        states=(Stored("seen", TensorType("int32", (4,)), 0, np.array([10, 0, 0, 0], np.int32)),),
        regions=(Region("arena", 576),),
        derived_bytes=256,
    )


def two_regions() -> Program:
    """The product lies in a fast memory beside the arena; the input and output slots lie in the arena."""
    fast = Ref("region", 64, 1)
    entry = Entry(
        "infer",
        (port("x", "float32", (64,), 0),),
        (port("y", "float32", (1,), 256),),
        (
            step("multiply", INPUT, CONST, fast, tasks=4, ranged=True),
            step(
                "row_sums",
                fast,
                Ref("region", 320, 1),
                Ref("worker"),
                tasks=4,
                ranged=True,
                scratch=Ref("region", 384, 1),
            ),
            step("total4", Ref("region", 320, 1), OUTPUT),
        ),
        worker_bytes=64,
        region_bytes=(320, 448),
    )
    return Program(
        "two regions", (entry,), const=WEIGHTS.tobytes(), regions=(Region("arena", 320), Region("fast", 448))
    )


def model() -> Program:
    """Named as the C example expects it."""
    return replace(two_regions(), name="model")


def counted() -> Program:
    """An output with a static bound and a count."""
    entry = Entry(
        "infer",
        (port("x", "float32", (64,), 0),),
        (port("places", "int64", (64,), 256, count=1), port("n", "int64", (), 768)),
        (step("positives", INPUT, OUTPUT, Ref("output", 0, 1)),),
        region_bytes=(832,),
    )
    return Program("counted", (entry,), regions=(Region("arena", 832),))


PROGRAMS = {"model": model, "batches": batches, "trainable": trainable, "two_regions": two_regions, "counted": counted}
