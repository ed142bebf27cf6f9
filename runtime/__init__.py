"""Runs compiled models: needs numpy and the standard library, nothing else.

``load("model.so")`` opens one; ``read_artifact("model.so")`` tells what it is, on any machine, without running it.
"""

from .artifact import Artifact, read_artifact
from .session import Session, load

__all__ = ["Artifact", "Session", "load", "read_artifact"]
