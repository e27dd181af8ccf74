"""An edge that has started has compiled all that live frames need, on a machine that never ran it, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_S = 900  # a slow machine compiles everything first


@pytest.mark.timeout(MOST_S + 60)
def test_no_frame_waits_for_a_compiler() -> None:
    """Whatever the pixels, the way in which blocks go out, the plan and the receiver."""
    command = [sys.executable, str(Path(__file__).with_name("warmth.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) > 40
    assert [line for line in told if not line.endswith(": nothing")] == []
