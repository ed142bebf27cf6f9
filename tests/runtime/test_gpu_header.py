"""What the runtime says of the driver is what Nvidia's own header says: structures, numbers, names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nervure.targets import get, nvrtc, toolchain

RUNTIME = toolchain.RUNTIME / "cuda"
CHECKS = """
#include <cuda.h>
#include <stddef.h>
#include "driver.h"
#define SAME(a, b) _Static_assert((a) == (b), #a)
SAME(sizeof(CUDA_MEMCPY3D), sizeof(copy_node));
SAME(offsetof(CUDA_MEMCPY3D, srcDevice), offsetof(copy_node, from.device));
SAME(offsetof(CUDA_MEMCPY3D, dstHost), offsetof(copy_node, to.host));
SAME(offsetof(CUDA_MEMCPY3D, WidthInBytes), offsetof(copy_node, width));
SAME(sizeof(CUDA_KERNEL_NODE_PARAMS_v1), sizeof(kernel_node));
SAME(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, sharedMemBytes), offsetof(kernel_node, shared));
SAME(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, kernelParams), offsetof(kernel_node, arguments));
SAME(sizeof(CUdeviceptr), sizeof(device_pointer));
SAME(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, 1);
SAME(CU_MEMORYTYPE_HOST, 1);
SAME(CU_MEMORYTYPE_DEVICE, 2);
SAME(CUDA_ERROR_OUT_OF_MEMORY, 2);
SAME(CUDA_ERROR_NO_DEVICE, 100);
SAME(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8);
SAME(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75);
SAME(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76);
SAME(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16);
"""


@pytest.fixture
def include() -> Path:
    folder = nvrtc._wheel()[1]
    if folder is None or not (folder / "cuda.h").exists():
        pytest.skip("needs Nvidia's headers: pip install 'nervure[cuda]'")
    return folder


def test_structures_and_numbers(include: Path, tmp_path: Path) -> None:
    (tmp_path / "checks.c").write_text(CHECKS)
    flags = ("-I", str(include), "-I", str(RUNTIME))
    toolchain.compile_c(tmp_path / "checks.c", tmp_path / "checks.o", get("x86-64-v3"), flags=flags)
    assert (tmp_path / "checks.o").exists()


def test_every_function_is_one_of_the_drivers(include: Path) -> None:
    wanted = set(re.findall(r"F\(\w+, (cu\w+)", (RUNTIME / "driver.h").read_text()))
    header = (include / "cuda.h").read_text()
    assert len(wanted) > 40
    assert [name for name in sorted(wanted) if not re.search(rf"\b{name}\b", header)] == []
