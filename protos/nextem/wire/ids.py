"""Identifiers, made without coordination."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then randomness; sorts by time."""
    return _uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(origin: str, what: str) -> str:
    """An id in the form of a UUIDv7 that is always the same for the same arguments.

    Its time is that of ``origin``, a UUIDv7 (0 where that is no UUID), its other bits are a hash, so that it
    sorts beside the origin and a repeat is known as one.
    """
    try:
        stamp_ms = uuid.UUID(origin).int >> 80
    except ValueError:
        stamp_ms = 0
    return _uuid7(stamp_ms, hashlib.sha256(f"{origin}\n{what}".encode()).digest()[:10])


def _uuid7(stamp_ms: int, rest: bytes) -> str:
    value = (stamp_ms << 80) | int.from_bytes(rest, "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))
