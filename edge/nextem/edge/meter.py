"""Bytes a second, of late."""

from __future__ import annotations

from threading import Lock

WINDOW_NS = 500_000_000


class Meter:
    """Counts over windows of half a second; the rate is that of the last whole one. Thread-safe."""

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._lock = Lock()
        self._since_ns: int | None = None
        self._bytes, self._rate = 0, 0.0

    def add(self, count: int, now_ns: int) -> None:
        with self._lock:
            self._roll(now_ns)
            self._bytes += count

    def rate(self, now_ns: int) -> float:
        """Bytes a second; 0 before the first window is over."""
        with self._lock:
            self._roll(now_ns)
            return self._rate

    def _roll(self, now_ns: int) -> None:
        if self._since_ns is None:
            self._since_ns = now_ns
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= self._window_ns:
            self._rate = self._bytes / elapsed_ns * 1e9
            self._since_ns, self._bytes = now_ns, 0
