"""What a receiver counts. Written by its own thread only, read by anybody."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Since the receiver started."""

    connections: int = 0
    acquisitions: int = 0
    bytes_received: int = 0
    reads: int = 0
    batches: int = 0
    frames_received: int = 0
    frames_lost_ring: int = 0  # the ring was full
    frames_refused: int = 0  # twice, backwards, or beyond the announced number
    frames_unclaimed: int = 0  # of an acquisition that nobody wanted or that had failed
    frames_corrupt: int = 0  # lost because their message is not what it says
    images_other_channels: int = 0  # of a detector with several channels, those that are not taken
    garbage_bytes: int = 0
    busy_ns: int = 0  # processor time of the receiving thread
