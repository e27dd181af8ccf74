"""What every part of the suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real measured files; tests that need it skip where there is none."""
    name = os.environ.get("NEXTEM_TEST_DATA", "")
    if not name or not Path(name).is_dir():
        pytest.skip("needs real measured files: set NEXTEM_TEST_DATA to their folder")
    return Path(name)
