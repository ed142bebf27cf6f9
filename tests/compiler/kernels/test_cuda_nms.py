"""nms and nonzero on a GPU: choices of all classes, equal scores, no choice at all; coordinates in their order."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import check_region, region_of
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


def boxes(batch, classes, count, most, score, iou):
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((batch, classes, count)), 2).astype("float32")  # many are equal
    low = rng.random((batch, count, 2))
    corners = np.concatenate([low, low + 0.3 * rng.random((batch, count, 2))], 2).astype("float32")
    attrs = {"max_output": most, "iou_threshold": iou, "score_threshold": score, "center_point_box": False}
    return region_of("nms", [corners, scores], attrs, machine=MACHINE)


@pytest.mark.parametrize(
    "case",
    [(2, 3, 300, 20, 0.3, 0.4), (1, 1, 70, 70, None, 0.1), (1, 2, 40, 5, 1.0, 0.5), (1, 1, 300, 300, None, 0.9)],
    ids=str,
)
def test_choices(case):
    region, arrays = boxes(*case)
    assert [p.template for p in plans(region)] == ["cuda_nms"]
    check_region(region, arrays)


@pytest.mark.parametrize("shape", [(3000,), (7, 5, 60), (2, 2), (4, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["bool", "int8", "float32"])
def test_nonzero(shape, dtype):
    x = (np.random.default_rng(0).random(shape) < 0.3).astype(dtype)
    region, arrays = region_of("nonzero", [x], {}, machine=MACHINE)
    assert [p.template for p in plans(region)] == ["cuda_nonzero"]
    check_region(region, arrays)


@needs_compiler
def test_no_local_memory():
    counted(boxes(1, 2, 300, 20, 0.3, 0.4)[0], "cuda_nms")
    counted(region_of("nonzero", [np.eye(20)], {}, machine=MACHINE)[0], "cuda_nonzero")
