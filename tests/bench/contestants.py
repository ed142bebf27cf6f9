"""What benches beside peers share: contestants in processes of their own that take rounds in turns."""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Contestant:
    """A process that waits between its rounds. It answers each line with one that begins with ``@``."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_ERRORS") else None,
            text=True,
        )
        self.facts = self._answer()  # of the set-up, None when it failed
        self.rounds: list[float] = []  # seconds of a call

    def _answer(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        return None

    def ask(self, what: str) -> Any:
        """The answer to one line."""
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Holds a file's lock, where benches share a machine."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median of the rounds' ratios; above 1 ours is faster."""
    return statistics.median(p / o for p, o in zip(theirs, ours, strict=True))
