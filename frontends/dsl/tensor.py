"""Symbolic tensors: what a network's function computes with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ...compiler.ir import Value
from ...compiler.types import TensorType, is_float
from ...errors import NervureError
from .place import user_place

if TYPE_CHECKING:
    from .trace import Trace


class Dim(str):
    """A named dimension that is not bound yet. It can be passed on as a size, not computed with."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        raise NervureError(
            f"dimension {str(self)!r} has no number yet",
            where=user_place().full,
            hint=f"bind it: nv.compile(net, dims={{{str(self)!r}: 1}}), or write -1 in reshape",
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _refuse
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __pow__ = __int__ = __index__ = __float__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


def _f() -> Any:
    from . import functions

    return functions


# numpy's names of functions that have another name here
_NUMPY = {"absolute": "abs", "remainder": "mod", "invert": "bitwise_not", "rint": "round", "amax": "max", "amin": "min"}


def _numpy(name: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """The function that stands for numpy's of that name."""
    functions = _f()
    function = getattr(functions, name, None) if name in functions.NAMES else None
    if function is None:
        raise NervureError(
            f"numpy's {name} does not work on symbolic tensors",
            where=user_place().full,
            why="a tensor has no values while its network is traced",
            hint="nv has numpy's functions of a network (nv.exp, nv.where, ...); layers are in nv.layers",
        )
    return function(*args, **options)


def _call(name: str, *args: Any) -> Tensor:
    """The function of that name."""
    return getattr(_f(), name)(*args)  # type: ignore[no-any-return]


class Operators:
    """Python's operators and numpy's methods, each written as the function of that name.

    Element types are promoted as in numpy, but for this: float64 comes only from a float64 tensor. So Python numbers
    and numpy's float64 arrays take the element type of the float tensor beside them.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[Any, ...]: ...

    def __add__(self, other: Any) -> Tensor:
        return _call("add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _call("add", other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _call("subtract", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _call("subtract", other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _call("multiply", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _call("multiply", other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _call("divide", self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _call("divide", other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return _call("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return _call("floor_divide", other, self)

    def __mod__(self, other: Any) -> Tensor:
        return _call("mod", self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return _call("mod", other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _call("power", self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _call("power", other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _call("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _call("matmul", other, self)

    def __and__(self, other: Any) -> Tensor:
        return _call("bitwise_and", self, other)

    def __rand__(self, other: Any) -> Tensor:
        return _call("bitwise_and", other, self)

    def __or__(self, other: Any) -> Tensor:
        return _call("bitwise_or", self, other)

    def __ror__(self, other: Any) -> Tensor:
        return _call("bitwise_or", other, self)

    def __xor__(self, other: Any) -> Tensor:
        return _call("bitwise_xor", self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return _call("bitwise_xor", other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return _call("left_shift", self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return _call("left_shift", other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return _call("right_shift", self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return _call("right_shift", other, self)

    def __lt__(self, other: Any) -> Tensor:
        return _call("less", self, other)

    def __le__(self, other: Any) -> Tensor:
        return _call("less_equal", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _call("greater", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _call("greater_equal", self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _call("equal", self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _call("not_equal", self, other)

    def __neg__(self) -> Tensor:
        return _call("negative", self)

    def __pos__(self) -> Tensor:
        return _call("as_tensor", self)

    def __abs__(self) -> Tensor:
        return _call("abs", self)

    def __invert__(self) -> Tensor:
        return _call("bitwise_not", self)

    def __getitem__(self, key: Any) -> Tensor:
        return _call("getitem", self, key)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        size = self.shape[0]
        return size if isinstance(size, int) else int(size)  # a named dimension says what to do

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> NoReturn:
        raise NervureError(
            "a symbolic tensor has no truth value while its network is traced",
            where=user_place().full,
            why="a compiled network has no branches: both sides are computed",
            hint="write nv.where(condition, a, b); for shapes, compare x.shape instead",
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy's elementwise functions, and its operators with an array on the left."""
        name = _NUMPY.get(ufunc.__name__, ufunc.__name__)
        if method != "__call__" or options:
            name = f"{name}.{method}"
        return _numpy(name, inputs, {})

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """numpy's other functions, where nervure has one of that name."""
        return _numpy(function.__name__, args, options)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise NervureError(
            "a symbolic tensor has no values while its network is traced",
            where=user_place().full,
            hint="use nervure's function of the same name (nv.exp(x), not np.exp(x))",
        )

    __float__ = __int__ = __index__ = __bool__

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Tensor:
        """All axes in reverse order."""
        return _call("transpose", self)

    def reshape(self, *shape: Any) -> Tensor:
        return _call("reshape", self, *shape)

    def transpose(self, *axes: Any) -> Tensor:
        return _call("transpose", self, *axes)

    def astype(self, dtype: Any) -> Tensor:
        return _call("cast", self, dtype)

    def __getattr__(self, name: str) -> Any:
        """numpy's other methods (``x.sum(axis=1)``, ``x.clip(0, 1)``): the function of that name with ``x`` first."""
        functions = _f()
        if name not in functions.METHODS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        function = getattr(functions, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return function(self, *args, **kwargs)

        method.__name__, method.__doc__ = name, function.__doc__
        return method

    def __dir__(self) -> Sequence[str]:
        return sorted({*object.__dir__(self), *_f().METHODS})


class Tensor(Operators):
    """A tensor of a network that is being traced: it has a shape and an element type, and no values yet."""

    __slots__ = ("trace", "value")

    def __init__(self, trace: Trace, value: Value) -> None:
        self.trace, self.value = trace, value

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return self.trace.graph.type(self.trace.resolve(self.value))

    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes; a dimension that is not bound yet is its name."""
        return tuple(d if isinstance(d, int) else Dim(d) for d in self.type.shape)

    @property
    def dtype(self) -> str:
        """numpy's name of the element type."""
        return self.type.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"<nervure.Tensor {self.dtype}[{', '.join(map(str, self.shape))}]>"


class Weight(Operators):
    """A layer's stored array. In a traced network it acts as a tensor.

    ``array`` is read-only and is replaced as a whole by ``assign``, so that graphs which share it never change.
    Where ``mask`` is False the weight is 0 and stays 0, whatever trains or assigns it. One that is not ``persistent``
    (PyTorch's word: a cache) is a state of the artifact and no part of the network: not saved, loaded or counted.
    """

    __slots__ = ("_mask", "array", "channels", "frozen", "name", "persistent", "trainable")

    def __init__(self, name: str, array: np.ndarray, trainable: bool = True) -> None:
        self.name, self.trainable, self.frozen, self.persistent = name, trainable, False, True
        self.channels: range | None = None  # the output channels that are trained; None: all
        self._mask: np.ndarray | None = None
        self.array = _frozen(array)

    @property
    def mask(self) -> np.ndarray | None:
        """Which elements are kept: bool of the weight's shape, read-only; None keeps all, and costs nothing.

        Setting it (to anything of that shape that is zero where nothing is kept) makes the others 0 at once. A training
        step keeps them 0 by an untrained parameter ``NAME.mask``, which can change while the step runs.
        """
        return self._mask

    @mask.setter
    def mask(self, given: Any) -> None:
        if given is None:
            self._mask = None
            return
        found = np.asarray(given) != 0
        if found.shape != self.shape or not is_float(self.dtype):
            raise NervureError(
                f"a mask of shape {list(found.shape)} does not fit weight {self.name!r}",
                where=user_place().full,
                why=f"it is {self.dtype}{list(self.shape)}",
            )
        self._mask = _frozen(found)
        self.assign(self.array)

    @property
    def output_axis(self) -> int:
        """The axis of a layer's outputs: the last one of a matrix, the first one of kernels and vectors."""
        return 1 if self.array.ndim == 2 else 0

    @property
    def part(self) -> tuple[slice, ...]:
        """The place of the channels that are trained in the whole array."""
        kept: Any = slice(None) if self.channels is None else slice(self.channels.start, self.channels.stop)
        return (*[slice(None)] * self.output_axis, kept) if self.shape else ()

    @property
    def trained(self) -> bool:
        """Whether a training step changes it: it is trainable (no running statistic) and not frozen."""
        return self.trainable and not self.frozen and is_float(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.array.size

    def numpy(self) -> np.ndarray:
        """The values, read-only."""
        return self.array

    def assign(self, values: Any) -> None:
        """Replaces the values; ``NervureError`` where the shape differs."""
        given = np.asarray(values)
        if given.shape != self.shape:
            raise NervureError(
                f"weight {self.name!r}: expected shape {list(self.shape)}, got {list(given.shape)}",
                where=user_place().full,
            )
        values = given.astype(self.array.dtype)
        self.array = _frozen(values if self._mask is None else np.where(self._mask, values, values.dtype.type(0)))

    def __repr__(self) -> str:
        return f"<nervure.Weight {self.name!r} {self.dtype}{list(self.shape)}>"


def _frozen(array: np.ndarray) -> np.ndarray:
    held = np.array(array, order="C", copy=True)
    held.flags.writeable = False
    return held


class Variable(Weight):
    """A stored tensor that belongs to no layer. In a network it acts as a tensor: that of its present value.

    ``value``: what it starts as; with it shape and type are fixed. ``name`` is that in the artifact and in state
    dictionaries. A ``trainable`` one is a parameter: ``nv.minimize`` may train it, ``reset()`` leaves it alone. One
    that is not is a state, which ``session.reset()`` sets back to ``value``. Make it outside of the function that uses
    it; the entry points of one artifact that use the same variable share it::

        seen = nv.Variable(np.zeros((), np.int32), trainable=False, name="seen")

        @nv.network
        def count(x: nv.Input((4,))):
            nv.assign(seen, seen + 1)
            return nv.sum(x) / seen
    """

    __slots__ = ()

    def __init__(self, value: Any, trainable: bool = True, *, name: str = "variable") -> None:
        array = np.asarray(value)
        super().__init__(name, array.astype(np.float32) if array.dtype == np.float64 else array, trainable)
