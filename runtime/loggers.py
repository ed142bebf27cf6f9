"""Callbacks that write what happened: CSV, TensorBoard, a picture of the curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import MissingTool, NervureError
from .curves import svg
from .files import replacing
from .observer import Callback, Logs


class CSVLogger(Callback):
    """One line per epoch: its number, then the logged values by name. A resumed run goes on from its checkpoint."""

    kept = ("end",)

    def __init__(self, filename: str | Path, separator: str = ",", append: bool = False) -> None:
        self.filename, self.separator, self.append = Path(filename), separator, append
        self.end = 0  # bytes of the file that belong to this run
        self._file: IO[str] | None = None
        self._names: list[str] = []

    def on_train_begin(self, logs: Logs = None) -> None:
        self._file = None  # the file is touched with the first line only: a resumed run keeps what is there
        self.end = self.filename.stat().st_size if self.append and self.filename.exists() else 0
        self._names = []

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.trainer.world.rank:
            return
        file = self._file or self._open()
        self._names = self._names or ["epoch", *sorted(logs or {})]
        writer = csv.writer(file, delimiter=self.separator, lineterminator="\n")
        if not self.end:
            writer.writerow(self._names)
        values = {"epoch": epoch, **(logs or {})}
        writer.writerow([values.get(name, "NA") for name in self._names])
        file.flush()
        self.end = file.tell()

    def _open(self) -> IO[str]:
        try:
            self.filename.touch()
            file = self._file = self.filename.open("r+", newline="", encoding="utf-8")
        except OSError as error:
            raise NervureError("cannot write the log", where=str(self.filename), why=error.strerror) from error
        self._names = file.readline().rstrip("\n").split(self.separator) if self.end else []
        file.seek(0, os.SEEK_END)
        if file.tell() > self.end:
            file.truncate(self.end)
        self.end = file.seek(0, os.SEEK_END)
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard(Callback):
    """Logs for TensorBoard: runs ``train`` and ``validation`` under ``log_dir``.

    ``update_freq``: ``epoch``, or also the loss every so many steps. Needs ``tensorboardX``.
    """

    def __init__(self, log_dir: str | Path = "logs", update_freq: str | int = "epoch") -> None:
        self.log_dir, self.update_freq = Path(log_dir), update_freq
        self._writers: dict[str, Any] = {}

    def on_train_begin(self, logs: Logs = None) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise MissingTool(
                "writing logs for TensorBoard needs tensorboardX", hint="pip install 'nervure[tensorboard]'"
            ) from error

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if isinstance(self.update_freq, int) and self.trainer.step % self.update_freq == 0:
            for name, value in (logs or {}).items():
                self._write("train", f"batch_{name}", value, self.trainer.step)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        for name, value in (logs or {}).items():
            kind = "validation" if name.startswith("val_") else "train"
            self._write(kind, f"epoch_{name.removeprefix('val_')}", value, epoch)
        for writer in self._writers.values():
            writer.flush()

    def _write(self, run: str, tag: str, value: float, step: int) -> None:
        if self.trainer.world.rank:
            return
        if run not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[run] = SummaryWriter(str(self.log_dir / run), write_to_disk=True)
        self._writers[run].add_scalar(tag, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class CurvePlot(Callback):
    """A picture (SVG) of loss and metrics over the epochs, written anew after each."""

    kept = ("epochs", "series")

    def __init__(self, filename: str | Path = "curves.svg", title: str = "") -> None:
        self.filename, self.title = Path(filename), title
        self.epochs: list[int] = []
        self.series: dict[str, list[float]] = {}

    def on_train_begin(self, logs: Logs = None) -> None:
        self.epochs, self.series = [], {}

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.epochs.append(epoch + 1)
        for name, value in (logs or {}).items():
            self.series.setdefault(name, []).append(value)
        if self.trainer.world.rank == 0:
            save_curves(self.filename, self.series, self.epochs, self.title)


def save_curves(
    path: str | Path, history: Mapping[str, list[float]], epochs: list[int] | None = None, title: str = ""
) -> None:
    """Writes the curves of a history (``fit(...).history``) as SVG."""
    path = Path(path)
    try:
        with replacing(path) as file:
            file.write(svg(history, epochs, title).encode())
    except OSError as error:
        raise NervureError("cannot write the picture", where=str(path), why=error.strerror) from error
