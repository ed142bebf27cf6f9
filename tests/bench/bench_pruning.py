"""What channel pruning costs and brings, beside torch-pruning: accuracy and latency, in one table.

    python tests/bench/bench_pruning.py [--nets resnet8 mobilenet dscnn] [--macs 0.5] [--torch PYTHON] [--json OUT]

Each network is trained here (or its weights are taken from ``--weights``), pruned to a part of its multiply-adds, tuned
for a third of the epochs, and written as ONNX. PYTHON has torch, torch-pruning, onnx and onnxruntime: it does the same
with the same weights, batches, epochs and learning rates. Accuracy is that of artifacts compiled for this machine, for
the same test samples; latencies are medians of rounds in turns: ours of every network, and ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from bench_accuracy import mcnemar  # noqa: E402
from contestants import Contestant, alone  # noqa: E402
from pruning_nets import NETS, Data, Net, learn, trained  # noqa: E402

TEMPERATURE = 4.0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--macs", type=float, default=0.5, help="the part of the multiply-adds that stays")
    parser.add_argument("--latency", help="ours by a target such as 0.6x instead, measured on this machine")
    parser.add_argument("--criteria", nargs="*", default=["l2"], help="ours")
    parser.add_argument("--multiple", type=int, help="of channels, ours; default: as the pruner thinks fit")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PATTERN", help="layers that stay as they are, ours")
    parser.add_argument("--importance", nargs="*", default=["magnitude"], help="torch-pruning's")
    parser.add_argument("--scope", nargs="*", default=["layer", "global"], help="torch-pruning's")
    parser.add_argument("--round-to", type=int, default=8, help="channels of torch-pruning; 0: any number")
    parser.add_argument("--share", type=float, default=0.0, help="of the dense model's answers in both tools' loss")
    parser.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "nervure-pruning")
    parser.add_argument("--torch", help="a Python that has torch-pruning and onnxruntime")
    parser.add_argument("--epochs", type=int, help="of fine-tuning; default: a third of the training's")
    parser.add_argument("--rate", type=float, default=0.002, help="at which fine-tuning begins, both tools'")
    parser.add_argument("--samples", type=int, default=0, help="tune with fewer")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lock", type=Path, help="a file whose lock is held while times are taken")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.nets:
        with tempfile.TemporaryDirectory(prefix="pruning-") as folder:
            rows += one(NETS[name], Path(folder), args)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))


def one(net: Net, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of a network."""
    data = net.data()
    weights = trained(net, data, args.weights)
    found = {"dense": dense(net, weights, folder)}
    for criterion in args.criteria:
        found[f"ours, {criterion}"] = ours(net, data, weights, criterion, folder / f"ours-{criterion}.onnx", args)
    if args.torch:
        for importance in args.importance:
            for scope in args.scope:
                title, out = f"torch-pruning, {importance} {scope}", folder / f"theirs-{importance}-{scope}.onnx"
                found[title] = theirs(net, weights, importance, scope, out, args)
    rows = [{"net": net.name, "name": title, **facts} for title, facts in found.items()]
    score(rows, data)
    latencies(rows, data, folder, args)
    show(rows)
    return rows


# -- making ------------------------------------------------------------------------------------------------------------


def load(net: Net, weights: Path) -> Any:
    """Our network with its trained weights."""
    model = net.ours()
    model.ready()
    with np.load(weights) as held:
        model.load_state_dict(dict(held))
    return model


def dense(net: Net, weights: Path, folder: Path) -> dict[str, Any]:
    """The trained network as ONNX."""
    from nervure.compiler.prune.layers import prepare
    from nervure.frontends.onnx import save

    graph = prepare(load(net, weights).to_graph(symbolic=True))
    save(graph, folder / "dense.onnx")
    return {"path": str(folder / "dense.onnx"), "macs": 1.0, "prune_s": 0.0, "tune_s": 0.0}


