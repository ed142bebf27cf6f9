"""Composite forms as exporters write them: recognised in every order of their parts, and computing the same."""

from itertools import permutations, product

import numpy as np
import pytest
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.composites import RULES

ROOT2, ROOT_2_PI = 1.4142135, 0.7978846


def orders(*factors):
    """Every order and bracketing of a product of two or three factors."""
    if len(factors) == 2:
        return [lambda b, f=f: b.mul(f[0](b), f[1](b)) for f in permutations(factors)]
    return [
        lambda b, f=f, left=left: (
            b.mul(b.mul(f[0](b), f[1](b)), f[2](b)) if left else b.mul(f[0](b), b.mul(f[1](b), f[2](b)))
        )
        for f in permutations(factors)
        for left in (True, False)
    ]


def x(b):
    found = [k for k in b.graph.inputs if b.graph.node(k).names[0] == "x"]
    from nervure.compiler.ir import Value

    return Value(found[0]) if found else b.x(2, 6, 4)


def gelu_forms():
    by_div = [
        lambda b: b.add(b.erf(b.div(x(b), b.c(ROOT2))), b.c(1)),
        lambda b: b.add(b.c(1), b.erf(b.mul(x(b), b.c([1 / ROOT2])))),
    ]
    for one_plus in by_div:
        yield from orders(x, lambda b: b.c(0.5), one_plus)
        yield lambda b, f=one_plus: b.mul(x(b), b.div(f(b), b.c(2)))


def tanh_forms():
    def cubed(b):
        return b.pow(x(b), b.c(3))

    def cube_product(b):
        return b.mul(x(b), b.mul(x(b), x(b)))

    def square(b):
        return b.add(b.c(1), b.mul(b.c(0.044715), b.mul(x(b), x(b))))

    inner = [
        lambda b, cube=cube: b.mul(b.c(ROOT_2_PI), b.add(x(b), b.mul(b.c(0.044715), cube(b))))
        for cube in (cubed, cube_product)
    ]
    inner.append(lambda b: b.mul(b.mul(x(b), b.c(ROOT_2_PI)), square(b)))
    inner.append(lambda b: b.mul(x(b), b.add(b.mul(b.c(ROOT_2_PI * 0.044715), b.pow(x(b), b.c(2))), b.c(ROOT_2_PI))))
    inner.append(lambda b: b.add(b.mul(x(b), b.c(ROOT_2_PI)), b.mul(b.c(ROOT_2_PI * 0.044715), cube_product(b))))
    for argument in inner:
        one_plus = lambda b, a=argument: b.add(b.c(1), b.tanh(a(b)))  # noqa: E731
        yield from orders(x, lambda b: b.c(0.5), one_plus)


def clip_6(b):
    return b.clip(b.add(x(b), b.c(3)), low=0, high=6)


def relu_6(b):
    return b.minimum(b.relu(b.add(b.c(3), x(b))), b.c(6))


def hard_swish_forms():
    for clip in (clip_6, relu_6):
        yield from orders(x, lambda b: b.c(1 / 6), clip)
        yield lambda b, f=clip: b.div(b.mul(x(b), f(b)), b.c(6))
        yield lambda b, f=clip: b.mul(b.div(f(b), b.c(6)), x(b))
        yield lambda b, f=clip: b.mul(b.div(x(b), b.c(6)), f(b))
    yield lambda b: b.mul(x(b), b.hard_sigmoid(x(b), alpha=0.16666667, beta=0.5))
    yield lambda b: b.mul(x(b), b.clip(b.add(b.mul(x(b), b.c(1 / 6)), b.c(0.5)), low=0, high=1))


def layer_norm_forms(axes):
    def parts(b):
        d = b.sub(x(b), b.reduce_mean(x(b), axes=axes, keepdims=True))
        return d, b.sub(x(b), b.reduce_mean(x(b), axes=axes, keepdims=True))

    squares = (lambda b, d: b.mul(d, d), lambda b, d: b.pow(d, b.c(2)))
    ends = (
        lambda b, d, v: b.div(d, b.sqrt(v)),
        lambda b, d, v: b.mul(d, b.reciprocal(b.sqrt(v))),
        lambda b, d, v: b.mul(b.pow(v, b.c(-0.5)), d),
        lambda b, d, v: b.div(d, b.pow(v, b.c(0.5))),
    )
    for square, end, twice in product(squares, ends, (False, True)):

        def build(b, square=square, end=end, twice=twice):
            d, e = parts(b)
            mean = b.reduce_mean(square(b, e if twice else d), axes=axes, keepdims=True)
            return end(b, d, b.add(mean, b.c(1e-5)))

        yield build


