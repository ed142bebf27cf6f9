"""Every rule of ``simplify``: what a graph becomes, in text form, and that it computes the same."""

# ruff: noqa: E501  (the text form of a node is one line)

import pytest
from nervure.compiler.passes.simplify import RULES

inf = float("inf")

# rule, graph, text afterwards
CASES = [
    ("identity", lambda b: b.relu(b.identity(b.x(3))), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("identity", lambda b: b.relu(b.cast(b.x(3), to="float32")), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("identity", lambda b: b.relu(b.reshape(b.x(2, 3), shape=(2, 3))), "%y: f32[2,3] = relu(%x)\nreturn %y"),
    (
        "identity",
        lambda b: b.relu(b.slice(b.x(2, 3), starts=(0, 0), stops=(2, 3), steps=(1, 1))),
        "%y: f32[2,3] = relu(%x)\nreturn %y",
    ),
    ("identity", lambda b: b.relu(b.expand(b.x(2, 3), shape=(2, 3))), "%y: f32[2,3] = relu(%x)\nreturn %y"),
    ("identity", lambda b: b.relu(b.pad(b.x(2, 3), pads=(0, 0, 0, 0))), "%y: f32[2,3] = relu(%x)\nreturn %y"),
    ("identity", lambda b: b.relu(b.tile(b.x(2, 3), repeats=(1, 1))), "%y: f32[2,3] = relu(%x)\nreturn %y"),
    (
        "straight through",
        lambda b: b.relu(b.straight_through(b.x(3), b.x(3, name="z"))),
        "%y: f32[3] = relu(%x)\nreturn %y",
    ),
    ("concat of one", lambda b: b.relu(b.concat(b.x(2, 3), axis=0)), "%y: f32[2,3] = relu(%x)\nreturn %y"),
    ("normal axis", lambda b: b.softmax(b.x(2, 3), axis=-1), "%y: f32[2,3] = softmax(%x) axis=1\nreturn %y"),
    (
        "normal axes",
        lambda b: b.reduce_mean(b.x(2, 3, 4), axes=(-1, 1)),
        "%y: f32[2] = reduce_mean(%x) axes=[1,2] keepdims=False\nreturn %y",
    ),
    (
        "normal shape",
        lambda b: b.relu(b.reshape(b.x(2, 3), shape=(-1,))),
        "%reshape_1: f32[6] = reshape(%x) shape=[6]\n%y: f32[6] = relu(%reshape_1)\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.reshape(b.reshape(b.x(2, 6), shape=(12,)), shape=(3, 4)),
        "%y: f32[3,4] = reshape(%x) shape=[3,4]\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.relu(b.reshape(b.reshape(b.x(2, 6), shape=(12,)), shape=(2, 6))),
        "%y: f32[2,6] = relu(%x)\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.relu(b.transpose(b.transpose(b.x(2, 3), perm=(1, 0)), perm=(1, 0))),
        "%y: f32[2,3] = relu(%x)\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.transpose(b.transpose(b.x(2, 3, 4), perm=(1, 0, 2)), perm=(0, 2, 1)),
        "%y: f32[3,4,2] = transpose(%x) perm=[1,2,0]\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.transpose(b.x(2, 1, 3), perm=(1, 0, 2)),
        "%y: f32[1,2,3] = reshape(%x) shape=[1,2,3]\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.reshape(
            b.transpose(b.reshape(b.x(1, 3, 5, 4), shape=(3, 5, 4)), perm=(0, 2, 1)), shape=(1, 3, 4, 5)
        ),
        "%y: f32[1,3,4,5] = transpose(%x) perm=[0,1,3,2]\nreturn %y",
    ),
    (
        "view chain",
        lambda b: b.transpose(
            b.reshape(b.transpose(b.x(2, 3, 4), perm=(0, 2, 1)), shape=(2, 2, 2, 3)), perm=(0, 3, 1, 2)
        ),
        "%y: f32[2,3,2,2] = reshape(%x) shape=[2,3,2,2]\nreturn %y",
    ),
    (
        "cast chain",
        lambda b: b.cast(b.cast(b.x(3, dtype="int8"), to="int32"), to="float32"),
        "%y: f32[3] = cast(%x) to=float32\nreturn %y",
    ),
    (
        "cast chain",
        lambda b: b.abs(b.cast(b.cast(b.x(3, dtype="int8"), to="float16"), to="int8")),
        "%y: i8[3] = abs(%x)\nreturn %y",
    ),
    (
        "slice of slice",
        lambda b: b.slice(b.slice(b.x(9), starts=(1,), stops=(9,), steps=(2,)), starts=(3,), stops=(0,), steps=(-1,)),
        "%y: f32[3] = slice(%x) starts=[7] stops=[2] steps=[-2]\nreturn %y",
    ),
    (
        "slice of concat",
        lambda b: b.slice(b.concat(b.x(2, 3), b.x(2, 4, name="z"), axis=1), starts=(0, 4), stops=(1, 7), steps=(1, 2)),
        "%y: f32[1,2] = slice(%z) starts=[0,1] stops=[1,4] steps=[1,2]\nreturn %y",
    ),
    (
        "concat of parts",
        lambda b: b.concat(b.concat(b.x(2), b.x(3, name="z"), axis=0), b.x(1, name="v"), axis=0),
        "%y: f32[6] = concat(%x, %z, %v) axis=0\nreturn %y",
    ),
    (
        "concat of parts",
        lambda b: b.concat(b.x(2), b.x(0, name="z"), b.x(1, name="v"), axis=0),
        "%y: f32[3] = concat(%x, %v) axis=0\nreturn %y",
    ),
    (
        "concat of parts",
        lambda b: next(
            b.relu(
                b.concat(
                    b.slice(x, starts=(0, 0), stops=(2, 2), steps=(1, 1)),
                    b.slice(x, starts=(0, 2), stops=(2, 5), steps=(1, 1)),
                    axis=1,
                )
            )
            for x in [b.x(2, 5)]
        ),
        "%y: f32[2,5] = relu(%x)\nreturn %y",
    ),
    (
        "gather to slice",
        lambda b: b.gather(b.x(4, 3), b.c(-2, dtype="int64"), axis=0),
        (
            "%slice_3: f32[1,3] = slice(%x) starts=[2,0] stops=[3,3] steps=[1,1]\n"
            "%y: f32[3] = reshape(%slice_3) shape=[3]\n"
            "return %y"
        ),
    ),
    (
        "gather to slice",
        lambda b: b.gather(b.x(4, 3), b.c([2, 1, 0], dtype="int64"), axis=1),
        "%y: f32[4,3] = slice(%x) starts=[0,2] stops=[4,-1] steps=[1,-1]\nreturn %y",
    ),
    (
        "pad of pad",
        lambda b: b.pad(b.pad(b.x(4), pads=(1, 0), value=1.5), pads=(0, 2), value=1.5),
        "%y: f32[7] = pad(%x) pads=[1,2] mode=constant value=1.5\nreturn %y",
    ),
    (
        "expand of expand",
        lambda b: b.expand(b.expand(b.x(1, 1), shape=(1, 3)), shape=(2, 3)),
        "%y: f32[2,3] = expand(%x) shape=[2,3]\nreturn %y",
    ),
    (
        "tile to expand",
        lambda b: b.tile(b.x(1, 3), repeats=(4, 1)),
        "%y: f32[4,3] = expand(%x) shape=[4,3]\nreturn %y",
    ),
    (
        "implicit broadcast",
        lambda b: b.add(b.expand(b.x(3), shape=(2, 3)), b.x(2, 3, name="z")),
        "%y: f32[2,3] = add(%x, %z)\nreturn %y",
    ),
    (
        "implicit broadcast",
        lambda b: b.where(b.expand(b.x(3, dtype="bool"), shape=(2, 3)), b.c(0), b.c(-1)),
        (
            "%c: f32[] = const() value={0}\n"
            "%c_1: f32[] = const() value={-1}\n"
            "%where_5: f32[3] = where(%x, %c, %c_1)\n"
            "%y: f32[2,3] = expand(%where_5) shape=[2,3]\n"
            "return %y"
        ),
    ),
    (
        "implicit batch",
        lambda b: b.matmul(b.x(5, 2, 3), b.expand(b.x(3, 4, name="z"), shape=(5, 3, 4))),
        "%y: f32[5,2,4] = matmul(%x, %z)\nreturn %y",
    ),
    (
        "implicit mask",
        lambda b: b.attention(
            *(b.x(1, 2, 3, 4, name=n) for n in "qkv"), b.expand(b.x(1, 1, 1, 3), shape=(1, 1, 3, 3)), scale=0.5
        ),
        "%y: f32[1,2,3,4] = attention(%q, %k, %v, %x) scale=0.5 causal=False softcap=0\nreturn %y",
    ),
    (
        "reduce nothing",
        lambda b: b.reduce_mean(b.x(2, 1, 3), axes=(1,)),
        "%y: f32[2,3] = reshape(%x) shape=[2,3]\nreturn %y",
    ),
    ("add 0", lambda b: b.relu(b.add(b.c(0), b.x(3))), "%y: f32[3] = relu(%x)\nreturn %y"),
    (
        "add 0",
        lambda b: b.relu(b.sub(b.x(3), b.c([[0.0], [0.0]]))),
        "%relu_5: f32[3] = relu(%x)\n%y: f32[2,3] = expand(%relu_5) shape=[2,3]\nreturn %y",
    ),
    ("mul 1", lambda b: b.relu(b.mul(b.x(3), b.c([1, 1, 1]))), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("mul 1", lambda b: b.relu(b.div(b.x(3), b.c(1))), "%y: f32[3] = relu(%x)\nreturn %y"),
    (
        "neutral truth",
        lambda b: b.logical_not(b.logical_and(b.x(2, dtype="bool"), b.c([True, True], dtype="bool"))),
        "%y: b1[2] = logical_not(%x)\nreturn %y",
    ),
    (
        "neutral truth",
        lambda b: b.logical_not(b.logical_or(b.c(False, dtype="bool"), b.x(2, dtype="bool"))),
        "%y: b1[2] = logical_not(%x)\nreturn %y",
    ),
    (
        "where constant",
        lambda b: b.relu(b.where(b.c([True, True], dtype="bool"), b.x(2), b.x(2, name="z"))),
        "%y: f32[2] = relu(%x)\nreturn %y",
    ),
    (
        "where constant",
        lambda b: b.relu(b.where(b.c(False, dtype="bool"), b.x(3, 2), b.x(2, name="z"))),
        "%relu_6: f32[2] = relu(%z)\n%y: f32[3,2] = expand(%relu_6) shape=[3,2]\nreturn %y",
    ),
    (
        "where same",
        lambda b: next(b.relu(b.where(b.x(3, dtype="bool", name="c"), x, x)) for x in [b.x(3)]),
        "%y: f32[3] = relu(%x)\nreturn %y",
    ),
    ("neg neg", lambda b: b.relu(b.neg(b.neg(b.x(3)))), "%y: f32[3] = relu(%x)\nreturn %y"),
    (
        "not not",
        lambda b: b.logical_and(b.logical_not(b.logical_not(b.x(3, dtype="bool"))), b.x(3, dtype="bool", name="z")),
        "%y: b1[3] = logical_and(%x, %z)\nreturn %y",
    ),
    ("abs neg", lambda b: b.abs(b.neg(b.x(3))), "%y: f32[3] = abs(%x)\nreturn %y"),
    ("abs relu", lambda b: b.abs(b.relu(b.x(3))), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("relu relu", lambda b: b.relu(b.relu(b.x(3))), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("floor floor", lambda b: b.floor(b.floor(b.x(3))), "%y: f32[3] = floor(%x)\nreturn %y"),
    ("ceil ceil", lambda b: b.ceil(b.ceil(b.x(3))), "%y: f32[3] = ceil(%x)\nreturn %y"),
    ("round round", lambda b: b.round(b.round(b.x(3))), "%y: f32[3] = round(%x)\nreturn %y"),
    ("sign sign", lambda b: b.sign(b.sign(b.x(3))), "%y: f32[3] = sign(%x)\nreturn %y"),
    ("power", lambda b: b.pow(b.x(3), b.c(2)), "%y: f32[3] = mul(%x, %x)\nreturn %y"),
    (
        "power",
        lambda b: b.pow(b.x(3, dtype="int32"), b.c(3, dtype="int32")),
        "%mul_3: i32[3] = mul(%x, %x)\n%y: i32[3] = mul(%mul_3, %x)\nreturn %y",
    ),
    (
        "power",
        lambda b: b.pow(b.abs(b.x(3)), b.c([0.5])),
        "%abs_1: f32[3] = abs(%x)\n%y: f32[3] = sqrt(%abs_1)\nreturn %y",
    ),
    (
        "power",
        lambda b: b.pow(b.abs(b.x(3)), b.c([-0.5])),
        "%abs_1: f32[3] = abs(%x)\n%y: f32[3] = rsqrt(%abs_1)\nreturn %y",
    ),
    ("power", lambda b: b.pow(b.x(3), b.c(-1)), "%y: f32[3] = reciprocal(%x)\nreturn %y"),
    ("power", lambda b: b.relu(b.pow(b.x(3), b.c(1))), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("0 - x", lambda b: b.sub(b.c(0), b.x(3)), "%y: f32[3] = neg(%x)\nreturn %y"),
    ("x * -1", lambda b: b.mul(b.x(3), b.c(-1)), "%y: f32[3] = neg(%x)\nreturn %y"),
    (
        "x - constant",
        lambda b: b.sub(b.x(2), b.c([2, -3])),
        "%c: f32[2] = const() value={-2,3}\n%y: f32[2] = add(%x, %c)\nreturn %y",
    ),
    ("x + -y", lambda b: b.add(b.neg(b.x(3)), b.x(3, name="z")), "%y: f32[3] = sub(%z, %x)\nreturn %y"),
    ("x - -y", lambda b: b.sub(b.x(3), b.neg(b.x(3, name="z"))), "%y: f32[3] = add(%x, %z)\nreturn %y"),
    (
        "x / constant",
        lambda b: b.div(b.x(2), b.c([3, 4])),
        "%c: f32[2] = const() value={0.333333,0.25}\n%y: f32[2] = mul(%x, %c)\nreturn %y",
    ),
    (
        "x / constant",
        lambda b: b.floor(b.div(b.x(3), b.c(4))),
        "%c: f32[] = const() value={0.25}\n%div_2: f32[3] = mul(%x, %c)\n%y: f32[3] = floor(%div_2)\nreturn %y",
    ),
    (
        "1 / sqrt",
        lambda b: b.reciprocal(b.sqrt(b.abs(b.x(3)))),
        "%abs_1: f32[3] = abs(%x)\n%y: f32[3] = rsqrt(%abs_1)\nreturn %y",
    ),
    ("1 / x", lambda b: b.div(b.c(1), b.x(3)), "%y: f32[3] = reciprocal(%x)\nreturn %y"),
    ("x * 1/y", lambda b: b.mul(b.reciprocal(b.x(3)), b.x(3, name="z")), "%y: f32[3] = div(%z, %x)\nreturn %y"),
    (
        "log softmax",
        lambda b: b.log(b.softmax(b.x(2, 3), axis=1)),
        "%y: f32[2,3] = log_softmax(%x) axis=1\nreturn %y",
    ),
    ("bound", lambda b: b.minimum(b.c(6), b.x(3)), "%y: f32[3] = clip(%x) high=6\nreturn %y"),
    ("bound", lambda b: b.maximum(b.x(3), b.c([-0.5])), "%y: f32[3] = clip(%x) low=-0.5\nreturn %y"),
    ("bound", lambda b: b.maximum(b.x(3, dtype="int32"), b.c(0, dtype="int32")), "%y: i32[3] = relu(%x)\nreturn %y"),
    (
        "clip clip",
        lambda b: b.minimum(b.maximum(b.x(3), b.c(-1)), b.c(2)),
        "%y: f32[3] = clip(%x) low=-1 high=2\nreturn %y",
    ),
    ("clip clip", lambda b: b.clip(b.relu(b.x(3)), high=6), "%y: f32[3] = clip(%x) low=0 high=6\nreturn %y"),
    ("clip clip", lambda b: b.relu(b.clip(b.x(3), low=1, high=6)), "%y: f32[3] = clip(%x) low=1 high=6\nreturn %y"),
    (
        "clip clip",
        lambda b: b.clip(b.clip(b.x(3), low=-1, high=1), low=2, high=3),
        "%y: f32[3] = clip(%x) low=2 high=2\nreturn %y",
    ),
    ("clip alone", lambda b: b.clip(b.x(3), low=0), "%y: f32[3] = relu(%x)\nreturn %y"),
    ("clip alone", lambda b: b.abs(b.clip(b.x(3))), "%y: f32[3] = abs(%x)\nreturn %y"),
    ("clip alone", lambda b: b.clip(b.x(3), low=-1, high=inf), "%y: f32[3] = clip(%x) low=-1\nreturn %y"),
    (
        "add add",
        lambda b: b.add(b.c([1, 2]), b.add(b.x(2), b.c([3, 4]))),
        "%c: f32[2] = const() value={4,6}\n%y: f32[2] = add(%x, %c)\nreturn %y",
    ),
    (
        "mul mul",
        lambda b: b.mul(b.mul(b.x(2), b.c([3, 4])), b.c(2)),
        "%c_1: f32[2] = const() value={6,8}\n%y: f32[2] = mul(%x, %c_1)\nreturn %y",
    ),
    (
        "mean",
        lambda b: b.mul(b.reduce_sum(b.x(2, 4), axes=(1,)), b.c(0.25)),
        "%y: f32[2] = reduce_mean(%x) axes=[1] keepdims=False\nreturn %y",
    ),
    (
        "product transposed",
        lambda b: b.transpose(b.matmul(b.transpose(b.x(2, 3), perm=(1, 0)), b.w(2, 4)), perm=(1, 0)),
        "%transpose_5: f32[4,2] = transpose(%w) perm=[1,0]\n%y: f32[4,3] = matmul(%transpose_5, %x)\nreturn %y",
    ),
    (
        "product transposed",
        lambda b: b.transpose(b.matmul(b.transpose(b.x(2, 3), perm=(1, 0)), b.x(2, 4, name="z")), perm=(1, 0)),
        "%transpose_5: f32[4,2] = transpose(%z) perm=[1,0]\n%y: f32[4,3] = matmul(%transpose_5, %x)\nreturn %y",
    ),
    (
        "pad into conv",
        lambda b: b.conv(b.pad(b.x(1, 1, 4, 4), pads=(0, 0, 1, 0, 0, 0, 0, 2)), b.w(1, 1, 3, 3)),
        "%y: f32[1,1,3,4] = conv(%x, %w) strides=[1,1] pads=[1,0,0,2] dilations=[1,1] group=1\nreturn %y",
    ),
    (
        "pad into conv with bias",
        lambda b: b.conv(b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1)), b.w(1, 1, 3), b.c([1]), pads=1),
        (
            "%c: f32[1] = const() value={1}\n"
            "%y: f32[1,1,6] = conv(%x, %w, %c) strides=[1] pads=[2,2] dilations=[1] group=1\n"
            "return %y"
        ),
    ),
    (
        "pad into avg_pool",
        lambda b: b.pool("avg_pool", b.pad(b.x(1, 1, 4, 4), pads=(0, 0, 1, 1, 0, 0, 0, 1)), 3),
        (
            "%y: f32[1,1,3,4] = avg_pool(%x) kernel_shape=[3,3] strides=[1,1] pads=[1,1,0,1] dilations=[1,1] ceil_mode=False count_include_pad=True\n"
            "return %y"
        ),
    ),
    (
        "pad into avg_pool",
        lambda b: b.pool("avg_pool", b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 0)), 3, 1, count_include_pad=True),
        (
            "%y: f32[1,1,5] = avg_pool(%x) kernel_shape=[3] strides=[1] pads=[2,1] dilations=[1] ceil_mode=False count_include_pad=True\n"
            "return %y"
        ),
    ),
    (
        "pad into max_pool",
        lambda b: b.pool("max_pool", b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1), value=-inf), 2),
        (
            "%y: f32[1,1,5] = max_pool(%x) kernel_shape=[2] strides=[1] pads=[1,1] dilations=[1] ceil_mode=False indices=False\n"
            "return %y"
        ),
    ),
    (
        "pad into max_pool",
        lambda b: b.pool("max_pool", b.pad(b.relu(b.x(1, 1, 4)), pads=(0, 0, 1, 0, 0, 1)), 2),
        (
            "%relu_1: f32[1,1,4] = relu(%x)\n"
            "%y: f32[1,1,5] = max_pool(%relu_1) kernel_shape=[2] strides=[1] pads=[1,1] dilations=[1] ceil_mode=False indices=False\n"
            "return %y"
        ),
    ),
    (
        "global pool",
        lambda b: b.pool("avg_pool", b.x(1, 2, 4, 4), 4),
        "%y: f32[1,2,1,1] = reduce_mean(%x) axes=[2,3] keepdims=True\nreturn %y",
    ),
    (
        "global pool",
        lambda b: b.pool("max_pool", b.x(1, 2, 4), 4, strides=(2,)),
        "%y: f32[1,2,1] = reduce_max(%x) axes=[2] keepdims=True\nreturn %y",
    ),
]


