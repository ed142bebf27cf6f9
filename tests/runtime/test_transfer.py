"""All parameters and states as one blob, and back: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

import numpy as np
import pytest
from nervure.compiler.library import build_library
from nervure.compiler.program import Program, Stored
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.runtime.session import load
from nervure.targets import get

X = np.linspace(0, 1, 64, dtype=np.float32)


@pytest.fixture
def session(artifacts):
    return load(artifacts("trainable").path)


def changed(session):
    """Another session of the same model, whose parameters and states have moved on; and what it computes next."""
    other = session.clone()
    for _ in range(3):
        other.run(None, {"x": X}, entry="train_step")
        other.run(None, {"x": X})
    return other


def test_a_blob_holds_parameters_and_states_in_the_order_of_their_names(session):
    blob = changed(session).export_state()
    assert len(blob) == session.artifact.export_bytes == 64 + 256 + 16
    magic, version, checksum, size = struct.unpack_from("<8sIIQ", blob)
    assert (magic, version, size) == (b"nervure\0", 1, len(blob))
    assert checksum == zlib.crc32(blob[16:])
    rows = [["param", "w", "float32", [64]], ["state", "seen", "int32", [4]]]
    assert blob[24:56] == hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).digest()
    other = changed(session)
    np.testing.assert_array_equal(np.frombuffer(blob[64:320], np.float32), other.params()["w"])
    np.testing.assert_array_equal(np.frombuffer(blob[320:], np.int32), other.states()["seen"])


def test_an_import_goes_on_where_the_export_was_made(session):
    other = changed(session)
    first = session.run(None, {"x": X})
    session.import_state(other.export_state())
    for a, b in zip(session.run(None, {"x": X}), other.run(None, {"x": X}), strict=True):
        np.testing.assert_array_equal(a, b)  # copies derived from the parameters too
    assert not np.array_equal(first[0], other.run(None, {"x": X})[0])
    assert session.export_state() != other.export_state()  # the counter of one went on
    session.run(None, {"x": X})
    assert session.export_state() == other.export_state()


def test_a_damaged_blob_changes_nothing(session):
    blob, before = changed(session).export_state(), session.export_state()
    places = [*range(64), 64, 100, 319, 320, len(blob) - 1]
    for at in places:
        with pytest.raises(NervureError, match=r"damaged|another model"):
            session.import_state(blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :])
    for cut in (0, 1, 63, 64, len(blob) - 1):
        with pytest.raises(NervureError, match="damaged"):
            session.import_state(blob[:cut])
    assert session.export_state() == before
    session.import_state(blob + b"behind it")  # a sector of a flash memory is larger than the blob
    assert session.export_state() == blob


def test_a_blob_of_another_model_is_refused(session, tmp_path):
    """The same sizes, another name; the same name, another shape."""
    zeros = np.zeros(64, np.float32)
    for name, shape in (("v", (64,)), ("w", (8, 8))):
        params = (Stored(name, TensorType("float32", shape), 0, zeros.reshape(shape)),)
        states = (Stored("seen", TensorType("int32", (4,)), 0, np.zeros(4, np.int32)),)
        other = Program("other", (), params=params, states=states)
        build_library(other, [], get("host"), tmp_path / f"{name}{len(shape)}.so")
        stranger = load(tmp_path / f"{name}{len(shape)}.so")
        with pytest.raises(NervureError, match="of another model"):
            session.import_state(stranger.export_state())


def test_order_in_the_blob_does_not_depend_on_where_tensors_lie(tmp_path):
    """Plans for two machines may lay them out differently; a blob goes from one to the other."""
    arrays = {n: np.full(3, i, np.float32) for i, n in enumerate(("b", "a", "c"))}
    blobs = []
    for order in ("bac", "cab"):
        params = tuple(Stored(n, TensorType("float32", (3,)), 64 * i, arrays[n]) for i, n in enumerate(order))
        build_library(Program("m", (), params=params), [], get("host"), tmp_path / f"{order}.so")
        blobs.append(load(tmp_path / f"{order}.so").export_state())
    assert blobs[0] == blobs[1] and np.frombuffer(blobs[0][64:], np.float32)[3] == 0  # "a" comes first


def test_a_model_without_parameters(artifacts):
    session = load(artifacts("batches").path)
    blob = session.export_state()
    assert len(blob) == 64
    session.import_state(blob)


def test_states_that_are_set_make_derived_copies_stale(session):
    """And so does a reset: running statistics may be among what is derived from."""
    session.run(None, {"x": X})
    session.set_params({"w": np.ones(64, np.float32)})
    session.set_states({"seen": np.zeros(4, np.int32)})
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], 2 * X)
