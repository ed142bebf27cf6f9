"""Plans that fit: patches, memories beside the arena, and the advice where nothing helps. The networks are compiled for
an emulated Cortex-M4 and must give the bytes that the references give."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.library import measure
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.plan.advice import scaled
from nervure.compiler.plan.liveness import from_stored, liveness, peak
from nervure.compiler.program import Program
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool, NervureError
from nervure.targets import emulator, get

M4 = get("cortex-m4")


def network(dtype: str = "int8", size: int = 48) -> Graph:
    """Depthwise and 1x1 convolutions in turn, whose first stages are large: what cameras are watched with."""
    random, graph = np.random.default_rng(0), Graph("eye")
    at = graph.input("x", TensorType(dtype, (1, 3, size, size)))

    def conv(at: Any, columns: int, kernel: int, stride: int, depthwise: bool = False) -> Any:
        channels = graph.type(at).dims[1]
        shape = (columns, 1 if depthwise else channels, kernel, kernel)
        pad = kernel // 2
        attrs = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1)}
        attrs["group"] = channels if depthwise else 1
        if dtype == "float32":
            w = graph.const((random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
            return graph.add("relu", graph.add("conv", at, w, **attrs))
        w = graph.const(random.integers(-127, 128, shape).astype(np.int8))
        total = graph.add(
            "conv_integer", at, w, graph.const(random.integers(-99, 99, columns).astype(np.int32)), **attrs
        )
        scale = graph.const(random.uniform(0.0005, 0.002, (1, columns, 1, 1)).astype(np.float32))
        return graph.add("requantize", total, scale, zero_point=-3, to="int8")

    at = conv(at, 8, 3, 2)
    for columns, stride in ((16, 1), (32, 2), (32, 2), (64, 2)):
        at = conv(at, graph.type(at).dims[1], 3, stride, depthwise=True)
        at = conv(at, columns, 1, 1)
    graph.output(graph.add("reshape", at, shape=(1, int(np.prod(graph.type(at).dims)))), "y")
    return graph


def planned(graph: Graph, **options: Any) -> Program:
    return plan_program([EntryGraph(graph)], M4, Options(**options))[0]


def arena(program: Program) -> int:
    return sum(program.entries[0].region_bytes)


@cache
def tight(dtype: str = "int8") -> int:
    """Bytes that only patches can keep to."""
    whole = planned(network(dtype))
    return min(arena(whole), arena(planned(network(dtype), max_ram=arena(whole) - 8))) * 7 // 8


def test_patches_are_taken_only_where_whole_layers_do_not_fit() -> None:
    whole = planned(network())
    assert "patches" not in planned(network(), max_ram=arena(whole)).meta
    limit = tight()
    less = planned(network(), max_ram=limit)
    rows = less.meta["patches"]["infer"]
    assert rows[0] == {"name": "whole layers", "arena_bytes": arena(whole), "flops": 0.0}
    assert rows[1]["name"] == "kernels that need less RAM" and rows[1]["flops"] == 0
    assert rows[-1]["arena_bytes"] == arena(less) <= limit < rows[1]["arena_bytes"]
    assert rows[-1]["flops"] > 0 and "patches of the first" in rows[-1]["name"]


@pytest.mark.slow
def test_the_same_bound_gives_the_same_plan() -> None:
    limit = tight()
    first, second = (planned(network(), max_ram=limit) for _ in range(2))
    assert first.entries == second.entries and first.const == second.const


@pytest.mark.slow
def test_tiles_inside_share_their_kernels_and_weights() -> None:
    whole, less = planned(network()), planned(network(), max_ram=tight())
    repeated = len(less.entries[0].steps) - len(whole.entries[0].steps)
    assert repeated > 30 and len(less.kernels()) - len(whole.kernels()) < repeated // 2
    assert len(less.const) < 2 * len(whole.const)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_what_cannot_fit_ends_in_advice_with_numbers(dtype: str) -> None:
    whole = planned(network(dtype))
    with pytest.raises(NervureError, match="--max-ram allows 3000") as error:
        planned(network(dtype), max_ram=3000)
    row = peak(liveness(whole.entries[0]))
    assert row is not None and error.value.why is not None and error.value.hint is not None
    assert str(row.bytes) in error.value.why and f"whole layers need {arena(whole)}" in error.value.why
    assert "% more operations" in error.value.hint
    assert ("as int8" in error.value.hint) == (dtype == "float32")


@pytest.mark.slow
def test_advice_names_an_input_that_fits() -> None:
    small = arena(planned(network(size=24)))
    graph = network()
    graph.outputs, graph.output_names = [], []
    last = graph.find("requantize")[-1]
    pooled = graph.add(
        "max_pool", graph.values(last)[0], kernel_shape=(3, 3), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1)
    )
    graph.output(graph.add("reshape", pooled, shape=(1, 64)), "y")
    graph.prune()
    other = scaled(graph, 1, 2)
    assert other is not None and other.node(other.inputs[0]).types[0].dims == (1, 3, 24, 24)
    assert abs(arena(planned(other)) - small) < 256
    with pytest.raises(NervureError) as error:
        planned(graph, max_ram=small + 256)
    assert "an input of 1x3x24x24 needs" in str(error.value.hint) and "(fits)" in str(error.value.hint)


def test_a_fixed_shape_has_no_smaller_input() -> None:
    assert scaled(network(), 1, 2) is None


def test_what_is_touched_most_lies_in_the_fast_memory() -> None:
    program = planned(network(), fast=(("dtcm", 6000),))
    (entry,) = program.entries
    assert [r.name for r in program.regions] == ["arena", "dtcm"]
    assert 0 < entry.region_bytes[1] <= 6000
    assert entry.region_bytes[0] < arena(planned(network()))
    assert all(b.offset + b.nbytes <= entry.region_bytes[b.region] for b in entry.buffers)


def test_a_spare_memory_helps_where_the_arena_is_too_small() -> None:
    whole = arena(planned(network()))
    enough = planned(network(), arena=whole, spare=(("backup", 9000),))
    assert [r.name for r in enough.regions] == ["arena"]
    program = planned(network(), arena=9300, spare=(("backup", 9000),))  # the largest tensor takes 9,216 bytes
    assert [r.name for r in program.regions] == ["arena", "backup"]
    assert program.entries[0].region_bytes[0] <= 9300 and 0 < program.entries[0].region_bytes[1] <= 9000


def test_constants_that_do_not_fit_the_flash_end_in_advice() -> None:
    with pytest.raises(NervureError, match="bytes of flash, there are 1000") as error:
        planned(network("float32"), flash=1000)
    assert "--optimize size needs" in str(error.value.hint) and "int8 weights" in str(error.value.hint)


# -- in the emulator -------------------------------------------------------------------------------------------------


@pytest.fixture
def emulated() -> None:
    try:
        emulator.command(M4)
    except MissingTool as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("how", ["whole", "patches", "regions"])
def test_an_emulated_core_computes_the_same(emulated: None, dtype: str, how: str, tmp_path: Path) -> None:
    graph = network(dtype)
    options = {
        "whole": Options(),
        "patches": Options(max_ram=tight(dtype)),
        "regions": Options(fast=(("sram", 9000),)),
    }
    artifact = compile_entries([EntryGraph(graph)], M4, tmp_path / "model.a", options[how])
    x = np.random.default_rng(1).integers(-128, 128, (1, 3, 48, 48)).astype(dtype)
    (wanted,) = interpret(graph, [x])
    done = measure(artifact, M4, [x.tobytes()], [wanted.nbytes])
    got = np.frombuffer(done.outputs[0], dtype).reshape(wanted.shape)
    if dtype == "int8":
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
    entry = artifact.entries[0]
    assert sum(done.touched) <= sum(entry.region_bytes)
    assert (how == "regions") == (len(entry.region_bytes) == 2) and (how == "patches") == ("patches" in artifact.meta)
    rows = from_stored(artifact.block["entries"][0])
    assert len(rows) == len(entry.steps) and max(r.bytes for r in rows) <= sum(entry.region_bytes)
    if how == "whole":
        assert any(r.saved for r in rows)  # some layer is written over what it reads