def moments_norm(b):
    mean = b.reduce_mean(x(b), axes=(2,), keepdims=True)
    squares = b.reduce_mean(b.mul(x(b), x(b)), axes=(2,), keepdims=True)
    v = b.add(b.sub(squares, b.mul(mean, mean)), b.c(1e-3))
    return b.div(b.sub(x(b), mean), b.sqrt(v))


def with_parameters(b):
    scale, bias = (b.graph.param(np.float32([1, 2, 3, 4]), n) for n in ("scale", "bias"))
    return b.add(b.mul(next(layer_norm_forms((2,)))(b), scale), bias)


def rms(b):
    mean = b.reduce_mean(b.pow(x(b), b.c(2)), axes=(-1,), keepdims=True)
    return b.mul(x(b), b.reciprocal(b.sqrt(b.add(mean, b.c(1e-6)))))


def affine(norm, *shape):
    def build(b):
        b.x(2, 6, 4)
        return b.add(b.mul(b.w(*shape, name="scale"), norm(b)), b.w(*shape, name="bias"))

    return build


def keras_norm(b):
    mean = b.reduce_mean(x(b), axes=(2,), keepdims=True)
    d = b.sub(x(b), mean)
    var = b.reduce_mean(b.mul(d, d), axes=(2,), keepdims=True)
    gain = b.mul(b.rsqrt(b.add(var, b.c(1e-3))), b.w(4, name="scale"))
    return b.add(b.mul(x(b), gain), b.sub(b.w(4, name="bias"), b.mul(mean, gain)))


def group_norm_by_reshape(b):
    grouped = b.reshape(x(b), shape=(2, 3, -1))
    norm = b.group_norm(grouped, b.c([1, 1, 1]), b.c([0, 0, 0]), num_groups=3, epsilon=1e-5)
    return b.add(b.mul(b.reshape(norm, shape=(2, 6, 4)), b.w(6, 1)), b.w(6, 1))


def group_norm_by_parts(b, shape=(2, 3, 8), target=(2, 6, 4)):
    grouped = b.reshape(x(b), shape=shape)
    axes = (len(shape) - 1,)
    d = b.sub(grouped, b.reduce_mean(grouped, axes=axes, keepdims=True))
    var = b.reduce_mean(b.mul(d, d), axes=axes, keepdims=True)
    return b.reshape(b.div(d, b.sqrt(b.add(var, b.c(1e-5)))), shape=target)


def instance_norm(b):
    norm = next(layer_norm_forms((2,)))(b)
    return b.add(b.mul(norm, b.w(6, 1)), b.w(6, 1))


def softmax(b, shift=True, axis=1):
    moved = b.sub(x(b), b.reduce_max(x(b), axes=(axis,), keepdims=True)) if shift else x(b)
    e = b.exp(moved)
    return b.div(e, b.reduce_sum(e, axes=(axis,), keepdims=True))


def log_softmax(b, form):
    largest = b.reduce_max(x(b), axes=(1,), keepdims=True)
    moved = b.sub(x(b), largest)
    total = b.log(b.reduce_sum(b.exp(x(b) if form == 2 else moved), axes=(1,), keepdims=True))
    return (b.sub(moved, total), b.sub(x(b), b.add(total, largest)), b.sub(x(b), total))[form]


def prelu_forms():
    slope = lambda b: b.w(6, 1, name="slope")  # noqa: E731
    yield lambda b: b.add(b.relu(x(b)), b.mul(slope(b), b.minimum(x(b), b.c(0))))
    yield lambda b: b.sub(b.relu(x(b)), b.mul(slope(b), b.relu(b.neg(x(b)))))
    yield lambda b: b.add(b.mul(b.neg(slope(b)), b.relu(b.neg(x(b)))), b.relu(x(b)))
    yield lambda b: b.add(b.relu(x(b)), b.mul(b.mul(slope(b), b.sub(x(b), b.abs(x(b)))), b.c(0.5)))


def leaky_forms():
    slope = lambda b: b.c([[0.1]])  # noqa: E731
    yield lambda b: b.where(b.less(x(b), b.c(0)), b.mul(x(b), slope(b)), x(b))
    yield lambda b: b.where(b.greater(x(b), b.c(0)), x(b), b.mul(slope(b), x(b)))
    yield lambda b: b.where(b.less_equal(b.c(0), x(b)), x(b), b.mul(slope(b), x(b)))
    yield lambda b: b.maximum(b.mul(x(b), slope(b)), x(b))
    yield lambda b: b.add(b.relu(x(b)), b.mul(slope(b), b.minimum(x(b), b.c(0))))
    yield lambda b: b.sub(b.relu(x(b)), b.mul(slope(b), b.relu(b.neg(x(b)))))
    yield lambda b: b.add(b.relu(x(b)), b.mul(b.mul(b.c(0.05), b.sub(x(b), b.abs(x(b)))), b.c(1)))


