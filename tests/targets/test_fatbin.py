"""Fat binaries as ``nvcc`` writes them, byte for byte, and what reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from nervure.targets import fatbin

PTX = b".version 8.4\n.target sm_90\n.address_size 64\n"
KERNEL = 'extern "C" __global__ void k(float *a) { a[threadIdx.x] *= 2; }\n'


def test_written_and_read() -> None:
    images = [(80, False, b"\x7fELF" + bytes(60)), (87, False, b"\x7fELF" + bytes(36)), (90, True, PTX)]
    data = fatbin.write(images)
    assert [tuple(i) for i in fatbin.read(data)] == images
    assert data[:4] == (0xBA55ED50).to_bytes(4, "little") and len(data) % 8 == 0
    assert fatbin.write(images) == data


def test_sizes_add_up() -> None:
    """The header says how many bytes follow; PTX ends with a zero, both are padded to 8 bytes."""
    data = fatbin.write([(80, False, b"\x7fELF..."), (90, True, PTX)])
    assert int.from_bytes(data[8:16], "little") == len(data) - 16
    assert len(data) == 16 + 64 + 8 + 80 + (len(PTX) + 1 + 7) // 8 * 8


@pytest.mark.parametrize("data", [bytes(64), fatbin.write([(80, False, bytes(64))])[:-8]])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a fat binary"):
        fatbin.read(data)


def test_ptx_says_its_version() -> None:
    with pytest.raises(ValueError, match="version"):
        fatbin.write([(90, True, b".target sm_90\n")])


def test_as_nvcc_does(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    (tmp_path / "k.cu").write_text(KERNEL)
    codes = ["sm_80", "sm_87", "sm_89", "sm_90", "compute_90"]
    wanted = [f"-gencode=arch=compute_{c.split('_')[1]},code={c}" for c in codes]
    subprocess.run([nvcc, "-fatbin", "-no-compress", *wanted, "k.cu", "-o", "k.fatbin"], cwd=tmp_path, check=True)
    subprocess.run([nvcc, "-cubin", "-arch=sm_87", "k.cu", "-o", "k.cubin"], cwd=tmp_path, check=True)
    data = (tmp_path / "k.fatbin").read_bytes()
    images = fatbin.read(data)
    assert sorted((i.architecture, i.ptx) for i in images) == [
        (80, False),
        (87, False),
        (89, False),
        (90, False),
        (90, True),
    ]
    assert fatbin.write(tuple(i) for i in images) == data
    assert next(i.data for i in images if i.architecture == 87) == (tmp_path / "k.cubin").read_bytes()
