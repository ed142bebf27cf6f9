"""Latency of a model beside its peers: one process a peer, rounds interleaved, threads pinned, medians.

A figure is a ratio of two medians of the same run. ``run`` is compared with ONNX Runtime's ``run``; ``invoke`` (bound
buffers, no checks) with its io_binding.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError

ROUNDS = 9
ROUND_SECONDS = 0.25


@dataclass(frozen=True)
class Peer:
    """One contestant: ``kind`` is ``nervure`` or ``onnxruntime``, ``path`` its library or ONNX file."""

    kind: str
    path: Path
    threads: int = 1
    mode: str = "run"  # or "invoke"

    @property
    def name(self) -> str:
        return (
            self.kind if self.mode == "run" else f"{self.kind} ({'invoke' if self.kind == 'nervure' else 'io_binding'})"
        )


def bench(
    peers: Sequence[Peer],
    inputs: Mapping[str, np.ndarray],
    *,
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``{name, threads, median_ms, best_ms, rounds_ms}`` a peer, in the order given.

    ``inputs`` are written to a temporary file that every peer reads. Each round times each peer once, for ``seconds``.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="nervure-") as folder:
        data = Path(folder) / "inputs.npz"
        np.savez(data, **{f"a{i}": v for i, v in enumerate(inputs.values())})  # type: ignore[arg-type]
        names = list(inputs)
        running = [_Process(p, data, names, seconds) for p in peers]
        try:
            times: list[list[float]] = [[] for _ in peers]
            for r in range(rounds):
                for process, found in zip(running, times, strict=True):
                    found.append(process.round())
                if progress:
                    progress(r + 1, rounds)
        finally:
            for process in running:
                process.stop()
    return [
        {
            "name": p.name,
            "threads": p.threads,
            "median_ms": statistics.median(t) * 1e3,
            "best_ms": min(t) * 1e3,
            "rounds_ms": [v * 1e3 for v in t],
        }
        for p, t in zip(peers, times, strict=True)
    ]


def ratio(peer: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """The peer's time over ours, the median of the rounds' ratios: above 1 we are faster."""
    return float(statistics.median(p / o for p, o in zip(peer["rounds_ms"], ours["rounds_ms"], strict=True)))


class _Process:
    """A peer in its own process, asleep between its rounds."""

    def __init__(self, peer: Peer, data: Path, names: list[str], seconds: float) -> None:
        request = {"kind": peer.kind, "path": str(peer.path), "threads": peer.threads, "mode": peer.mode}
        request |= {"data": str(data), "names": names, "seconds": seconds}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self.peer = peer

    def round(self) -> float:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            why = self.process.stderr.read().strip().splitlines()[-1:]
            raise NervureError(f"{self.peer.name} could not be timed", why=why[0] if why else "its process ended")
        return float(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()


def _call(request: Mapping[str, Any]) -> Callable[[], Any]:
    """What is timed."""
    with np.load(request["data"]) as held:
        inputs = {n: held[f"a{i}"] for i, n in enumerate(request["names"])}
    if request["kind"] == "nervure":
        from ..runtime.artifact import read_artifact
        from .twin import open_session

        session = open_session(read_artifact(request["path"]), request["threads"])
        if request["mode"] == "run":
            return lambda: session.run(None, inputs)
        session.bind(inputs)
        return session.invoke
    from .verify import reference_session

    peer = reference_session(Path(request["path"]), request["threads"])
    if request["mode"] == "run":
        return lambda: peer.run(None, inputs)
    binding = peer.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for output in peer.get_outputs():
        binding.bind_output(output.name)
    return lambda: peer.run_with_iobinding(binding)


def _serve(request: Mapping[str, Any]) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(allowed[: request["threads"]]))
    call = _call(request)
    deadline = time.perf_counter() + 0.15
    while time.perf_counter() < deadline:
        call()
    for _ in sys.stdin:
        call()
        found: list[float] = []
        deadline = time.perf_counter() + request["seconds"]
        while time.perf_counter() < deadline or len(found) < 3:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        print(statistics.median(found), flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