def one_plus_exp(b):
    return b.add(b.exp(b.neg(x(b))), b.c(1))


# what is left -> the forms that become it
FORMS = {
    "gelu": [*gelu_forms(), *tanh_forms()],
    "silu": [*orders(x, lambda b: b.sigmoid(x(b))), lambda b: b.div(x(b), one_plus_exp(b))],
    "sigmoid": [
        lambda b: b.div(b.c(1), one_plus_exp(b)),
        lambda b: b.reciprocal(one_plus_exp(b)),
        lambda b: b.add(b.mul(b.tanh(b.mul(x(b), b.c(0.5))), b.c(0.5)), b.c(0.5)),
        lambda b: b.add(b.c(0.5), b.div(b.tanh(b.div(x(b), b.c(2))), b.c(2))),
    ],
    "softplus": [lambda b: b.log(b.add(b.c(1), b.exp(x(b)))), lambda b: b.log1p(b.exp(x(b)))],
    "hard_swish": [*hard_swish_forms()],
    "hard_sigmoid": [
        lambda b: b.div(clip_6(b), b.c(6)),
        lambda b: b.mul(b.c(1 / 6), relu_6(b)),
        lambda b: b.clip(b.add(b.mul(x(b), b.c(0.2)), b.c(0.5)), low=0, high=1),
    ],
    "leaky_relu": [*leaky_forms()],
    "group_norm reshape": [lambda b: group_norm_by_parts(b, target=(2, 6, 2, 2))],
    "less mul where": [*prelu_forms()],
    "softmax": [softmax, lambda b: softmax(b, shift=False), lambda b: softmax(b, axis=-1)],
    "log_softmax": [lambda b, form=form: log_softmax(b, form) for form in range(3)],
    "layer_norm": [
        *layer_norm_forms((2,)),
        *layer_norm_forms((-2, -1)),
        affine(next(layer_norm_forms((2,))), 4),
        affine(next(layer_norm_forms((1, 2))), 6, 4),
        affine(next(layer_norm_forms((2,))), 1, 1, 4),
        keras_norm,
        moments_norm,
        with_parameters,
    ],
    "rms_norm": [rms, lambda b: b.mul(rms(b), b.w(4))],
    "group_norm": [
        group_norm_by_reshape,
        group_norm_by_parts,
        lambda b: group_norm_by_parts(b, (6, 8)),
        instance_norm,
    ],
}


