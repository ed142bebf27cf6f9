"""Packages for other build systems: their structure by the published rules, and CMake's for real."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure.errors import NervureError
from nervure.frontends.package import files

MAIN = """\
#include <NAME.h>
static UPPER_ARENA(block);
int main(void) {
    NAME_memory memory = {block};
    return NAME_init(&memory) || NAME_infer(&memory, 0, 0);
}
"""
PROJECT = """\
cmake_minimum_required(VERSION 3.16)
project(firmware C)
if(SUBDIRECTORY)
  add_subdirectory(${PACKAGE} package)
else()
  find_package(NAME CONFIG REQUIRED PATHS ${PACKAGE} NO_DEFAULT_PATH)
endif()
add_executable(firmware main.c)
target_link_libraries(firmware PRIVATE NAME::NAME)
"""
GCC = """\
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_FLAGS_INIT "-mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=ABI")
set(CMAKE_EXE_LINKER_FLAGS_INIT "--specs=nosys.specs")
"""
NAME = "my_net_2_0"  # the C identifier of what is called my-net.2.0


@pytest.fixture(scope="module")
def graph() -> object:
    @nv.network
    def small(x: nv.Input((4,))):  # type: ignore[no-untyped-def]
        return nv.softmax(nv.layers.Dense(3)(x))

    return small


@pytest.fixture(scope="module")
def library(graph: object, tmp_path_factory: pytest.TempPathFactory) -> nv.Model:
    pytest.importorskip("tvm")
    out = tmp_path_factory.mktemp("library") / "libmy-net.2.0.a"
    return nv.compile(graph, target="cortex-m4", name="my-net.2.0", out=out)


@pytest.fixture(scope="module")
def source(graph: object, tmp_path_factory: pytest.TempPathFactory) -> nv.Model:
    pytest.importorskip("tvm")
    out = tmp_path_factory.mktemp("source") / "my-net.2.0.c"
    return nv.compile(graph, target="cortex-m4", name="my-net.2.0", out=out, emit="c")


def write(folder: Path, held: dict[str, bytes]) -> Path:
    for path, data in held.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        assert b"@" not in data or not re.search(rb"@\w+@", data), path
    return folder


@pytest.mark.parametrize("form", ["library", "source"])
def test_arduino_library(form: str, request: pytest.FixtureRequest) -> None:
    """Arduino's library specification 1.5: the required fields, headers and code below src, examples."""
    made = files(request.getfixturevalue(form), "arduino")
    rows = [line for line in made["library.properties"].decode().splitlines() if not line.startswith("#")]
    fields = dict(row.split("=", 1) for row in rows)
    for key in ("name", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"):
        assert fields[key]
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert fields["name"] == NAME and f"src/{fields['includes']}" in made
    sketch = made[f"examples/{NAME}/{NAME}.ino"].decode()
    assert "void setup()" in sketch and "void loop()" in sketch and f"#include <{fields['includes']}>" in sketch
    if form == "source":
        assert "src/my-net.2.0.c" in made and "precompiled" not in fields
        return
    assert fields["precompiled"] == "true" and fields["ldflags"] == "-lmy-net.2.0"
    for folder in ("", "fpv4-sp-d16-hard/", "fpv4-sp-d16-softfp/"):
        assert made[f"src/cortex-m4/{folder}libmy-net.2.0.a"][:8] == b"!<arch>\n"


@pytest.mark.parametrize("form", ["library", "source"])
def test_zephyr_module(form: str, request: pytest.FixtureRequest) -> None:
    """Zephyr's modules: zephyr/module.yml names the folder of CMakeLists.txt and the Kconfig file."""
    made = files(request.getfixturevalue(form), "zephyr")
    module = made["zephyr/module.yml"].decode()
    found = dict(re.findall(r"^ *(\w+): *(\S+)$", module, re.M))
    assert found == {"name": NAME, "cmake": "zephyr", "kconfig": "zephyr/Kconfig"}
    assert re.search(r"^build:$", module, re.M)
    assert f"{found['cmake']}/CMakeLists.txt" in made and found["kconfig"] in made
    kconfig, cmake = made["zephyr/Kconfig"].decode(), made["zephyr/CMakeLists.txt"].decode()
    option = f"NERVURE_{NAME.upper()}"
    assert kconfig.startswith(f"config {option}\n\tbool ") and f"if(CONFIG_{option})" in cmake
    for path in re.findall(r"\$\{CMAKE_CURRENT_LIST_DIR\}/\.\./([\w./-]+?)\)", cmake):
        assert path == "include" or path in made
    assert ("depends on CPU_CORTEX_M4" in kconfig) == (form == "library")
    assert ("zephyr_library_import" in cmake) == (form == "library")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["library", "source"])
