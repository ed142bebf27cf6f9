"""Makes ``tests/models.py`` importable under pytest's importlib mode, in a checkout of any name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
