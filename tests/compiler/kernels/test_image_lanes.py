"""Convolutions whose vector lanes are the images of the batch, and their gradients, against the references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import check_region, dense, extra_input, machines, region_of
from nervure.compiler.kernels.templates import plans
from nervure.compiler.kernels.templates.image_winograd import matrices

CONVS = [  # x, outputs, kernel, strides, pads, dilations, group
    ((32, 1, 28, 28), 6, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 1),
    ((32, 6, 14, 14), 16, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((16, 3, 13, 11), 7, (3, 3), (2, 2), (1, 1, 0, 1), (1, 1), 1),
    ((48, 4, 9, 10), 6, (3, 2), (1, 3), (2, 0, 2, 1), (2, 1), 2),
    ((16, 5, 6, 6), 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),
    ((16, 2, 7, 7), 3, (1, 1), (3, 3), (0, 0, 0, 0), (1, 1), 1),
    ((32, 3, 40), 4, (7,), (2,), (3, 3), (1,), 1),
    ((16, 2, 4, 5, 6), 3, (2, 3, 3), (1, 2, 1), (0, 1, 1, 1, 1, 1), (1, 1, 1), 1),
]
MORE = [
    ((16, 3, 9, 10), 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((16, 4, 9, 7), 6, (3, 5), (1, 1), (1, 2, 1, 2), (1, 1), 2),
    ((16, 3, 30), 4, (3,), (1,), (1, 1), (1,), 1),
    ((16, 2, 4, 5, 9), 3, (2, 3, 3), (1, 1, 1), (0, 1, 1, 1, 1, 1), (1, 1, 1), 1),
]
ON = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)


def batch_last(rank):
    return (*range(1, rank), 0) if rank > 2 else range(rank)


def random(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s, np.float32) for s in shapes]


def window(case):
    return dict(zip(("strides", "pads", "dilations", "group"), case[3:], strict=True))


def output_shape(case):
    x, outputs, kernel, strides, pads, dilations, _ = case
    rank = len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [x[2 + a] + pads[a] + pads[rank + a] - spans[a] for a in range(rank)]
    return (x[0], outputs, *(s // step + 1 for s, step in zip(sizes, strides, strict=True)))


def region(op, arrays, attrs, machine, kept=(), **options):
    """A region of tensors with the batch innermost; inputs numbered in ``kept`` (parameters) are row-major."""
    found, arrays = region_of(op, arrays, attrs, machine=machine, order=batch_last, **options)
    inputs = [replace(o, strides=dense(o.type.dims)) if i in kept else o for i, o in enumerate(found.inputs)]
    return replace(found, inputs=tuple(inputs)), arrays


def convolution(case, machine, **options):
    x, outputs, kernel = case[:3]
    arrays = random(x, (outputs, x[1] // case[-1], *kernel), (outputs,))
    return region("conv", arrays, window(case), machine, kept=(1,), **options)


def gradient_of_x(case, machine, **options):
    x, outputs, kernel, strides, pads, dilations, group = case
    g, rank = output_shape(case), len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    rest = [x[2 + a] + pads[a] + pads[rank + a] - spans[a] - (g[2 + a] - 1) * strides[a] for a in range(rank)]
    arrays = random(g, (outputs, x[1] // group, *kernel))
    return region("conv_transpose", arrays, {**window(case), "output_padding": tuple(rest)}, machine, (1,), **options)


@ON
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_forward(case, machine):
    found, arrays = convolution(case, machine)
    check_region(found, arrays, template="image_lanes", atol=1e-4)
    assert plans(found)[0].template.startswith("image_")


@ON
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_gradient_of_x(case, machine):
    found, arrays = gradient_of_x(case, machine)
    check_region(found, arrays, template="image_lanes", atol=1e-4)
    assert plans(found)[0].template.startswith("image_")


@ON
@pytest.mark.parametrize("make", [convolution, gradient_of_x])
@pytest.mark.parametrize("case", [CONVS[i] for i in (0, 1, 4)] + MORE, ids=str)
def test_fewer_products(case, make, machine):
    found, arrays = make(case, machine)
    check_region(found, arrays, template="image_winograd", atol=2e-4)


@pytest.mark.parametrize("m, taps", [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5), (7, 2)])
def test_transforms_of_a_line(m, taps):
    """In float64 the transforms are exact: the products give the correlation."""
    x, w = (np.random.default_rng(0).standard_normal(n) for n in (m + taps - 1, taps))
    back, weights, ahead = matrices(m, taps)
    np.testing.assert_allclose(back @ ((weights @ w) * (ahead @ x)), np.correlate(x, w, "valid"), atol=1e-12)


def test_exact_has_no_other_rounding():
    found, _ = convolution(CONVS[0], machines()[0], exact=True)
    assert "image_winograd" not in {p.template for p in plans(found)}


@ON
@pytest.mark.parametrize("template", ["image_lanes", "image_winograd"])
def test_epilogue(template, machine):
    residual, scale = random(output_shape(CONVS[1]), (16, 1, 1))

    def epilogue(g, y):
        return g.add("relu", g.add("add", g.add("mul", y, extra_input(g, scale)), extra_input(g, residual)))

    found, arrays = convolution(CONVS[1], machine, epilogue=epilogue)
    check_region(found, arrays, template=template, atol=2e-4)


def test_other_orders_and_odd_batches_are_left_to_others():
    case = ((20, 3, 8, 8), *CONVS[2][1:])
    assert "image_lanes" not in {p.template for p in plans(convolution(case, machines()[0])[0])}
    found, _ = convolution(CONVS[2], machines()[0], output_order=range)
    assert "image_lanes" not in {p.template for p in plans(found)}


def gradient_of_weights(case, machine, **options):
    attrs = {**window(case), "kernel_shape": case[2]}
    options = {"output_order": range, **options}
    return region("conv_grad_weight", random(case[0], output_shape(case)), attrs, machine, **options)


@ON
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_gradient_of_weights(case, machine):
    found, arrays = gradient_of_weights(case, machine)
    check_region(found, arrays, template="image_lanes_grad", atol=1e-3)
    assert plans(found)[0].template == "image_lanes_grad"


@ON
@pytest.mark.parametrize("case", [CONVS[1], CONVS[3]], ids=str)
def test_optimizer_after_the_gradient(case, machine):
    """Two results, the next weights and the next momentum."""
    x, outputs, kernel = case[:3]
    w, m = random((outputs, x[1] // case[-1], *kernel), (outputs, x[1] // case[-1], *kernel))

    def epilogue(g, grad):
        momentum = g.add("add", g.add("mul", extra_input(g, m), g.const(np.float32(0.9))), grad)
        step = g.add("mul", momentum, g.const(np.float32(0.01)))
        return [g.add("sub", extra_input(g, w), step), momentum]

    found, arrays = gradient_of_weights(case, machine, epilogue=epilogue)
    inputs = [replace(o, strides=dense(o.type.dims)) if i > 1 else o for i, o in enumerate(found.inputs)]
    check_region(replace(found, inputs=tuple(inputs)), arrays, template="image_lanes_grad", atol=1e-3)
