"""Compiles kernels: first from the cache, then in at most two worker processes.

The cache is keyed by what decides an object's bytes: template source, configuration, machine row, pinned versions. An
entry holds its own digest and is written beside and renamed, so that concurrent compiles and torn writes do no harm.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...errors import NervureError
from ...targets.machine import Machine
from ..cache import cache_dir, pins, read_entry, write_entry
from .spec import Draft, machine_key

WORKERS = 2
SECONDS = 300  # for one kernel: the slowest ones take a few
_FULL = re.compile(r"No space left|File too large|Disk quota")


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
        """The worker's answer; NervureError names the kernel if the worker dies of it or takes too long."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self._start()
        process, log, begin = self.process, self._log, time.monotonic()
        assert process and process.stdin and process.stdout
        patience = threading.Timer(SECONDS, process.kill)
        patience.daemon = True
        patience.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            patience.cancel()
        if line.endswith("\n"):
            return json.loads(line)  # type: ignore[no-any-return]
        code = process.wait()
        log.seek(0)
        last = (log.read().strip().splitlines()[-1:] or ["nothing was printed"])[0]
        self.stop()
        raise _death(request, last, code if time.monotonic() - begin < SECONDS else None)

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (lives as long as the process)
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
        """Ends the process, whatever it is doing."""
        process, log, self.process, self._log = self.process, self._log, None, None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe:
                        pipe.close()
        if log:
            log.close()


def _death(request: Mapping[str, Any], last: str, code: int | None) -> NervureError:
    """The error for a worker that died of ``request``; ``code`` is None where its time was up."""
    if code == -signal.SIGXFSZ or _FULL.search(last):
        return _disk_full(request["out"], last)
    kernel = f"template {request['template']} for {request['machine']['name']}"
    return NervureError(
        f"the compile worker {'died of' if code is not None else 'got stuck in'} kernel {request['name']}",
        where=kernel,
        why=f"exit status {code}; its last line: {last}" if code is not None else f"no answer in {SECONDS} seconds",
        hint="report it with this message; --target x86-64-v3 or another template may avoid it",
    )


def _disk_full(path: str, said: str) -> NervureError:
    return NervureError("the disk is full", where=path, why=said, hint="make room, or set TMPDIR to another folder")


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
    """Ends all workers. The next compile starts new ones."""
    for worker in _started:
        worker.stop()


def _forget_workers() -> None:
    """A forked child has copies of its parent's pipes and must not talk through them."""
    global _idle, _lock
    _idle, _lock = SimpleQueue(), threading.Lock()
    _started.clear()


os.register_at_fork(after_in_child=_forget_workers)


def compile_kernels(
    drafts: Sequence[Draft],
    machine: Machine,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Object files of the drafts' distinct kernels, in the order of their names, written to ``folder``; for a machine
    that is seen through a C compiler their texts instead (``c99.Text`` as JSON).

    ``progress(done, total)`` is called as kernels are finished. Raises NervureError when a worker dies.
    """
    distinct = {d.spec.name: d for d in drafts}
    row, row_text, root = machine.record(), machine_key(machine), cache_dir() / "kernels"
    suffix = ".o" if machine.llvm["kind"] == "llvm" else ".json"
    done = 0

    def finish() -> None:
        nonlocal done
        with _lock:
            done += 1
            if progress:
                progress(done, len(distinct))

    def one(draft: Draft) -> Path:
        target = folder / f"{draft.spec.name}{suffix}"
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
        try:
            return list(threads.map(one, [distinct[name] for name in sorted(distinct)]))
        except (KeyboardInterrupt, SystemExit):
            stop_workers()  # the threads wait for them
            raise


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
                "workers": [i for i, arg in enumerate(draft.args) if arg.kind == "worker"],
                "out": str(target),
            }
        )
    finally:
        _idle.put(worker)
    if not reply["ok"]:
        if _FULL.search(reply["error"]):
            raise _disk_full(str(target), reply["error"])
        raise RuntimeError(
            f"kernel {spec.name} ({spec.template}): {reply['error']}\n{reply.get('trace', '')}\n{spec.canonical[:4000]}"
        )
