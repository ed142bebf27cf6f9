"""Data kept in two slots of a flash: whatever word the power is lost in, the old or the new data are whole."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from nervure.targets import get, toolchain

HERE = Path(__file__).parent
FILES = (toolchain.RUNTIME / "bare" / "slots.c", toolchain.RUNTIME / "bare" / "slots.h", HERE / "slots.c")


def test_the_power_may_be_lost_after_any_word(tmp_path):
    for path in FILES[:2]:
        shutil.copy(path, tmp_path)
    shutil.copy(FILES[2], tmp_path / "driver.c")
    flags = ("-Wall", "-Wextra", "-Werror", "-I.", "-fsanitize=undefined")
    program = toolchain.link_program(tmp_path, ["driver.c", "slots.c"], get("host"), out="driver", flags=flags)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 4 * 7 * 256  # erasing alone is 256 words, each a moment


@pytest.mark.parametrize("standard", ["c99", "c11"])
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_module_is_plain_c(tmp_path, standard):
    flags = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-ffreestanding", f"-std={standard}")
    subprocess.run(["gcc", *flags, "-c", str(FILES[0]), "-o", str(tmp_path / "slots.o")], check=True)
