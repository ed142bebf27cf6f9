"""The public names of the DSL, as plain data: module -> names. ``nervure`` offers them all as ``nv.name``."""

from __future__ import annotations

FUNCTIONS = {
    "elementwise": """
        add subtract multiply divide floor_divide mod fmod power minimum maximum
        bitwise_and bitwise_or bitwise_xor bitwise_not left_shift right_shift
        logical_and logical_or logical_xor logical_not
        equal not_equal less less_equal greater greater_equal
        negative abs sign sqrt rsqrt reciprocal square exp expm1 log log1p
        sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh erf
        floor ceil round isnan isinf where clip cast stop_gradient straight_through
    """,
    "reduce": """
        sum mean max min prod var std all any logsumexp norm argmax argmin cumsum cumprod topk sort argsort
    """,
    "shaping": """
        reshape transpose permute swapaxes moveaxis flatten ravel squeeze expand_dims unsqueeze broadcast_to
        concat concatenate stack split chunk pad tile repeat flip roll tril triu
        constant full zeros ones zeros_like ones_like arange
    """,
    "index": "getitem take gather take_along_axis put one_hot",
    "linalg": "matmul dot outer einsum cdist",
    "segments": "segment_sum segment_mean segment_max segment_softmax",
    "nn": """
        sigmoid silu swish softplus hard_swish relu relu6 leaky_relu elu selu gelu hard_sigmoid hard_tanh
        softsign mish log_sigmoid softmax log_softmax attention layer_norm rms_norm normalize squash
    """,
}

# Of those, what does not take the tensor first, and so is no method of it.
NO_METHODS = "where concat concatenate stack einsum constant full zeros ones arange getitem"

PUBLIC = {name: f"frontends.dsl.{module}" for module, names in FUNCTIONS.items() for name in names.split()}
PUBLIC |= {
    "Tensor": "frontends.dsl.tensor",
    "Input": "frontends.dsl.spec",
    "network": "frontends.dsl.network",
    "Network": "frontends.dsl.network",
    "Sequential": "frontends.dsl.sequential",
    "Variable": "frontends.dsl.tensor",
    "assign": "frontends.dsl.variable",
    "streaming": "frontends.dsl.streaming",
    "choice": "frontends.dsl.choice",
    "layer_output": "frontends.dsl.inner",
    "layers": "frontends.dsl",
    "random": "frontends.dsl",
    "spiking": "frontends.dsl",
    "Training": "frontends.training.step",
    "grad": "frontends.training.gradient",
    "minimize": "frontends.training.gradient",
}