@pytest.mark.parametrize("abi, subdirectory", [("hard", "OFF"), ("softfp", "ON")])
def test_cmake_with_gcc(form: str, abi: str, subdirectory: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not shutil.which("cmake") or not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("needs cmake and arm-none-eabi-gcc")
    package = write(tmp_path / "package", files(request.getfixturevalue(form), "cmake"))
    build(tmp_path, package, GCC.replace("ABI", abi), subdirectory, header="my-net.2.0")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["library", "source"])
def test_cmake_with_zig(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    from nervure.targets import get, toolchain

    machine = get("cortex-m4")
    package = write(tmp_path / "package", files(request.getfixturevalue(form), "cmake"))
    flags = f"-target {machine.zig_target} -mcpu={machine.zig_cpu} -ffreestanding -fno-sanitize=undefined"
    for tool in ("cc", "ar", "ranlib"):
        (tmp_path / tool).write_text(f'#!/bin/sh\nexec "{toolchain.zig()}" {tool} "$@"\n')
        (tmp_path / tool).chmod(0o755)
    text = f"set(CMAKE_C_COMPILER {tmp_path}/cc)\nset(CMAKE_AR {tmp_path}/ar)\nset(CMAKE_RANLIB {tmp_path}/ranlib)\n"
    if form == "library":  # for the core; portable C for this machine
        shutil.copy(toolchain.RUNTIME / "bare" / "strings.c", tmp_path)
        text += f"""\
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_C_COMPILER_WORKS 1)
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-nostdlib -Wl,-e,main")
set(CMAKE_C_STANDARD_LIBRARIES "-lcompiler_rt")
"""
    program = build(tmp_path, package, text, "OFF", header="my-net.2.0", more=("strings.c",) * (form == "library"))
    if form == "source":
        assert subprocess.run([program]).returncode == 0


def build(
    folder: Path, package: Path, toolchain_file: str, subdirectory: str, *, header: str, more: tuple[str, ...] = ()
) -> Path:
    main = MAIN.replace("<NAME.h>", f"<{header}.h>").replace("UPPER", NAME.upper()).replace("NAME", NAME)
    (folder / "main.c").write_text(main)
    (folder / "CMakeLists.txt").write_text(PROJECT.replace("NAME", NAME).replace("main.c", " ".join(("main.c", *more))))
    (folder / "toolchain.cmake").write_text(toolchain_file)
    options = [f"-DPACKAGE={package}", f"-DSUBDIRECTORY={subdirectory}", "-DCMAKE_TOOLCHAIN_FILE=toolchain.cmake"]
    for command in (["cmake", "-S", ".", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "build" / "firmware").read_bytes()[:4] == b"\x7fELF"
    return folder / "build" / "firmware"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["library", "source"])
def test_the_sketch_compiles(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As Arduino compiles it: C++, with a core's header before it."""
    if not shutil.which("arm-none-eabi-g++"):
        pytest.skip("needs arm-none-eabi-g++")
    package = write(tmp_path / NAME, files(request.getfixturevalue(form), "arduino"))
    (tmp_path / "Arduino.h").write_text(
        "#include <stdint.h>\n#include <stddef.h>\nunsigned long micros();\nvoid delay(unsigned long);\n"
        "struct Port { void begin(long); void print(const char *); void print(unsigned long);\n"
        "void println(const char *); };\nextern Port Serial;\n"
    )
    sketch = package / "examples" / NAME / f"{NAME}.ino"
    flags = ["-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=softfp", "-Wall", "-Wextra", "-Werror"]
    command = ["arm-none-eabi-g++", *flags, "-include", "Arduino.h", "-I.", f"-I{package}/src", "-x", "c++", "-c"]
    done = subprocess.run([*command, str(sketch), "-o", "s.o"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_refusals(graph: object, library: nv.Model, tmp_path: Path) -> None:
    with pytest.raises(NervureError, match="use one of: cmake, arduino, zephyr"):
        files(library, "make")
    with pytest.raises(NervureError, match="--emit c"):
        files(nv.compile(graph, out=tmp_path / "host.so"), "cmake")
    assert np.isfinite(library.report.code_bytes)
