"""``nv.prune``: a model becomes smaller and faster by leaving weights out, with a report of what that did."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compiler.ir import Graph
from .model import Model
from .prune_job import Job
from .prune_report import Report, make_report
from .prune_settings import Tuning, settings_for
from .writing import writable, writable_record

Progress = Callable[[str, int, int], None]
_FILE = "a pruned model is an ONNX file"


@dataclass(frozen=True)
class Pruning:
    """A pruned model: ``graph``, ``report`` (what it brought and cost), ``model`` (compiled, can be called), ``path``
    (the ONNX file that was written, or None)."""

    graph: Graph
    report: Report
    model: Model
    path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Writes the graph as ONNX, whole or not at all."""
        from .onnx import save

        target = Path(path)
        writable(target, ".onnx", _FILE)
        save(self.graph, target)
        return target


def prune(
    model: str | Path | Graph | Any,
    out: str | Path | None = None,
    *,
    structure: str = "channels",
    criterion: str = "l1",
    scope: str = "global",
    sparsity: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    ram: str | float | None = None,
    file: str | float | None = None,
    latency: str | float | None = None,
    data: Any = None,
    test: Any = None,
    epochs: int = 0,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    distill: bool = False,
    steps: int = 1,
    keep: Sequence[str] = (),
    layers: Mapping[str, float] | None = None,
    target: str = "host",
    tune: str | Path | None = None,
    force: bool = False,
    optimize: str | None = None,
    timed: bool = True,
    scan: bool = False,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Pruning:
    """Prunes a model, trains it on if there are data for that, and says what it brought.

    ``model``: an ONNX file, a network of the DSL or a ``Graph``. ``structure``: ``channels``, ``heads``, ``units``,
    ``groups``, ``blocks`` (what goes together is found and taken out, the network really shrinks; several are joined by
    ``+``, ``all`` are all of them), or a pattern of zeros: ``unstructured``, ``block``, ``block:4x16``, ``2:4``,
    ``2:4v``, ``2:4x16``. ``criterion`` says what a weight is worth; ``taylor``, ``movement`` and ``wanda`` need data.

    One target: ``sparsity`` (the part that goes: 0.75, ``"75%"``), or what is left: ``macs``, ``params``, ``ram``,
    ``file``, ``latency``, as a part of the dense model (``"0.6x"``) or absolute (``"1.2M"``, ``"44K"``, ``"200us"``).
    On ``host`` a latency is measured: candidates are compiled and timed in turns with the dense model. With ``tune`` (a
    JSON file, the tuning record) what was measured is kept, and the same choice is made again without measuring.
    ``layers`` says the part that goes of single layers (patterns of names), ``keep`` names those that stay as they are.

    ``data``: an ``.npz`` file with the inputs and ``y``, a dictionary of arrays or a pair (x, y). Every fifth sample is
    held out and judges the accuracy, unless ``test`` has samples of its own. With ``epochs`` the pruned network is
    trained on the others (Adam, ``learning_rate`` falling as a cosine); what was pruned stays zero. ``distill``: the
    dense model's outputs teach, too. ``steps``: pruning and training take turns so often. ``scan``: how sensitive each
    layer is goes into the report.

    A pattern that is not faster on ``target`` is refused with both times of each layer, unless ``force``.
    ``optimize="size"`` compiles for few bytes instead (as ``nervure compile --optimize size`` will), which a ``file``
    target does by itself: zeros are then left out wherever that saves bytes. ``timed``
    False measures nothing, a latency target included: the cost model decides. Further ``options`` are the fields of
    ``compiler.prune.settings.Settings`` (``floor``, ``multiple``, ``rank``).

    Raises ``NervureError`` where nothing can be pruned (with the reasons), where a target is out of reach (with the
    nearest), and for data that do not fit the model; nothing is written then.
    """
    started = time.perf_counter()
    targets = {"sparsity": sparsity, "macs": macs, "params": params, "ram": ram, "file": file, "latency": latency}
    settings = settings_for(
        targets,
        {"structure": structure, "criterion": criterion, "scope": scope, "keep": keep, "parts": dict(layers or {}),
         "seed": seed, "force": force, "optimize": optimize or ("speed" if file is None else "size"), **options},
    )  # fmt: skip
    training = Tuning(epochs, learning_rate, batch_size, distill, steps)
    if out is not None:
        writable(Path(out), ".onnx", _FILE)
    if tune is not None:
        writable_record(Path(tune))
    job = Job(model, settings, training, target, None if tune is None else Path(tune), timed, progress)
    job.read(data, test, dims, shapes)
    if scan:
        job.scan()
    job.run()
    made = Pruning(job.final.graph, make_report(job, timed, started), job.final.model)
    return made if out is None else Pruning(made.graph, made.report, made.model, made.save(out))