@pytest.mark.parametrize(("rule", "build", "text"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_rule_rewrites_the_graph(b, kit, rule, build, text):
    after, fired = kit.apply_rules(kit.finish(b, build(b)), RULES)
    assert rule in fired
    assert kit.body(after) == text


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == {case[0] for case in CASES}


KEPT = {
    "a division before a floor": lambda b: b.floor(b.div(b.x(3), b.c(49))),
    "a division before a cast": lambda b: b.cast(b.relu(b.div(b.x(3), b.c(3))), to="int32"),
    "a division before a comparison": lambda b: b.less(b.div(b.x(3), b.c(3)), b.x(3, name="z")),
    "a division of integers": lambda b: b.div(b.x(3, dtype="int32"), b.c(2, dtype="int32")),
    "a reciprocal that underflows": lambda b: b.div(b.x(3), b.c(3e38)),
    "a cast that loses bits": lambda b: b.cast(b.cast(b.x(3), to="float16"), to="float32"),
    "int64 through float64": lambda b: b.cast(b.cast(b.x(3, dtype="int64"), to="float64"), to="int64"),
    "a reversal of everything": lambda b: b.slice(b.x(3), starts=(2,), stops=(-1,), steps=(-1,)),
    "an integer to the power 1/2": lambda b: b.pow(b.x(3, dtype="int32"), b.c(-1, dtype="int32")),
    "x * 2": lambda b: b.mul(b.x(3), b.c([1, 2, 1])),
    "a pad by 0 into a max_pool of anything": lambda b: b.pool(
        "max_pool", b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1)), 3
    ),
    "a pad into an avg_pool that counts its own": lambda b: b.pool(
        "avg_pool", b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1)), 3, 1
    ),
    "a pad as wide as the window": lambda b: b.pool("avg_pool", b.pad(b.x(1, 1, 4), pads=(0, 0, 2, 0, 0, 0)), 2),
    "a pad of channels": lambda b: b.conv(b.pad(b.x(1, 1, 4), pads=(0, 1, 0, 0, 0, 0)), b.w(2, 2, 3)),
    "a reflection": lambda b: b.conv(b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1), mode="reflect"), b.w(1, 1, 3)),
    "a pool that leaves a rest": lambda b: b.pool("avg_pool", b.x(1, 1, 4, 5), 4),
    "a gather with uneven steps": lambda b: b.gather(b.x(5), b.c([0, 1, 3], dtype="int64"), axis=0),
    "a slice across parts": lambda b: b.slice(
        b.concat(b.x(3), b.x(4, name="z"), axis=0), starts=(1,), stops=(5,), steps=(1,)
    ),
    "a pad of another value": lambda b: b.pad(b.pad(b.x(4), pads=(1, 0), value=1.0), pads=(0, 2), value=2.0),
    "a reshape that cuts across a transpose": lambda b: b.reshape(b.transpose(b.x(2, 3), perm=(1, 0)), shape=(2, 3)),
    "a division of a scale": lambda b: b.requantize(b.x(3, dtype="int32", name="z"), b.div(b.x(3), b.c(3)), to="int8"),
    "factors of a scale": lambda b: b.requantize(
        b.x(3, dtype="int32", name="z"), b.mul(b.mul(b.x(3), b.c(0.3)), b.c(0.7)), to="int8"
    ),
    "constants that would grow": lambda b: b.add(b.add(b.x(2, 2), b.c([[1], [2]])), b.c([[3, 4]])),
    "a clip that is empty": lambda b: b.clip(b.clip(b.x(3), low=1, high=-1), low=-2, high=2),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_must_stay_stays(b, kit, name):
    graph = kit.finish(b, KEPT[name](b))
    after, fired = kit.apply_rules(graph, RULES)
    assert fired == []
    assert after.text() == graph.text()


def test_a_pad_with_another_user_stays_for_it(b, kit):
    padded = b.pad(b.x(1, 1, 4), pads=(0, 0, 1, 0, 0, 1))
    b.graph.output(b.conv(padded, b.w(1, 1, 3)))
    b.graph.output(b.relu(padded))
    after, fired = kit.apply_rules(b.graph, RULES)
    assert fired == []
    assert kit.operations(after) == {"conv": 1, "pad": 1, "relu": 1}


def test_a_view_that_others_use_is_not_computed_twice(b, kit):
    inner = b.reshape(b.transpose(b.x(2, 3, 4), perm=(0, 2, 1)), shape=(8, 3))
    b.graph.output(b.relu(inner))
    b.graph.output(b.reshape(inner, shape=(2, 4, 3)))
    after, _ = kit.apply_rules(b.graph, RULES)
    assert kit.operations(after) == {"relu": 1, "reshape": 1, "transpose": 1}
