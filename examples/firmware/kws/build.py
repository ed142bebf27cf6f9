"""Keyword spotting on a bare Cortex-M: builds the firmware and runs it in the emulator.

    python examples/firmware/kws/build.py [--target cortex-m4] [--words 12] [--folder build/kws] [--no-run]

The network becomes libkws.a and kws.h; startup code, linker script and semihosting come with nervure; ziglang compiles
and links all of it. No other toolchain is needed; qemu-system-arm runs it.
"""

import argparse
import sys
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import targets
from nervure.targets import boards, firmware

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import spoken_words as example  # noqa: E402

CTYPES = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}


def words_h(model, count):
    """Some words in the form that the model takes."""
    x, y = example.words()
    chosen = np.random.default_rng(0).permutation(len(y))[:count]
    x, y = x[chosen], y[chosen]
    port, out = model.get_inputs()[0], model.get_outputs()[0]
    x = x if port.dtype == "int8" else example.cepstra(x)
    names = ", ".join(f'"{n}"' for n in example.NAMES)
    return (
        f"enum {{ WORDS = {count}, CLASSES = {len(example.NAMES)} }};\n"
        f"typedef {CTYPES[out.dtype]} score;\n"
        f"static const char *const names[CLASSES] = {{{names}}};\n"
        f"static const uint8_t truth[WORDS] = {{{', '.join(map(str, y))}}};\n"
        + example.c_array(CTYPES[port.dtype], "words", x)
    )


def build(folder, target="cortex-m4", count=12):
    """The model and the program, folder/kws.elf."""
    folder.mkdir(parents=True, exist_ok=True)
    path = example.spotter(folder)
    model = nv.compile(path, target, dims=example.dims(path), name="kws", out=folder / "libkws.a")
    (folder / "words.h").write_text(words_h(model, count))
    (folder / "main.c").write_bytes((HERE / "main.c").read_bytes())
    machine = targets.get(target)
    flags = ("-Wall", "-Wextra", "-Werror")
    return model, firmware.link(
        folder, ["main.c", "libkws.a"], machine, boards.get(machine.board), out="kws.elf", flags=flags
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cortex-m4")
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("build/kws"))
    parser.add_argument("--no-run", action="store_true")
    given = parser.parse_args()
    model, program = build(given.folder, given.target, given.words)
    print(f"{program}: {model}")
    if given.no_run:
        return 0
    done = firmware.simulate(program, targets.get(given.target), icount=True)
    print(done.said, end="")
    return done.status


if __name__ == "__main__":
    sys.exit(main())