@pytest.mark.parametrize(
    ("left", "form"),
    [(left, form) for left, forms in FORMS.items() for form in forms],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_form_is_recognised(b, kit, left, form):
    x(b)
    graph = kit.finish(b, form(b))
    text = graph.text()
    after = canonicalize(graph, check=True)
    assert graph.text() == text
    assert " ".join(op for op, n in kit.operations(after).items() for _ in range(n)) == left
    kit.assert_same_results(graph, after)
    assert after.tensor_name(after.outputs[0]) == "y"
    origins = {o for k in graph for o in graph.node(k).origin if graph.node(k).op not in ("input", "const")}
    assert origins <= {o for k in after for o in after.node(k).origin}


def attention(b, scale="after", mask=None, transposed="explicit", cap=0.0, safe=""):
    q, v = b.x(1, 2, 5, 4, name="q"), b.x(1, 2, 6, 3, name="v")
    if transposed == "heads":
        k = b.transpose(b.x(1, 6, 2, 4, name="k"), perm=(0, 2, 3, 1))
    else:
        k = b.transpose(b.x(1, 2, 6, 4, name="k"), perm=(0, 1, 3, 2))
    if scale in ("q", "both"):
        q = b.mul(q, b.c([0.7]))
    if scale in ("k", "both"):
        k = b.div(k, b.c(1.5))
    s = b.matmul(q, k)
    if scale == "after":
        s = b.mul(b.c(0.5), s)
    elif scale == "divisor":
        s = b.div(s, b.c(2))
    if cap:
        s = b.mul(b.tanh(b.div(s, b.c(cap))), b.c(cap))
    if mask == "added":
        added = b.x(1, 1, 5, 6, name="m")
        if safe:
            added = b.where(b.x(1, 1, 5, 6, name="keep", dtype="bool"), added, b.c(-np.inf))
        s = b.add(s, added)
    elif mask == "twice":
        s = b.add(b.x(6, name="n"), b.add(s, b.x(1, 1, 5, 6, name="m")))
    elif mask == "kept":
        s = b.where(b.x(1, 1, 1, 6, name="m", dtype="bool"), s, b.c(-1e9))
    elif mask == "dropped":
        s = b.where(b.x(5, 6, name="m", dtype="bool"), b.c(-3e38), s)
    p = b.softmax(s, axis=-1)
    if safe == "nan":
        p = b.where(b.isnan(p), b.c(0), p)
    elif safe == "mask":
        largest = b.reduce_max(added, axes=(-1,), keepdims=True)
        p = b.where(b.equal(largest, b.c([-np.inf])), b.c([0]), p)
    return b.matmul(p, v)


ATTENTION = [
    *({"scale": s} for s in ("none", "after", "divisor", "q", "k", "both")),
    *({"mask": m} for m in ("added", "twice", "kept", "dropped")),
    {"transposed": "heads", "mask": "added", "scale": "both"},
    {"cap": 3.0},
    {"cap": 3.0, "scale": "none", "mask": "added"},
    {"safe": "nan", "mask": "kept"},
    {"safe": "mask", "mask": "added"},
]


@pytest.mark.parametrize("settings", ATTENTION, ids=str)
def test_attention_is_recognised(b, kit, settings):
    graph = kit.finish(b, attention(b, **settings))
    after = canonicalize(graph, check=True)
    left = kit.operations(after)
    assert left.pop("attention") == 1
    assert set(left) <= ({"transpose", "reshape"} if settings.get("transposed") else set()) | {
        "twice": {"add"},
        "added": {"where"},
        "kept": {"where"},
        "dropped": {"where"},
    }.get(settings.get("mask"), set())
    kit.assert_same_results(graph, after)


@pytest.mark.parametrize("keys", [5, 8])
def test_a_constant_triangle_is_causal(b, kit, keys):
    q, k, v = (b.x(1, 2, n, 4, name=name) for name, n in (("q", 5), ("k", keys), ("v", keys)))
    mask = np.where(np.tri(5, keys, dtype=bool), 0, -np.inf)
    s = b.add(b.matmul(q, b.transpose(k, perm=(0, 1, 3, 2))), b.c(mask[None, None]))
    graph = kit.finish(b, b.matmul(b.softmax(s, axis=3), v))
    after = canonicalize(graph, check=True)
    assert kit.body(after) == "%y: f32[1,2,5,4] = attention(%q, %k, %v) scale=1 causal=True softcap=0\nreturn %y"
    kit.assert_same_results(graph, after)


NOT_RECOGNISED = {
    "a mask that only lowers": lambda b: attention_with(b, low=-5.0),
    "softmax along the queries": lambda b: attention_with(b, axis=2),
    "another constant": lambda b: b.mul(b.mul(x(b), b.c(0.5)), b.add(b.erf(b.mul(x(b), b.c(0.8))), b.c(1))),
    "a deviation of something else": lambda b: b.div(
        b.sub(x(b), b.reduce_mean(x(b), axes=(2,), keepdims=True)),
        b.sqrt(b.add(b.reduce_mean(b.mul(b.neg(x(b)), x(b)), axes=(2,), keepdims=True), b.c(30.0))),
    ),
    "a norm over the first axes": lambda b: next(layer_norm_forms((0, 1)))(b),
    "a sum along another axis": lambda b: b.div(b.exp(x(b)), b.reduce_sum(b.exp(x(b)), axes=(1, 2), keepdims=True)),
}


def attention_with(b, low=-1e9, axis=3):
    q, k, v = (b.x(1, 2, 5, 5, name=n) for n in "qkv")
    s = b.where(b.x(5, 5, name="m", dtype="bool"), b.matmul(q, b.transpose(k, perm=(0, 1, 3, 2))), b.c(low))
    return b.matmul(b.softmax(s, axis=axis), v)


@pytest.mark.parametrize("name", NOT_RECOGNISED)
def test_what_is_something_else_is_not_recognised(b, kit, name):
    graph = kit.finish(b, NOT_RECOGNISED[name](b))
    after = canonicalize(graph, check=True)
    assert not set(kit.operations(after)) & {"attention", "gelu", "layer_norm", "rms_norm", "softplus"}
    assert ("softmax" in kit.operations(after)) == ("softmax" in kit.operations(graph))
    kit.assert_same_results(graph, after)


@pytest.mark.parametrize("seen", ["user", "output"])
def test_a_form_whose_inside_is_seen_stays(b, kit, seen):
    gate = b.sigmoid(b.x(2, 3))
    b.graph.output(b.mul(b.neg(gate), gate) if seen == "user" else gate)
    from nervure.compiler.ir import Value

    b.graph.output(b.mul(Value(b.graph.inputs[0]), gate))
    after, fired = kit.apply_rules(b.graph, RULES)
    assert fired == []
    assert kit.operations(after)["sigmoid"] == 1
