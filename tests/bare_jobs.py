"""Many entries of one static library in one boot of the emulated board: what the op table is run with.

The program uses the library as anybody's would, by its header; every block of memory is painted before each entry, so
that a kernel which reads what it never wrote shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from nervure.compiler.names import distinct
from nervure.runtime.artifact import Artifact
from nervure.targets import boards, firmware
from nervure.targets.boards import Board
from nervure.targets.files import temporary_folder
from nervure.targets.machine import Machine

MAIN = """\
#include "semihosting.h"
#include "model.h"
typedef struct {
    int (*run)(const @_memory *, const void *const[], void *const[]);
    void *(*input)(const @_memory *, int);
    void *(*output)(const @_memory *, int);
    const uint32_t *inputs, *outputs; /* number, then bytes of each */
} job;
%(blocks)s
%(sizes)s
static const job jobs[] = {
%(jobs)s
};

static void name(char *text, char kind, int number, int index) {
    *text++ = kind;
    for (int unit = 1000; unit > 0; unit /= 10) *text++ = (char)('0' + number / unit %% 10);
    *text++ = '_', *text++ = (char)('0' + index / 10), *text++ = (char)('0' + index %% 10), *text = 0;
}

static int one(int number) {
    const job *const it = &jobs[number];
    @_memory memory = {%(starts)s};
    char file[12];
%(paint)s
    if (@_init(&memory) != 0) return 1;
    for (int i = 0; i < (int)it->inputs[0]; i++) {
        name(file, 'i', number, i);
        if (nervure_read_file(file, it->input(&memory, i), it->inputs[i + 1]) != 0) return 2;
    }
    if (it->run(&memory, 0, 0) != 0) return 3;
    for (int i = 0; i < (int)it->outputs[0]; i++) {
        name(file, 'o', number, i);
        if (nervure_write_file(file, it->output(&memory, i), it->outputs[i + 1]) != 0) return 4;
    }
    return 0;
}

int main(void) {
    for (int i = 0; i < (int)(sizeof jobs / sizeof *jobs); i++) {
        int status = one(i);
        nervure_print(status == 0 ? "ok\\n" : "failed\\n");
        if (status != 0) return status;
    }
    return 0;
}
"""


@dataclass(frozen=True)
class Job:
    """An entry (its C name), its inputs and the sizes of its outputs in bytes."""

    entry: str
    inputs: tuple[bytes, ...]
    output_bytes: tuple[int, ...]


def run_jobs(
    artifact: Artifact, machine: Machine, jobs: Sequence[Job], *, board: Board | None = None, timeout: float = 300
) -> list[tuple[bytes, ...] | str]:
    """Each job's outputs, or what became of it."""
    assert machine.board is not None
    with temporary_folder() as folder:
        for number, job in enumerate(jobs):
            for i, data in enumerate(job.inputs):
                (folder / f"i{number:04d}_{i:02d}").write_bytes(data)
        shutil.copyfile(artifact.path, folder / "libmodel.a")
        shutil.copyfile(artifact.path.with_suffix(".h"), folder / "model.h")
        regions = distinct(r["name"] for r in artifact.block["regions"])
        (folder / "main.c").write_text(_main(artifact.prefix, regions, jobs))
        elf = firmware.link(
            folder, ["main.c", "libmodel.a"], machine, board or boards.get(machine.board), out="jobs.elf"
        )
        done = firmware.simulate(elf, machine, timeout=timeout)
        finished = done.said.count("ok\n")
        results: list[tuple[bytes, ...] | str] = [
            tuple((folder / f"o{number:04d}_{i:02d}").read_bytes() for i in range(len(job.output_bytes)))
            for number, job in enumerate(jobs[:finished])
        ]
        if finished < len(jobs):
            why = f"{done.said.replace('ok', '').strip() or 'nothing said'}, status {done.status}"
            results.append(why)
            results += ["not reached"] * (len(jobs) - finished - 1)
        return results


def _main(prefix: str, regions: Sequence[str], jobs: Sequence[Job]) -> str:
    big = prefix.upper()
    sizes, rows = [], []
    for n, job in enumerate(jobs):
        for kind, numbers in (("in", [len(b) for b in job.inputs]), ("out", job.output_bytes)):
            text = ", ".join(map(str, [len(numbers), *numbers]))
            sizes.append(f"static const uint32_t {kind}_{n}[] = {{{text}}};")
        call = f"{prefix}_{job.entry}"
        rows.append(f"    {{{call}, {call}_input, {call}_output, in_{n}, out_{n}}},")
    blocks = [f"static _Alignas(64) unsigned char block_{r}[{big}_{r.upper()}_BYTES + 1];" for r in regions]
    paint = [f"    for (uint32_t k = 0; k < sizeof block_{r}; k++) block_{r}[k] = 0xA5;" for r in regions]
    parts = {
        "blocks": "\n".join(blocks),
        "sizes": "\n".join(sizes),
        "jobs": "\n".join(rows),
        "starts": ", ".join(f".{r} = block_{r}" for r in regions),
        "paint": "\n".join(paint),
    }
    return (MAIN % parts).replace("@", prefix)
