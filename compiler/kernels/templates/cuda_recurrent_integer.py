"""LSTM and GRU on 8-bit steps on a GPU, bit for bit: a block for each direction and row of the batch, a thread for each
hidden unit, states in shared memory. Weights lie unit by unit, so that neighbouring threads read neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...ops.recurrent_integers import GATES
from ...types import DTYPES
from ..spec import Draft, KernelSpec, Plan, Region, Template
from ._cuda_cost import Load, nanoseconds
from ._recurrent_integer import Layer
from .recurrent_integer import layer

_PRODUCT = 6.0  # cycles of a thread


def plan(region: Region) -> list[Plan]:
    gpu = region.machine.gpu
    found = layer(region, apart=True)
    if gpu is None or found is None:
        return []
    config, arguments, packing = found
    blocks, hidden = config["directions"] * config["batch"], config["hidden"]
    shared = sum(-(-size * DTYPES[dtype][0] // 16) * 16 for _, dtype, size in Layer.parts(config))
    if not blocks * config["steps"] * hidden or shared > gpu.shared:
        return []
    config["threads"] = min(512, -(-hidden // gpu.warp) * gpu.warp)
    turns = -(-hidden // config["threads"])
    chain = config["steps"] * turns * GATES[config["layer"]] * (hidden + config["features"]) * _PRODUCT
    main = Draft(KernelSpec("cuda_recurrent_integer", config), tuple(arguments), blocks)
    return [
        Plan(
            "cuda_recurrent_integer",
            (*packing.phases, main),
            nanoseconds(gpu, Load(blocks, config["threads"], chain=chain)),
            tuple(packing.consts),
            packing.shared,
            detail=f"{region.op}, a thread a unit",
        )
    ]


class _Shared(Layer):
    """A layer whose units are taken by the threads of a block, and whose scratch is the block's."""

    thread: Any = 0

    def given_scratch(self) -> None:
        pass

    def run(self, block: Any, thread: Any) -> None:
        self.thread = thread
        for name, dtype, size in self.parts(self.c):
            setattr(self, name, self.k.shared(dtype, size, name))
        self.task(block)

    @contextmanager
    def over(self, extent: int, name: str = "i") -> Iterator[Any]:
        k, threads = self.k, self.c["threads"]
        with k.loop(-(-extent // threads), name="turn") as turn:
            at = k.bind(turn * threads + self.thread, name)
            with k.when(at < extent):
                yield at
        k.barrier()

    @contextmanager
    def blocks(self) -> Iterator[tuple[Any, Sequence[Any]]]:
        with self.over(self.hidden, "unit") as unit:
            yield 0, [unit]


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _Shared(k, config)
    k.contract = False
    with k.grid(config["directions"] * config["batch"], config["threads"]) as (block, thread):
        kernel.run(block, thread)


TEMPLATE = Template(
    "cuda_recurrent_integer", ("lstm_integer", "gru_integer"), plan, {"cuda_recurrent_integer": emit}, device=True
)
