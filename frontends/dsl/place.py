"""Where a user's line is: the innermost frame that is not nervure's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parents[2]
_OWN = tuple(str(_PACKAGE / folder) + os.sep for folder in ("frontends", "compiler", "targets", "runtime"))
_MARK = "_nervure_place"  # a frame of ours with this local stands for that place (Sequential: where a layer was made)


class Place(NamedTuple):
    """A line of the user's program."""

    file: str
    line: int

    @property
    def short(self) -> str:
        """``file.py:12``, the same in every folder: what goes into graphs."""
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def full(self) -> str:
        """The path as seen from the working folder: what errors show."""
        try:
            near = os.path.relpath(self.file)
        except ValueError:
            near = self.file
        return f"{self.file if near.startswith('..') else near}:{self.line}"


NOWHERE = Place("<nervure>", 0)


def _is_own(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith((*_OWN, "<frozen")) or os.path.dirname(file) == str(_PACKAGE)


def user_place() -> Place:
    """The line of the user's program that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _is_own(frame):
            return Place(frame.f_code.co_filename, frame.f_lineno)
        if _MARK in frame.f_code.co_varnames:
            return frame.f_locals.get(_MARK) or NOWHERE
        frame = frame.f_back
    return NOWHERE
