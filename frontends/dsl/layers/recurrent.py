"""Recurrent layers. Arguments and defaults are Keras's; ``num_layers``, ``bidirectional`` and ``batch_first`` are
PyTorch's. The input is [batch, time, features].

Weights of layer k (suffix ``_l1``, ``_l2``, ... from the second on) are laid out as ONNX's, one matrix a direction with
the gates one below the other: ``weight`` [directions, gates * units, inputs], ``recurrent_weight`` [directions,
gates * units, units], ``bias``. Gate order: LSTM i o f c, GRU z r h (Keras: i f c o, z r h; PyTorch: i f g o, r z n).
They start as Keras's: Glorot-uniform, orthogonal, zeros, 1 for the LSTM's forget gate.

States begin at zero with every call, unless ``initial_state`` is given. With ``stateful`` (Keras) a call goes on where
the last one ended, until ``reset()``: states of the artifact, one for each sample of a batch, in training too (where no
gradient flows back into the last call). To run on a stream what was trained on whole sequences, see ``nv.streaming``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .. import shaping as s
from ..elementwise import emit, emit_all
from ..initializers import initial
from ..promote import as_float, as_tensor
from ..tensor import Tensor, Weight
from ..trace import current, fail
from ..variable import assign
from .base import Layer, expect_rank, whole
from .dropout import dropped, fraction

_ONNX = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "elu": "Elu",
    "leaky_relu": "LeakyRelu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}


class Recurrent(Layer):
    """The base of ``RNN``, ``LSTM`` and ``GRU``."""

    ALIASES: ClassVar = {"hidden_size": "units", "bias": "use_bias", "nonlinearity": "activation"}
    operator: ClassVar[str]
    gates: ClassVar[int]
    biases: ClassVar[int] = 1  # 2: one on the input and one on the recurrence

    def __init__(
        self,
        units: int,
        *,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        use_bias: bool = True,
        return_sequences: bool = False,
        return_state: bool = False,
        stateful: bool = False,
        go_backwards: bool = False,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        recurrent_regularizer: Any = None,
    ) -> None:
        self.units, self.num_layers = whole(units, "units"), whole(num_layers, "num_layers")
        self.activations = self._activations(activation, recurrent_activation)
        self.use_bias, self.batch_first, self.dropout = use_bias, batch_first, fraction(dropout)
        self.return_sequences, self.return_state, self.stateful = return_sequences, return_state, stateful
        self.go_backwards, self.bidirectional = go_backwards, bidirectional
        self.initializers = (kernel_initializer, recurrent_initializer, bias_initializer)
        self.recurrent_regularizer = recurrent_regularizer
        if go_backwards and bidirectional:
            raise fail("go_backwards and bidirectional exclude each other")

    def _activations(self, activation: str, recurrent: str) -> tuple[str, ...]:
        for name in (activation, recurrent):
            if name not in _ONNX:
                raise fail(f"activation {name!r} is not one of a recurrent layer's", hint=f"use {', '.join(_ONNX)}")
        return (_ONNX[recurrent], _ONNX[activation])

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def build(self, shape: Any) -> None:
        inputs = shape[-1] if len(shape) == 3 else 1  # call refuses another rank
        self.layers: list[tuple[Weight, Weight, Weight | None]] = []
        for k in range(self.num_layers):
            end = f"_l{k}" if k else ""
            rows = self.gates * self.units
            w = self.add_weight(f"weight{end}", (self.directions, rows, inputs), self._gates(0))
            r = self.add_weight(f"recurrent_weight{end}", (self.directions, rows, self.units), self._gates(1))
            b = None
            if self.use_bias:
                b = self.add_weight(f"bias{end}", (self.directions, self.biases * rows), self._bias)
            self.layers.append((w, r, b))
            inputs = self.units * self.directions

    def _gates(self, which: int) -> Any:
        """Keras's initializer for [inputs, gates * units], turned over, for each direction."""

        def initializer(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
            extents = (shape[2], shape[1])
            return np.stack([initial(self.initializers[which], extents, rng).T for _ in range(shape[0])])

        return initializer

    def _bias(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        return initial(self.initializers[2], shape, rng)

    def call(self, x: Tensor, initial_state: Any = None) -> Any:
        expect_rank(x, 3, "batch, time, features" if self.batch_first else "time, batch, features")
        x = as_float(x)
        inputs = self.layers[0][0].shape[2]
        if x.shape[2] != inputs:
            raise fail(f"expected {inputs} features on the last axis, got {list(x.shape)}")
        y = emit("transpose", x, perm=(1, 0, 2)) if self.batch_first else x
        given = self._initial(initial_state, x)
        goes_on = self._goes_on()
        finals: tuple[Tensor, ...] = ()
        for k, weights in enumerate(self.layers):
            held = self._memories(k, x) if goes_on and (k or initial_state is None) else []
            states: list[Tensor | None] = given if k == 0 else [None] * len(given)
            if held:
                states = [as_tensor(memory, x.dtype) for memory in held]
            if k:
                y = dropped(y, self.dropout)
            elif self.num_layers == 1:  # Keras's: of the input, the same features at every step
                y = dropped(y, self.dropout, (1, *y.shape[1:]))
            y, *last = self._layer(y, weights, states)
            finals = tuple(last)
            for memory, value in zip(held, last, strict=False):
                assign(memory, value)
        return self._output(y, finals)

    def _goes_on(self) -> bool:
        """Whether a call begins with the states that the last one ended with."""
        if not (self.stateful or current().streaming):
            return False
        if self.bidirectional or self.go_backwards:
            raise fail("a stream has no end to begin from", hint="leave out bidirectional and go_backwards")
        return True

    def _memories(self, layer: int, x: Tensor) -> list[Weight]:
        """What one layer keeps from call to call: h, of an LSTM c too, [1, batch, units]."""
        shape = (1, x.shape[0 if self.batch_first else 1], self.units)
        end = f"_l{layer}" if layer else ""
        return [self.memory(f"{name}{end}", shape) for name in ("hc" if self.operator == "lstm" else "h")]

    def _initial(self, given: Any, x: Tensor) -> list[Tensor | None]:
        """The first layer's states as [directions, batch, units]; they are given as [batch, directions * units]."""
        count = 2 if self.operator == "lstm" else 1
        if given is None:
            return [None] * count
        states = list(given) if isinstance(given, list | tuple) else [given]
        if len(states) != count:
            raise fail(f"initial_state: expected {count} tensors, got {len(states)}")
        batch = x.shape[0 if self.batch_first else 1]
        found: list[Tensor | None] = []
        for state in states:
            tensor = as_tensor(state, x.dtype)
            if tensor.shape != (batch, self.directions * self.units):
                wanted = f"[{batch}, {self.directions * self.units}]"
                raise fail(f"initial_state: expected {wanted}, got {list(tensor.shape)}")
            wide = emit("reshape", tensor, shape=s.sizes((batch, self.directions, self.units)))
            found.append(emit("transpose", wide, perm=(1, 0, 2)))
        return found

    def _layer(
        self, x: Tensor, weights: tuple[Weight, Weight, Weight | None], states: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """One layer over [time, batch, features]: the outputs [time, batch, directions * units] and last states."""
        w, r, b = (None if v is None else as_tensor(v, x.dtype) for v in weights)
        if b is not None and self.biases == 1:
            b = emit("concat", b, as_tensor(np.zeros(b.shape, np.float32), x.dtype), axis=1)
        direction = "bidirectional" if self.bidirectional else "reverse" if self.go_backwards else "forward"
        y, *last = emit_all(
            self.operator,
            x,
            w,
            r,
            b,
            None,
            *states,
            direction=direction,
            activations=self.activations * self.directions,
            **self._attributes(),
        )
        steps, _, batch, _ = y.shape
        turned = y if self.directions == 1 else emit("transpose", y, perm=(0, 2, 1, 3))
        return [emit("reshape", turned, shape=s.sizes((steps, batch, self.directions * self.units))), *last]

    def _attributes(self) -> dict[str, Any]:
        return {}

    def _output(self, y: Tensor, finals: Sequence[Tensor]) -> Any:
        last = [self._joined(state) for state in finals]
        if self.return_sequences:
            result = s.flip(y, 0) if self.go_backwards else y  # in the order of computation, as Keras's
            result = emit("transpose", result, perm=(1, 0, 2)) if self.batch_first else result
        else:
            result = last[0]
        return (result, *last) if self.return_state else result

    def _joined(self, state: Tensor) -> Tensor:
        """[directions, batch, units] as [batch, directions * units]."""
        turned = emit("transpose", state, perm=(1, 0, 2))
        return emit("reshape", turned, shape=s.sizes((state.shape[1], self.directions * self.units)))


class RNN(Recurrent):
    """Elman's recurrent layer: h = activation(W x + R h + b)."""

    operator, gates = "rnn", 1

    def _activations(self, activation: str, recurrent: str) -> tuple[str, ...]:
        return super()._activations(activation, recurrent)[1:]


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997). With ``return_state``: outputs, h, c."""

    operator, gates = "lstm", 4

    def __init__(self, units: int, *, unit_forget_bias: bool = True, **options: Any) -> None:
        super().__init__(units, **options)
        self.unit_forget_bias = unit_forget_bias

    def _activations(self, activation: str, recurrent: str) -> tuple[str, ...]:
        gate, cell = super()._activations(activation, recurrent)
        return (gate, cell, cell)

    def _bias(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        values = np.array(super()._bias(shape, rng))
        if self.unit_forget_bias:
            values[:, 2 * self.units : 3 * self.units] = 1.0
        return values


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), the reset gate behind the recurrent product unless ``reset_after`` is
    false (the default of Keras and PyTorch)."""

    operator, gates = "gru", 3

    def __init__(self, units: int, *, reset_after: bool = True, **options: Any) -> None:
        super().__init__(units, **options)
        self.reset_after = reset_after

    @property
    def biases(self) -> int:  # type: ignore[override]
        return 2 if self.reset_after else 1

    def _attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": self.reset_after}


class Bidirectional(Layer):
    """A recurrent layer run in both directions, their outputs one behind the other (Keras, merge_mode="concat")."""

    def __init__(self, layer: Recurrent, merge_mode: str = "concat") -> None:
        if not isinstance(layer, Recurrent):
            raise fail(f"expected an RNN, LSTM or GRU, got {layer!r}")
        if merge_mode != "concat":
            raise fail(f'merge_mode: expected "concat", got {merge_mode!r}')
        layer.bidirectional = True
        self.layer = layer

    def call(self, x: Tensor, initial_state: Any = None) -> Any:
        return self.layer(x, initial_state)


class TimeDistributed(Layer):
    """A layer on every step of [batch, time, ...] (Keras)."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def call(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise fail(f"expected an input [batch, time, ...], got {list(x.shape)}")
        batch, steps, *rest = x.shape
        y = self.layer(s.reshape(x, (-1, *rest)))
        return s.reshape(y, (batch, steps, *y.shape[1:]))


__all__ = ["GRU", "LSTM", "RNN", "Bidirectional", "TimeDistributed"]
