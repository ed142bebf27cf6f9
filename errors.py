"""The errors that nervure raises for a user's mistake, and nothing else raises them.

A message says what is wrong, where (DSL line or ONNX node), why, and what to do about it.
The command line prints it without a traceback; a bug is any other exception.
"""

from __future__ import annotations

from collections.abc import Sequence


class NervureError(Exception):
    """Something that the user can mend.

    ``what`` is one line of at most about 100 characters. ``where`` names the user's own place
    (a DSL file and line, an ONNX node, a path), ``why`` the reason and ``hint`` what to do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Sequence[str] | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = (where,) if isinstance(where, str) else tuple(where or ())
        self.why = why
        self.hint = hint
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.what]
        lines += [f"  at: {printable(place)}" for place in self.where[:8]]
        if len(self.where) > 8:
            lines.append(f"  at: ... and {len(self.where) - 8} more places")
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.hint:
            lines.append(f"  do: {self.hint}")
        return printable("\n".join(lines), newlines=True)


class MissingTool(NervureError):
    """A program or package that this machine lacks; ``hint`` is the command that brings it."""

    exit_code = 2


# package -> the extra that brings it; all others come with ``compile``
EXTRAS = {
    "onnxruntime": "verify",
    "safetensors": "train",
    "tensorboardX": "tensorboard",
    "mpi4py": "mpi",
    "flwr": "federated",
}


def missing_package(what: str, error: ModuleNotFoundError) -> MissingTool | ModuleNotFoundError:
    """The error to raise where ``what`` needs a package that is not installed; ``error`` itself if it is our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "nervure"):
        return error
    extra = EXTRAS.get(package, "compile")
    return MissingTool(f"{what} needs {package}, which is not installed", hint=f"pip install 'nervure[{extra}]'")


def printable(text: str, limit: int = 400, *, newlines: bool = False) -> str:
    """``text`` without control characters, cut to ``limit`` characters a line.

    Names come from model files and are hostile until escaped: terminal escapes, newlines and
    names of ten kilobytes end here.
    """
    if newlines:
        return "\n".join(printable(line, limit) for line in text.split("\n")[:200])
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."
