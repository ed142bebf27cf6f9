"""Arrays in a GPU's memory: by DLPack to and from other libraries, on their streams, without a copy.

The other library is played: a producer with a capsule of its own, and a consumer that takes one as PyTorch does."""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_programs import BIG, WEIGHTS
from nervure.errors import NervureError
from nervure.runtime import load
from nervure.runtime.dlpack import _Tensor, type_of

DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
api = ctypes.pythonapi
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
api.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
USED = b"used_dltensor"


class Produced:
    """An array of another library, over memory of the emulated device."""

    def __init__(self, array, *, strides=None, offset=0, shape=None, device=(2, 0), dtype="float32"):
        self.array, self.device, self.streams, self.deleted = array, device, [], 0
        self.shape = tuple(array.shape if shape is None else shape)
        self._shape = (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape)
        self._strides = (ctypes.c_int64 * len(strides))(*strides) if strides else None
        self._deleter = DELETER(self._delete)
        self._destructor = DESTRUCTOR(self._abandon)
        code, bits = type_of(dtype)
        self.tensor = _Tensor(
            array.address, *device, len(self.shape), code, bits, 1, self._shape, self._strides, offset, None,
            ctypes.cast(self._deleter, ctypes.c_void_p),
        )  # fmt: skip

    def _delete(self, address):
        assert address == ctypes.addressof(self.tensor)
        self.deleted += 1

    def _abandon(self, capsule):
        if api.PyCapsule_IsValid(capsule, b"dltensor"):
            self._deleter(ctypes.addressof(self.tensor))

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        destructor = ctypes.cast(self._destructor, ctypes.c_void_p)
        return api.PyCapsule_New(ctypes.addressof(self.tensor), b"dltensor", destructor)


class Consumed:
    """An array of another library that it took from a capsule."""

    def __init__(self, array, stream=None):
        self.kind, self.number = array.__dlpack_device__()
        capsule = array.__dlpack__(stream=stream)
        self.place = pointer(capsule, b"dltensor")
        assert api.PyCapsule_SetName(capsule, USED) == 0
        self.tensor = _Tensor.from_address(self.place)

    @property
    def values(self) -> np.ndarray:
        t = self.tensor
        shape = tuple(t.shape[i] for i in range(t.rank))
        strides = tuple(t.strides[i] for i in range(t.rank))
        assert strides == tuple(int(np.prod(shape[i + 1 :])) for i in range(t.rank))
        assert (t.code, t.bits, t.lanes) == (2, 32, 1)
        block = (ctypes.c_float * int(np.prod(shape))).from_address(t.data + t.byte_offset)
        return np.frombuffer(block, np.float32).reshape(shape).copy()

    def free(self) -> None:
        DELETER(self.tensor.deleter)(self.place)


@pytest.fixture
def session(gpu_artifacts, played):
    return load(gpu_artifacts("scaled").path)


@pytest.fixture
def stream(session, played):
    """A stream of the caller's."""
    context, made, old = ctypes.c_void_p(1), ctypes.c_void_p(), ctypes.c_void_p()
    played.code.cuCtxPushCurrent_v2(context)
    assert played.code.cuStreamCreate(ctypes.byref(made), 1) == 0
    played.code.cuCtxPopCurrent_v2(ctypes.byref(old))
    yield made.value
    played.set("deferred", 0)
    played.code.cuStreamDestroy_v2(made)


def rows(batch=1, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 64), dtype=np.float32)


def test_arrays_of_others_are_read_in_place(session, played):
    x = rows()
    held = Produced(session.device_array(x))
    before = played.get("copies")
    (y,) = session.run_device(None, {"x": held})
    assert played.get("copies") == before  # nothing went over the bus, nor from place to place
    np.testing.assert_array_equal(y.numpy(), x * WEIGHTS)
    own = session._library.call("stream", session._context)
    assert held.streams == [own]  # its owner lets our stream wait for what writes it
    gc.collect()
    assert held.deleted == 1


def test_an_offset_and_dimensions_of_one_are_no_copy(session):
    x = rows(8)
    array = session.device_array(x)
    part = Produced(array, offset=3 * 256, shape=(1, 64), strides=(9999, 1))
    np.testing.assert_array_equal(session.run_device(None, {"x": part})[0].numpy(), x[3:4] * WEIGHTS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"strides": (128, 2)}, "not contiguous"),
        ({"dtype": "float16"}, r"expected float32\[1, 64\], got float16\[1, 64\]"),
        ({"dtype": "bfloat16"}, "got bfloat16"),
        ({"dtype": "bool"}, "got bool"),
        ({"shape": (64,)}, "no compiled variant"),
        ({"device": (2, 1)}, "lies on device 1, the model on device 0"),
        ({"device": (10, 0)}, "is no array|expected float32"),  # AMD's
    ],
)
def test_arrays_that_do_not_fit_are_explained_and_given_back(session, more, message):
    held = Produced(session.device_array(rows()), **more)
    with pytest.raises(NervureError, match=message):
        session.run_device(None, {"x": held})
    gc.collect()
    assert held.deleted == len(held.streams)


def test_arrays_of_the_host_are_uploaded_and_bindings_want_none(session):
    x = rows(8)
    np.testing.assert_array_equal(session.run_device(["y"], {"x": x})[0].numpy(), x * WEIGHTS)
    with pytest.raises(NervureError, match=r"does not lie on the GPU: ndarray"):
        session.device_binding({"x": x})


