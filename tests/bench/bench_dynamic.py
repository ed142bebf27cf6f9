"""Dynamic quantization beside ONNX Runtime's, of the same float models, and beside our own float artifact.

    python tests/bench/bench_dynamic.py [NAME ...] [--peer PYTHON] [--threads 1] [--rounds 9] [--lock FILE]

NAMEs are models of ``../shared`` (a transformer and two recurrent ones where none is given). ``--peer`` is a Python
with onnxruntime and onnx, whose ``quantize_dynamic`` makes the peer's model (int8 weights, a scale for each channel).
Rounds and ratios are those of ``bench_int8``; printed beside the times: the cosine of the first output to float's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_int8 import Contestant, alone
from bench_int8 import _ratio as ratio_of
from bench_int8 import _stored as stored

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
NAMES = ("bert_mini_128", "lstm_2x128", "gru_2x128")
QUANTIZE = (
    "import sys; from onnxruntime.quantization import QuantType, quantize_dynamic;"
    "quantize_dynamic(sys.argv[1], sys.argv[2], weight_type=QuantType.QInt8, per_channel=True)"
)


def contestants(name: str, args: argparse.Namespace, folder: Path) -> tuple[dict[str, Contestant], dict[str, Path]]:
    import models
    import nervure as nv
    from nervure import targets
    from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
    from nervure.compiler.quantize.dynamic import quantize_dynamic
    from nervure.compiler.quantize.quantizer import prepare

    path, inputs = models.model(name)
    plain = prepare(nv.load_onnx(path))
    forms = {"float": plain, "int8": quantize_dynamic(plain).graph}
    files: dict[str, Path] = {}
    for form, graph in forms.items():
        files[f"nervure {form}"] = folder / f"{name}-{form}.so"
        options = Options(threads=args.threads)
        compile_entries([EntryGraph(graph, "infer")], targets.host(), files[f"nervure {form}"], options)
    files["onnxruntime float"], files["onnxruntime int8"] = path, folder / f"{name}-theirs.onnx"
    theirs = [args.peer, "-c", QUANTIZE, str(path), str(files["onnxruntime int8"])]
    subprocess.run(theirs, check=True, capture_output=True)
    data = stored({n: inputs[n] for n in (plain.node(k).names[0] for k in plain.inputs)}, folder / f"{name}.npz")
    made = {}
    for who, file in files.items():
        kind = who.split()[0]
        request: dict[str, Any] = {"kind": "ours" if kind == "nervure" else kind, "path": str(file)}
        python = sys.executable if kind == "nervure" else args.peer
        made[who] = Contestant(python, who, {**request, "data": data, "threads": args.threads})
        assert made[who].facts is not None, f"{who} failed on {name}: BENCH_ERRORS=1 shows why"
    return made, files


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lock", type=Path)
    args = parser.parse_args()
    for name in args.names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            made, files = contestants(name, args, folder)
            with alone(args.lock):
                for _ in range(args.rounds):
                    for contestant in made.values():
                        contestant.round()
            outputs = {who: c.outputs(folder / f"{who}.npz")[0] for who, c in made.items()}
            own = made["nervure int8"]
            print(f"{name}: {args.threads} thread")
            for who, contestant in made.items():
                contestant.stop()
                ratio, took = ratio_of(contestant.rounds, own.rounds), statistics.median(contestant.rounds) * 1e6
                near = cosine(outputs[who], outputs["onnxruntime float"])
                size = files[who].stat().st_size / 1e6
                print(f"  {who:18} {took:9.1f} us  {ratio:5.2f}x  cosine {near:.6f}  {size:.2f} MB")


if __name__ == "__main__":
    main()
