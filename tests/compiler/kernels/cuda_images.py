"""Machine code of a plan's kernels, held against the limits of its architecture. Needs NVRTC or nvcc."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.spec import Plan, Region
from nervure.compiler.kernels.templates import plans
from nervure.errors import MissingTool
from nervure.targets import cubin
from nervure.targets.nvrtc import compile_cuda, compiler_version

MACHINES = ("cuda-sm80", "cuda-sm87", "cuda-sm89", "cuda-sm90")
INSTRUCTIONS = ("mma.sync", "ldmatrix", "cp.async.c", "fma.rn.f32", "fma.rn.f64", "dp4a", "shfl.sync")


@cache
def _there() -> bool:
    try:
        return bool(compiler_version())
    except MissingTool:
        return False


needs_compiler = pytest.mark.skipif(not _there(), reason="neither NVRTC nor nvcc is here")


def plan_of(region: Region, template: str) -> Plan:
    """The template's plan for a region."""
    return next(p for p in plans(region) if p.template == template)


def counted(region: Region, template: str) -> dict[str, int]:
    """Compiles the plan for the architecture of its machine; fails where a kernel has local memory, spilled registers
    or breaks a limit. Gives how often each of ``INSTRUCTIONS`` stands in its PTX."""
    from nervure.compiler.kernels import device

    found = dict.fromkeys(INSTRUCTIONS, 0)
    gpu = region.machine.gpu
    assert gpu is not None
    for draft in plan_of(region, template).phases:
        name, config = json.loads(draft.spec.canonical)
        builder = worker.written(name, config, draft.spec.name, region.machine.record())
        made = device.text(builder, [])
        for number in gpu.images:
            code = compile_cuda(made["source"], f"sm_{number}", contract=made["contract"])
            (info,) = cubin.kernels(code).values()
            assert (info.local, info.stack) == (0, 0), f"{name} for {number} has local memory: {info}"
            assert not cubin.within(gpu, info, made["threads"], made["shared"])
        ptx = compile_cuda(made["source"], f"compute_{gpu.images[0]}", contract=made["contract"]).decode()
        for word in INSTRUCTIONS:
            found[word] += len(re.findall(rf"^\s.*\b{re.escape(word)}", ptx, re.M))
    return found
