"""Handing over a model and the page about it: both, or neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import NervureError


def check_files(output: Path, report: Path | None, what: str) -> None:
    """Says early what would only come out at the end; ``what`` is the model, ``a pruned model``."""
    if output.suffix != ".onnx":
        raise NervureError(f"{what} is an ONNX file", where=str(output), hint=f"-o {output.stem}.onnx")
    if report is not None and report.suffix not in (".html", ".htm"):
        raise NervureError(
            "the report is an HTML page", where=str(report), hint=f"--report {report.with_suffix('.html')}"
        )
    for path in (output, report):
        if path is not None and not path.parent.is_dir():
            raise NervureError("there is no such folder", where=str(path.parent))


def hand_over(save: Callable[[Path], object], output: Path, report: Path | None, render: Callable[[], str]) -> None:
    """Writes the model and the page; where the page cannot be made, a model that was not there before goes again."""
    from ...targets.files import write_atomic

    page = render().encode("utf-8", "replace") if report is not None else b""
    fresh = not output.exists()
    save(output)
    if report is not None:
        try:
            write_atomic(report, page)
        except BaseException:
            if fresh:
                output.unlink(missing_ok=True)
            raise