def ours(net: Net, data: Data, weights: Path, criterion: str, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Pruned and tuned by us."""
    import nervure as nv
    from nervure.compiler.prune import budget
    from nervure.frontends.onnx import load_network, save

    teacher = load(net, weights)
    started = time.perf_counter()
    before, graph = pruned(teacher, data, criterion, args)
    done = time.perf_counter()
    save(graph, out)
    model = load_network(out)
    few = data.few(args.samples, len(data.x_test)) if args.samples else data
    loss: Any = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    if args.share:
        loss = nv.losses.Distillation(teacher, loss, 1 - args.share, TEMPERATURE)
    learn(net, model, few, args.epochs or net.tuning, args.rate, net.epochs, loss=loss, threads=args.threads)
    tuned = time.perf_counter()
    nv.save_onnx(model, out)
    after = budget.counted(budget.static(graph))["macs"]
    return {"path": str(out), "macs": after / before, "prune_s": done - started, "tune_s": tuned - done}


def pruned(model: Any, data: Data, criterion: str, args: argparse.Namespace) -> tuple[float, Any]:
    """The dense network's multiply-adds, and the graph that is left."""
    import nervure as nv
    from nervure.compiler.prune import budget
    from nervure.compiler.prune.layers import prepare
    from nervure.compiler.prune.pruner import prune
    from nervure.compiler.prune.settings import Settings
    from nervure.targets import get

    graph = prepare(model.to_graph(symbolic=True))
    before = budget.counted(budget.static(graph))["macs"]
    if args.latency:
        return before, nv.prune(graph, latency=args.latency, criterion=criterion, data=_samples(data)).graph
    port = graph.node(graph.inputs[0]).names[0]
    few = data.few(256, 1)
    samples = [{port: one[None]} for one in data.ready(few.x)]
    target, keep = budget.Target("macs", args.macs), tuple(args.keep)
    settings = Settings("channels", criterion, target=target, multiple=args.multiple, keep=keep)
    return before, prune(graph, settings, get("host"), samples, few.y).graph


def _samples(data: Data) -> tuple[np.ndarray, np.ndarray]:
    few = data.few(512, 1)
    return data.ready(few.x), few.y


def theirs(net: Net, weights: Path, importance: str, scope: str, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Pruned and tuned by torch-pruning and PyTorch."""
    request = {
        "net": net.name,
        "weights": str(weights),
        "out": str(out),
        "importance": importance,
        "global": scope == "global",
        "round_to": args.round_to,
        "macs": args.macs,
        "epochs": args.epochs or net.tuning,
        "first": net.epochs,
        "rate": args.rate,
        "samples": args.samples,
        "share": args.share,
        "temperature": TEMPERATURE,
        "threads": args.threads,
    }
    command = [args.torch, str(Path(__file__).parent / "pruning_peers.py"), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
    if not said:
        raise RuntimeError(done.stderr[-2000:])
    return {"path": str(out), **json.loads(said[-1])}


# -- measuring ---------------------------------------------------------------------------------------------------------


def score(rows: list[dict[str, Any]], data: Data) -> None:
    """Accuracy of each, compiled, on the test samples, and the p of it being the dense network's."""
    import nervure as nv

    x, right = data.test, {}
    for row in rows:
        model = nv.compile(row["path"], dims={"batch": 1})
        row["library"] = str(model.save(str(Path(row["path"]).with_suffix(".so"))))
        row["kb"] = Path(row["library"]).stat().st_size / 1024
        right[row["name"]] = np.array([model(one[None]).argmax() for one in x]) == data.y_test
        row["accuracy"] = 100 * float(right[row["name"]].mean())
        row["drop"] = rows[0]["accuracy"] - row["accuracy"]
        row["p"] = mcnemar(right["dense"], right[row["name"]]) if row is not rows[0] else 1.0
    for row in rows:
        row["p_of_ours"] = {
            name: mcnemar(found, right[row["name"]]) for name, found in right.items() if name.startswith("ours")
        }


def latencies(rows: list[dict[str, Any]], data: Data, folder: Path, args: argparse.Namespace) -> None:
    """Microseconds of a sample, by us and by ONNX Runtime, and the median ratio to the dense network in the same
    round."""
    inputs = folder / "x.npz"
    np.savez(inputs, x=data.ready(data.x_test[:1]))
    running = {}
    for row in rows:
        for kind, python, path in (
            ("ours", sys.executable, str(row["library"])),
            ("onnxruntime", args.torch, row["path"]),
        ):
            if python:
                request = {"kind": kind, "path": path, "data": str(inputs), "threads": 1}
                script = str(Path(__file__).parent / "int8_peers.py")
                running[row["name"], kind] = Contestant([python, script, json.dumps(request)])
    try:
        for contestant in running.values():
            assert contestant.facts is not None
        for _ in range(args.rounds):
            with alone(args.lock):
                for contestant in running.values():
                    contestant.rounds.append(float(contestant.ask("go")))
    finally:
        for contestant in running.values():
            contestant.stop()
    for row in rows:
        for kind in ("ours", "onnxruntime"):
            found, base = running.get((row["name"], kind)), running.get(("dense", kind))
            if found is not None and base is not None:
                row[f"{kind}_us"] = 1e6 * found.median
                shares = [a / b for a, b in zip(found.rounds, base.rounds, strict=True)]
                row[f"{kind}_ratio"] = statistics.median(shares)


def show(rows: list[Mapping[str, Any]]) -> None:
    """Prints the lines of a network."""
    print(
        f"{'network':10} {'pruned by':34} {'MACs':>6} {'acc %':>6} {'drop':>6} {'p':>6} {'us':>7} {'ratio':>6} "
        f"{'ORT us':>7} {'ratio':>6} {'KB':>5} {'prune s':>8} {'tune s':>7}"
    )
    for r in rows:
        peer = f"{r['onnxruntime_us']:7.1f} {r['onnxruntime_ratio']:6.3f}" if "onnxruntime_us" in r else f"{'':14}"
        print(
            f"{r['net']:10} {r['name']:34} {r['macs']:6.3f} {r['accuracy']:6.2f} {r['drop']:6.2f} {r['p']:6.3f} "
            f"{r['ours_us']:7.1f} {r['ours_ratio']:6.3f} {peer} {r['kb']:5.0f} {r['prune_s']:8.1f} {r['tune_s']:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
