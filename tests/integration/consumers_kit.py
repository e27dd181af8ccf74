"""Waits for what the members of a group come to."""

from __future__ import annotations

import time
from collections.abc import Callable

from nextem.wire.log import Consumer, Record

PATIENCE_S = 30.0


def until(condition: Callable[[], bool], *consumers: Consumer) -> list[Record]:
    """Polls all of them until ``condition``; returns what they read meanwhile."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        for consumer in consumers:
            records += consumer.poll(timeout_s=0.02)
    return records
