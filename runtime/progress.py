"""What ``fit`` shows: a bar with rich on a terminal, else plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from ..errors import NervureError

INTERVAL = 0.1  # seconds between two drawings


def text(logs: Mapping[str, float]) -> str:
    """Logged values in one line."""
    return " - ".join(f"{name}: {value:.4g}" for name, value in logs.items())


class Progress:
    """Says nothing. ``due`` is the time from which ``step`` wants to be called again."""

    due = float("inf")

    def begin(self, epoch: int, steps: int | None) -> None:
        """An epoch begins."""

    def step(self, done: int, logs: Mapping[str, float]) -> None:
        """Steps of this epoch are done."""

    def end(self, epoch: int, logs: Mapping[str, float]) -> None:
        """An epoch is over."""

    def close(self) -> None:
        """However the training ends."""


class Lines(Progress):
    """A line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.start = epochs, 0.0

    def begin(self, epoch: int, steps: int | None) -> None:
        self.start = time.perf_counter()

    def end(self, epoch: int, logs: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self.start
        print(f"epoch {epoch + 1}/{self.epochs} - {seconds:.1f} s - {text(logs)}", flush=True)


class Plain(Lines):
    """A line that is written over, for terminals without rich."""

    def begin(self, epoch: int, steps: int | None) -> None:
        super().begin(epoch, steps)
        self.steps, self.epoch, self.due = steps, epoch, self.start + INTERVAL

    def step(self, done: int, logs: Mapping[str, float]) -> None:
        self.due = time.perf_counter() + INTERVAL
        whole = f"/{self.steps}" if self.steps else ""
        print(f"\r\x1b[Kepoch {self.epoch + 1}/{self.epochs} {done}{whole} - {text(logs)}", end="", flush=True)

    def end(self, epoch: int, logs: Mapping[str, float]) -> None:
        print("\r\x1b[K", end="")
        super().end(epoch, logs)


class Bar(Lines):
    """rich's bar for each epoch, replaced by a line when it is over."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs)
        self._bar: Any = None

    def begin(self, epoch: int, steps: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().begin(epoch, steps)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[logs]}", markup=False),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(f"epoch {epoch + 1}/{self.epochs}", total=steps, logs="")
        self._bar.start()
        self.due = self.start + INTERVAL

    def step(self, done: int, logs: Mapping[str, float]) -> None:
        self.due = time.perf_counter() + INTERVAL
        self._bar.update(self._task, completed=done, logs=text(logs), refresh=True)

    def end(self, epoch: int, logs: Mapping[str, float]) -> None:
        self.close()
        super().end(epoch, logs)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress(verbose: int | str, epochs: int) -> Progress:
    """0: nothing, 1 (``auto``): a bar where the output is a terminal, 2: a line for each epoch."""
    if verbose not in (0, 1, 2, "auto"):
        raise NervureError(f"verbose is {verbose!r}", hint="it is 0, 1, 2 or 'auto'")
    if verbose == 0:
        return Progress()
    if verbose == 2 or not sys.stdout.isatty():
        return Lines(epochs)
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return Plain(epochs)
    return Bar(epochs)
