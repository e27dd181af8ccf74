"""How a process shares its interpreter, and that it is left as it was."""

from __future__ import annotations

import gc
import sys

from nextem.wire.threads import TURN_S, short_turns, spared_collector


def test_turns_are_short_within_and_as_before_after() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        assert abs(sys.getswitchinterval() - TURN_S) < 1e-6
    assert sys.getswitchinterval() == before


def test_what_is_loaded_is_spared_within_and_collected_after() -> None:
    class Node:
        """Refers to itself."""

        def __init__(self) -> None:
            self.me = self

    assert gc.get_freeze_count() == 0
    with spared_collector():
        assert gc.get_freeze_count() > 0
        Node()
        assert gc.collect() > 0  # what came later is still collected
    assert gc.get_freeze_count() == 0
