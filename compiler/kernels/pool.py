"""Compiles kernels: first from the cache, then in at most two worker processes.

The cache is keyed by what decides an object's bytes: template source, configuration, machine row, pinned versions. An
entry holds its own digest and is written beside and renamed, so that concurrent compiles and torn writes do no harm.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...errors import NervureError
from ...targets.machine import Machine
from ..cache import cache_dir, pins, read_entry, write_entry
from .spec import Draft, machine_key

WORKERS = 2


@cache
def _source_digest() -> str:
    """A digest of everything that writes kernels: templates share code freely, so an edit to one renews them all."""
    held = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        held.update(path.read_bytes())
    return held.hexdigest()


def _key(draft: Draft, machine: str) -> str:
    text = "\n".join([_source_digest(), draft.spec.canonical, machine, *pins()])
    return hashlib.sha256(text.encode()).hexdigest()


class _Worker:
    """One worker process, started at the first request and again after its death."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._log: Any = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer; NervureError names the kernel if the worker dies of it."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if line:
            return json.loads(line)  # type: ignore[no-any-return]
        code = self.process.wait()
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-1:] or ["nothing was printed"]
        self.process = None
        raise NervureError(
            f"the compile worker died of kernel {request['name']}",
            where=f"template {request['template']} for {request['machine']['name']}",
            why=f"exit status {code}; its last line: {last[0]}",
            hint="report it with this message; --target x86-64-v3 or another template may avoid it",
        )

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TVM_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


_idle: SimpleQueue[_Worker] = SimpleQueue()
_started: list[_Worker] = []
_lock = threading.Lock()


def _borrow() -> _Worker:
    with _lock:
        if _idle.empty() and len(_started) < WORKERS:
            _started.append(_Worker())
            return _started[-1]
    return _idle.get()


@atexit.register
def stop_workers() -> None:
    for worker in _started:
        worker.stop()


def compile_kernels(
    drafts: Sequence[Draft],
    machine: Machine,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Object files of the drafts' distinct kernels, in the order of their names, written to ``folder``.

    ``progress(done, total)`` is called as kernels are finished. Raises NervureError when a worker dies.
    """
    distinct = {d.spec.name: d for d in drafts}
    row, row_text, root = machine.record(), machine_key(machine), cache_dir() / "kernels"
    done = 0

    def finish() -> None:
        nonlocal done
        with _lock:
            done += 1
            if progress:
                progress(done, len(distinct))

    def one(draft: Draft) -> Path:
        target = folder / f"{draft.spec.name}.o"
        key = _key(draft, row_text)
        entry = root / key[:2] / key
        held = read_entry(entry)
        if held is not None:
            target.write_bytes(held)
        else:
            _compile(draft, row, target)
            write_entry(entry, target.read_bytes())
        finish()
        return target

    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(one, [distinct[name] for name in sorted(distinct)]))


def _compile(draft: Draft, row: Mapping[str, Any], target: Path) -> None:
    spec = draft.spec
    worker = _borrow()
    try:
        reply = worker.ask(
            {
                "template": spec.template,
                "config": spec.config,
                "name": spec.name,
                "machine": row,
                "tasks": draft.tasks,
                "out": str(target),
            }
        )
    finally:
        _idle.put(worker)
    if not reply["ok"]:
        raise RuntimeError(
            f"kernel {spec.name} ({spec.template}): {reply['error']}\n{reply.get('trace', '')}\n{spec.canonical[:4000]}"
        )
