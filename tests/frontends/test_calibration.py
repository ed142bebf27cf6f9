"""Samples for a quantizer: every way in, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from nervure import NervureError
from nervure.compiler.types import TensorType
from nervure.frontends.calibration import calibration, labelled
from nervure.frontends.calibration_files import spec_text
from PIL import Image

ONE = {"x": TensorType("float32", (1, 4))}
BATCH = {"x": TensorType("float32", (2, 4))}
OPEN = {"x": TensorType("float32", ("batch", 4))}
TWO = {"a": TensorType("float32", (1, 3)), "state": TensorType("float32", (2, 1, 5))}


def rows(count: int, width: int = 4) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize(("inputs", "count", "shape"), [(ONE, 6, (1, 4)), (BATCH, 3, (2, 4)), (OPEN, 6, (1, 4))])
def test_an_npz(tmp_path: Path, inputs: dict[str, TensorType], count: int, shape: tuple[int, ...]) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, x=rows(6))
    found = calibration(path, inputs)
    assert len(found) == count and all(f["x"].shape == shape for f in found)
    assert np.array_equal(np.concatenate([f["x"] for f in found]), rows(6))
    assert np.array_equal(np.concatenate([f["x"] for f in found]), rows(6)), "a second time"
    assert found.bindings == ({"batch": 1} if inputs is OPEN else {})


def test_any_name_where_there_is_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", pictures=rows(3))
    assert len(calibration(tmp_path / "c.npz", ONE)) == 3
    np.savez(tmp_path / "c.npz", pictures=rows(3), y=np.arange(3))
    assert len(calibration(tmp_path / "c.npz", ONE)) == 3
    np.save(tmp_path / "c.npy", rows(3))
    assert len(calibration(tmp_path / "c.npy", ONE)) == 3


def test_whole_inputs_where_the_first_axis_is_no_batch() -> None:
    found = calibration({"a": rows(4, 3), "state": np.zeros((4, 2, 1, 5), np.float32)}, TWO)
    assert len(found) == 4 and found[-1]["state"].shape == (2, 1, 5) and found[3]["a"].tolist() == [[9, 10, 11]]


def test_open_sizes_are_taken_from_the_data() -> None:
    inputs = {"x": TensorType("float32", ("n", "time", 3)), "z": TensorType("float32", ("n", "time"))}
    found = calibration({"x": np.zeros((5, 7, 3)), "z": np.zeros((5, 7))}, inputs)
    assert found.bindings == {"n": 1, "time": 7} and len(found) == 5 and found[0]["x"].dtype == np.float32
    with pytest.raises(NervureError, match="do not fit input 'z'"):
        calibration({"x": np.zeros((5, 7, 3)), "z": np.zeros((5, 8))}, inputs)


def test_a_generator_an_array_and_a_function() -> None:
    def endless():
        i = 0
        while True:
            yield np.full(4, i, np.float32)
            i += 1

    assert [f["x"][0, 0] for f in calibration(endless(), ONE, samples=3)] == [0, 1, 2]
    assert [f["x"][0, 0] for f in calibration(endless, ONE, samples=3)] == [0, 1, 2]
    assert len(calibration([{"x": rows(2)}, {"x": rows(3)}], ONE)) == 5
    assert len(calibration(rows(9), ONE)) == 9
    assert len(calibration([(rows(1, 3), np.zeros((2, 1, 5)))], TWO)) == 1


def test_a_bound_takes_samples_from_everywhere() -> None:
    assert [f["x"][0, 0] for f in calibration(rows(10), ONE, samples=5)] == [0, 8, 16, 24, 32]


def test_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mydata_q.py").write_text(
        "import numpy as np\ndef batches():\n    yield np.ones((3, 4), 'f4')\nodd = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(calibration("mydata_q:batches", ONE)) == 3
    assert len(calibration("mydata_q.py:batches", ONE)) == 3
    for text, said in [
        ("mydata_q:absent", "it has: batches"),
        ("mydata_q:odd", "no function 'odd'"),
        ("no_such_module:f", "cannot import the module"),
        ("absent.py:f", "no such file"),
    ]:
        with pytest.raises(NervureError, match=said):
            calibration(text, ONE)
    (tmp_path / "broken_q.py").write_text("1 / 0\n")
    with pytest.raises(NervureError, match="ZeroDivisionError"):
        calibration("broken_q.py:f", ONE)


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": rows(2), "b": rows(2)}, "no array for input 'x'"),
        ({"X": rows(2), "b": rows(2)}, "no array for input 'x'"),
        ({"x": rows(2, 5)}, r"float32\[2, 5\].*samples along the first axis"),
        ({"x": np.zeros((2, 1, 1, 4), "f4")}, "do not fit input 'x'"),
        ({"x": np.float32(3)}, "do not fit input 'x'"),
        ({"x": rows(0)}, "there are no samples"),
        ({}, "there are no samples"),
        ({"x": rows(2).astype(np.uint8)}, r"the samples are uint8, input 'x' is float32"),
        ({"x": rows(2).astype(np.complex64)}, "complex64"),
        ({"x": np.array([["a"] * 4])}, "<U1"),
        ({"x": np.where(rows(5) == 13, np.nan, rows(5))}, r"hold NaN.*array 'x', row 3"),
        ({"x": np.where(rows(5) == 13, -np.inf, rows(5))}, "hold infinity"),
        ({"x": np.full((2, 4), 1e300)}, "hold infinity"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, **arrays)
    with pytest.raises(NervureError, match=f"(?s){said}") as found:
        calibration(path, ONE)
    assert str(path) in str(found.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    text, array, cut, objects = (tmp_path / n for n in ("t.npz", "a.npz", "c.npz", "o.npz"))
    text.write_text("hello")
    with open(array, "wb") as file:
        np.save(file, rows(2))
    np.savez(cut, x=rows(100))
    cut.write_bytes(cut.read_bytes()[:200])
    np.savez(objects, x=np.array([{"a": 1}, None], dtype=object))
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as made:
        made.writestr("x.npy", b"not an array")
    for name in ("t.npz", "a.npz", "c.npz", "o.npz", "z.npz"):
        with pytest.raises(NervureError, match=r"no \.npz file"):
            calibration(tmp_path / name, ONE)
    with pytest.raises(NervureError, match="cannot read the data"):
        calibration(tmp_path / "absent.npz", ONE)
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(NervureError, match="no calibration data"):
        calibration(tmp_path / "d.csv", ONE)
    with pytest.raises(NervureError, match="there are no samples"):
        calibration(iter(()), ONE)
    with pytest.raises(NervureError, match="cannot be read from int"):
        calibration(3, ONE)


def test_batches_and_numbers_of_samples() -> None:
    with pytest.raises(NervureError, match="1 samples do not fill a batch of 2"):
        calibration(rows(1), BATCH)
    assert len(calibration(rows(5), BATCH)) == 2
    with pytest.raises(NervureError, match="different numbers of samples"):
        calibration({"a": rows(4, 3), "state": np.zeros((3, 2, 1, 5), np.float32)}, TWO)
    with pytest.raises(NervureError, match="0 samples are none"):
        calibration(rows(4), ONE, samples=0)


def test_whole_numbers_that_fit() -> None:
    inputs = {"ids": TensorType("int32", (1, 4))}
    assert calibration(rows(2).astype(np.int64), inputs)[0]["ids"].dtype == np.int32
    with pytest.raises(NervureError, match="int64"):
        calibration(rows(2).astype(np.int64) + (1 << 40), inputs)


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "l.npz"
    np.savez(path, x=rows(6), y=np.arange(6))
    one, two = labelled(path, ONE), labelled(path, BATCH)
    assert [y.tolist() for y in one.y] == [[0], [1], [2], [3], [4], [5]]
    assert [y.tolist() for y in two.y] == [[0, 1], [2, 3], [4, 5]] and len(two.samples) == 3
    assert [y.tolist() for y in labelled((rows(6), np.arange(6)), ONE, samples=3).y] == [[0], [2], [4]]
    for arrays, said in [
        ({"x": rows(6)}, "no array 'y'"),
        ({"x": rows(6), "y": np.arange(5)}, "6 and 5"),
        ({"x": rows(6), "y": np.full(6, np.nan)}, "NaN"),
        ({"x": rows(6), "y": np.array(["a"] * 6)}, "numbers"),
        ({"z": rows(6), "q": rows(6), "y": np.arange(6)}, "no array for input 'x'"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(NervureError, match=said):
            labelled(path, ONE)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    for i, name in enumerate(("cats/b.png", "cats/a.jpg", "dogs/c.bmp", "dogs/d.png")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (50 * i, 100, 255)).save(place / name)
    (place / "notes.txt").write_text("not a picture")
    return place


def test_a_folder_of_pictures(folder: Path, tmp_path: Path) -> None:
    inputs = {"x": TensorType("float32", ("n", 3, 8, 8))}
    found = calibration(folder, inputs)
    assert len(found) == 4 and found[0]["x"].shape == (1, 3, 8, 8) and found.bindings == {"n": 1}
    assert found[2]["x"][0, :, 0, 0] == pytest.approx([100 / 255, 100 / 255, 1])
    two = calibration(folder, {"x": TensorType("float32", (2, 8, 8, 3))}, preprocess="tf,color=bgr")
    assert len(two) == 2 and two[1]["x"].shape == (2, 8, 8, 3)
    assert two[1]["x"][0, 0, 0] == pytest.approx([1, 100 / 127.5 - 1, 100 / 127.5 - 1])
    assert len(calibration(folder, inputs, samples=2)) == 2


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_preprocessing_from_a_file(folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"how.{suffix}"
    held = {"preset": "imagenet", "size": [8, 8], "crop": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    toml = "\n".join(f"{k} = {json.dumps(v)}" for k, v in held.items())
    path.write_text(json.dumps(held) if suffix == "json" else toml)
    assert spec_text(str(path)) == "imagenet,size=8x8,crop=1.0,mean=0.5:0.5:0.5,std=0.5:0.5:0.5"
    inputs = {"x": TensorType("float32", (1, 3, 8, 8))}
    a = calibration(folder, inputs, preprocess=str(path))[0]["x"]
    b = calibration(folder, inputs, preprocess="range=-1:1,crop=1")[0]["x"]
    assert np.allclose(a, b, atol=1e-6)
    for text, said in [("{", "cannot be read"), ("[]" if suffix == "json" else "", "no keys")]:
        path.write_text(text)
        with pytest.raises(NervureError, match=said):
            calibration(folder, inputs, preprocess=str(path))
    path.write_text('{"zoom": 3}' if suffix == "json" else "zoom = 3")
    with pytest.raises(NervureError, match="no key 'zoom'"):
        calibration(folder, inputs, preprocess=str(path))


def test_pictures_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    picture = {"x": TensorType("float32", (1, 3, 8, 8))}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NervureError, match="holds no pictures"):
        calibration(empty, picture)
    with pytest.raises(NervureError, match="does not fit input"):
        calibration(folder, {"x": TensorType("float32", (1, 4, 8, 8, 2))})
    with pytest.raises(NervureError, match="model of one input"):
        calibration(folder, TWO)
    with pytest.raises(NervureError, match="do not fill a batch of 9"):
        calibration(folder, {"x": TensorType("float32", (9, 3, 8, 8))})
    with pytest.raises(NervureError, match="open sizes"):
        calibration(folder, {"x": TensorType("float32", (1, 3, "h", 8))})
    (empty / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(NervureError, match="picture cannot be read"):
        calibration(empty, picture)
