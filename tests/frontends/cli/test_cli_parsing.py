"""Values, input files and pictures, without a compiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure.errors import NervureError
from nervure.frontends.cli.pictures import Preprocess, parse_preprocess, read_picture
from nervure.frontends.cli.running import top
from nervure.frontends.cli.values import parse_named, parse_size, parse_threads
from nervure.runtime.artifact import Port
from PIL import Image


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("256K", 262144), ("1.5M", 1572864), ("2GB", 2 << 30), ("4096", 4096), ("8 KiB", 8192), (None, None)],
)
def test_sizes(text: str | None, nbytes: int | None) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "K", "1Z", "-1", "1e3", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(NervureError, match="no size"):
        parse_size(text)


def test_named_values_split_at_the_last_equals_sign() -> None:
    assert parse_named(["x=1,3,8", "a=b=2"], "--shape") == {"x": (1, 3, 8), "a=b": (2,)}
    for wrong in ("x", "=3", "x=1,,2", "x=1.5", "x=-1"):
        with pytest.raises(NervureError):
            parse_named([wrong], "--shape")
    with pytest.raises(NervureError, match="twice"):
        parse_named(["x=1", "x=2"], "--dim")


def test_threads() -> None:
    assert parse_threads("1,2,2") == [1, 2]
    with pytest.raises(NervureError):
        parse_threads("0")


def test_preprocess_keys_and_presets() -> None:
    found = parse_preprocess("size=224x192,mean=0.1:0.2:0.3,std=2,layout=nchw,range=-1:1")
    assert found == Preprocess((224, 192), (-1.0, 1.0), None, (0.1, 0.2, 0.3), (2.0,), "nchw")
    assert parse_preprocess("imagenet,crop=1").mean == (0.485, 0.456, 0.406)
    for wrong in ("nope", "mean=1:2", "std=0", "range=1", "layout=cnhw", "crop=2", "size=0", "scale=nan", "x=1"):
        with pytest.raises(NervureError):
            parse_preprocess(wrong)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Left half red 255, right half blue 51; 4 x 8 pixels."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4, 0], pixels[:, 4:, 2] = 255, 51
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_pictures_in_every_layout(picture: Path) -> None:
    nchw = read_picture(picture, Port("x", "float32", (1, 3, 4, 8)), parse_preprocess("tf"))
    assert nchw.shape == (1, 3, 4, 8) and nchw.dtype == np.float32
    np.testing.assert_allclose(nchw[0, :, 0, 0], [1, -1, -1])
    np.testing.assert_allclose(nchw[0, :, 0, 7], [-1, -1, -0.6], atol=1e-6)
    nhwc = read_picture(picture, Port("x", "float32", (1, 4, 8, 3)), parse_preprocess("tf"))
    np.testing.assert_array_equal(nhwc[0].transpose(2, 0, 1), nchw[0])
    bgr = read_picture(picture, Port("x", "float32", (3, 4, 8)), parse_preprocess("tf,color=bgr"))
    np.testing.assert_array_equal(bgr, nchw[0, ::-1])
    raw = read_picture(picture, Port("x", "uint8", (1, 4, 8, 3)), parse_preprocess("raw"))
    np.testing.assert_array_equal(raw[0], np.asarray(Image.open(picture)))


def test_mean_and_std_follow_the_range(picture: Path) -> None:
    got = read_picture(picture, Port("x", "float32", (1, 3, 4, 8)), parse_preprocess("mean=0.5:0:0.1,std=0.5:1:0.1"))
    np.testing.assert_allclose(got[0, :, 0, 0], [1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(got[0, :, 0, 7], [-1, 0, 1], atol=1e-6)


def test_crop_keeps_the_middle(picture: Path) -> None:
    got = read_picture(picture, Port("x", "float32", (1, 3, 2, 2)), parse_preprocess("crop=1"))
    assert got[0, 0, 0, 0] > got[0, 0, 0, 1] and got[0, 2, 0, 1] > got[0, 2, 0, 0]


def test_what_holds_no_picture(picture: Path) -> None:
    for shape in ((1, 5, 4, 8), (2, 3, 4, 8), (7,)):
        with pytest.raises(NervureError, match="picture does not fit"):
            read_picture(picture, Port("x", "float32", shape), Preprocess())
    with pytest.raises(NervureError, match="cannot be read"):
        picture.write_bytes(picture.read_bytes()[:45])
        read_picture(picture, Port("x", "float32", (1, 3, 4, 8)), Preprocess())


def test_top_ranks_rows_and_breaks_ties_by_index() -> None:
    ports = (Port("n", "float32", ()), Port("y", "float32", (2, 3)))
    found = top(ports, [np.float32(3)[None][0], np.array([[1, 5, 5], [9, 0, 1]], np.float32)], 2, ["a", "b"])
    assert [(r["row"], r["index"], r["label"]) for r in found] == [(0, 1, "b"), (0, 2, None), (1, 0, "a"), (1, 2, None)]
    flat = top((Port("y", "float32", (1, 4, 1, 1)),), [np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)], 1, [])
    assert flat[0]["index"] == 3
