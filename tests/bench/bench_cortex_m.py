"""The four MLPerf Tiny models in int8 on Cortex-M: counted instructions, RAM and code, beside CMSIS-NN and TFLM.

    python tests/bench/bench_cortex_m.py [--models ad ic kws vww] [--targets cortex-m4 ...] [--layers] [--float]
        [--json OUT]

Instructions are counted by a plugin of QEMU over exactly one inference of the reference int8 model; they are not
cycles. CMSIS-NN's are of its best configuration on Cortex-M4; its figures by layer (``--layers``) are of its default
build, the only ones known. RAM is what one inference touched: arena, which holds inputs and outputs, and stack. Code
and constants beyond the weights: allocated sections of the library's objects in a linked program, and of the
compiler's helpers that it needs, less the bytes of weights and biases in the source model. ``--float``: the float
models, too, with instructions a multiply-accumulate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bare_figures as figures  # type: ignore[import-not-found]
import models  # type: ignore[import-not-found]
from nervure import targets
from nervure.errors import NervureError
from nervure.targets import toolchain

FIRST = "cortex-m4"  # what CMSIS-NN and TFLM were measured on


def measured(name: str, target: str, path: Path, folder: Path) -> dict[str, Any]:
    """One model on one core."""
    machine = targets.get(target)
    artifact = figures.compile_for(path, target, folder / f"{name}_{target}.a", name=name)
    run = figures.run(artifact, machine, figures.random_inputs(artifact))
    size = figures.sizes(artifact, machine, figures.weight_bytes(path))
    macs = sum(s["flops"] for s in artifact.block["entries"][0]["steps"]) / 2
    return {
        "model": name,
        "target": target,
        "instructions": run.instructions,
        "macs": macs,
        "arena": run.arena,
        "stack": run.stack,
        "ram": run.ram,
        "beyond_weights": size.beyond,
        "kernels": size.kernels,
        "entry": size.entry,
        "helpers": size.helpers,
        "constants_beyond_weights": size.constants - size.weights,
        "weights": size.weights,
        "layers": [
            dataclasses.asdict(x) | {"cmsis_nn": theirs}
            for x, theirs in zip(run.layers, figures.beside(name, run.layers), strict=True)
        ],
    }


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def show(rows: list[dict[str, Any]], layers: bool) -> None:
    first = {r["model"]: r for r in rows if r["target"] == FIRST}
    heads = (
        "model",
        "target",
        "instructions",
        "CMSIS-NN",
        "of M4",
        "RAM",
        "TFLM",
        "stack",
        "beyond",
        "kernels",
        "entry",
    )
    table = [[*heads, "helpers", "constants"]]
    for r in rows:
        theirs, tflm = figures.CMSIS_NN.get(r["model"]), figures.TFLM_ARENA.get(r["model"])
        table.append(
            [
                *(r["model"], r["target"], f"{r['instructions']:,}"),
                f"{r['instructions'] / theirs:.3f}x" if theirs and r["target"] == FIRST else "",
                f"{first[r['model']]['instructions'] / r['instructions']:.2f}x" if r["model"] in first else "",
                *(f"{r['ram']:,}", f"{r['ram'] / tflm:.2f}x" if tflm else ""),
                *(f"{r[k]:,}" for k in ("stack", "beyond_weights", "kernels", "entry", "helpers")),
                f"{r['constants_beyond_weights']:,}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print(
            "  ".join(
                cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    ours = [r["instructions"] / figures.CMSIS_NN[r["model"]] for r in first.values() if r["model"] in figures.CMSIS_NN]
    if ours:
        print(
            f"geometric mean of the instructions on {FIRST}: {geomean(ours):.3f}x of CMSIS-NN's, worst {max(ours):.3f}x"
        )
    if layers:
        for r in first.values():
            show_layers(r)


def show_layers(row: dict[str, Any]) -> None:
    """Ours beside CMSIS-NN's default build. An addition that we do in a convolution counts with it."""
    ours, theirs = (sum(x[k] for x in row["layers"]) for k in ("instructions", "cmsis_nn"))
    print(f"\n{row['model']} by layer: {ours:,.0f}, CMSIS-NN {theirs:,}")
    for x in row["layers"]:
        other = x["cmsis_nn"]
        ratio = f"{x['instructions'] / other:6.2f}x" if other else "       "
        each = f"{x['instructions'] / x['macs']:6.2f} a MAC" if x["macs"] > 0 else " " * 12
        print(f"  {x['instructions']:12,.0f} {other:12,} {ratio} {each}  {x['op'][:44]:44} {x['detail'][:40]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(figures.NAMES), choices=figures.NAMES)
    parser.add_argument("--targets", nargs="+", default=list(figures.TARGETS))
    parser.add_argument("--layers", action="store_true", help="a table of each model's layers")
    parser.add_argument("--float", action="store_true", help="the float models, too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as held:
        for name in args.models:
            path = figures.reference_model(name)
            if path is None:
                sys.exit(f"there is no {models.SHARED / 'models'}: set NERVURE_SHARED")
            jobs = [(name, path)]
            if args.float:
                jobs.append((f"{name}-f32", models.model(f"tiny_{name}01")[0]))
            for job, target in ((job, target) for job in jobs for target in args.targets):
                try:
                    rows.append(measured(job[0], target, job[1], Path(held)))
                except (NervureError, toolchain.ToolError) as error:
                    print(f"{job[0]} on {target}: {' '.join(str(error).split())[-160:]}")
    show(rows, args.layers)
    if args.float:
        for r in rows:
            if r["model"].endswith("-f32"):
                print(f"{r['model']} on {r['target']}: {r['instructions'] / r['macs']:.2f} instructions a MAC")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
