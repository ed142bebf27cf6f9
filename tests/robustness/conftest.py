"""Makes ``builders`` importable for the robustness tests, and keeps them away from the user's cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the whole folder: the C library stubs of the linker are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NERVURE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