def test_outputs_are_taken_by_others_and_outlive_the_session(session, played):
    before = played.live()
    x = rows()
    (y,) = session.run_device(None, {"x": x})
    assert (y.shape, y.dtype, y.device, y.nbytes) == ((1, 64), "float32", 0, 256)
    assert y.__cuda_array_interface__["data"] == (y.address, False)
    taken = Consumed(y)
    assert (taken.kind, taken.number) == (2, 0)
    del y
    assert played.live()["blocks"] == before["blocks"] + 1
    session.close()
    np.testing.assert_array_equal(taken.values, x * WEIGHTS)
    taken.free()
    assert played.live()["blocks"] == played.live()["contexts"] == 0 or played.live()["blocks"] < before["blocks"]


def test_a_capsule_that_nobody_takes_gives_its_array_back(session, played):
    (y,) = session.run_device(None, {"x": rows()})
    blocks = played.live()["blocks"]
    capsule = y.__dlpack__()
    del y
    assert played.live()["blocks"] == blocks
    del capsule
    assert played.live()["blocks"] == blocks - 1


def test_outputs_can_be_arrays_of_others(session):
    x, target = rows(), session.device_array(np.zeros((1, 64), np.float32))
    into = Produced(target)
    (y,) = session.run_device(None, {"x": x}, outputs={"y": into})
    assert y is into
    np.testing.assert_array_equal(target.numpy(), x * WEIGHTS)


def test_runs_on_a_callers_stream_do_not_wait(session, stream, played):
    x = rows()
    a, launches = session.device_array(x), played.get("launches")
    played.set("deferred", 1)
    held = Produced(a)
    (y,) = session.run_device(None, {"x": held}, stream=stream)
    assert played.get("launches") == launches and held.streams == [stream]
    assert y.__cuda_array_interface__["stream"] == stream
    same = y.__dlpack__(stream=stream)  # will be used behind it: no need to wait
    assert played.get("launches") == launches
    other = Consumed(y)  # on another stream: it is waited for
    assert played.get("launches") == launches + 1
    np.testing.assert_array_equal(other.values, x * WEIGHTS)
    other.free()
    del same
    np.testing.assert_array_equal(y.numpy(), x * WEIGHTS)


def test_runs_on_several_streams_keep_their_order(gpu_artifacts, stream, played):
    """The second run reads the state that the first one writes, though the first one's stream was not waited for."""
    session, x = load(gpu_artifacts("trained").path), np.ones(64, np.float32)
    played.set("deferred", 1)
    feeds = {"x": session.device_array(x)}
    results = [session.run_device(["seen"], feeds, stream=s)[0] for s in (stream, 0, stream)]
    host = session.run(["seen"], {"x": x})[0]
    last = session.run_device(["seen"], feeds)[0]
    assert [r.numpy()[0] for r in results] == [11, 12, 13]
    assert (host[0], last.numpy()[0]) == (14, 15)
    session.run_device(None, feeds, entry="train_step", stream=stream)
    np.testing.assert_array_equal(session.params()["w"], WEIGHTS + x)  # waits for it


def test_streams_of_other_libraries(session):
    x = session.device_array(rows())
    kinds = [
        SimpleNamespace(cuda_stream=0),
        SimpleNamespace(ptr=1),
        SimpleNamespace(__cuda_stream__=lambda: (0, 2)),
        0,
        np.int64(1),
    ]
    for kind in kinds:
        session.run_device(None, {"x": x}, stream=kind)
    session.wait()
    for wrong in ("default", True, object()):
        with pytest.raises(NervureError, match="no stream"):
            session.run_device(None, {"x": x}, stream=wrong)


def test_addresses_that_change_change_the_graph(gpu_artifacts, played):
    session = load(gpu_artifacts("chain").path)
    arrays = [session.device_array(np.full(BIG, 8 * i, np.float32)) for i in range(3)]
    names = ("execs", "graph launches", "nodes changed")
    calls = [session.device_binding({"x": a}) for a in arrays]
    calls[0]()
    before = [played.get(n) for n in names]
    for _ in range(3):
        calls[0]()
    assert [played.get(n) - b for n, b in zip(names, before, strict=True)] == [0, 3, 0]
    calls[1](), calls[2]()
    # of three kernels the first knows the input, the last the output
    assert [played.get(n) - b for n, b in zip(names, before, strict=True)] == [0, 5, 4]
    for i, call in enumerate(calls):
        assert call.outputs[0].numpy()[5] == i


def test_a_stream_that_its_owner_records_gets_the_launches(session, stream, played):
    code, x = played.code, rows()
    call = session.device_binding({"x": session.device_array(x)}, stream=stream)
    call()
    session.wait()
    context, old, graph, run = ctypes.c_void_p(1), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    code.cuCtxPushCurrent_v2(context)
    assert code.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), 0) == 0
    before = played.get("launches")
    call()
    assert code.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph)) == 0
    assert played.get("launches") == before
    assert code.cuGraphInstantiateWithFlags(ctypes.byref(run), graph, ctypes.c_ulonglong(0)) == 0
    call._held[0].fill(2 * x)
    assert code.cuGraphLaunch(run, ctypes.c_void_p(stream)) == 0
    assert code.cuStreamSynchronize(ctypes.c_void_p(stream)) == 0
    code.cuGraphExecDestroy(run), code.cuGraphDestroy(graph), code.cuCtxPopCurrent_v2(ctypes.byref(old))
    np.testing.assert_array_equal(call.outputs[0].numpy(), 2 * x * WEIGHTS)


def test_a_model_for_the_cpu_says_so(artifacts):
    session = load(artifacts("batches").path)
    x = rows()
    for call in (
        lambda: session.run_device(None, {"x": x}),
        lambda: session.device_array(x),
        session.wait,
        lambda: session.device_binding({"x": x}),
    ):
        with pytest.raises(NervureError, match="this model runs on the CPU"):
            call()
    assert session.host_arrays()["x"].shape == (1, 64)
