"""Damaged Merlin streams into the real receiver, over TCP, through the real data path."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import MESSAGES, Camera, FuzzedEdge, Mutator

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.base import Sink
from nextem.edge.detectors.merlin_stream import MerlinOptions, MerlinStream
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.clock import Clock

pytestmark = pytest.mark.timeout(300 + MESSAGES // 100)

PREFIX_BYTES, HEADER_BYTES = 15, 384
PER_CONNECTION = 600  # mutated messages
CLEAN_FRAMES = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A pixel format: (width, height) as the header says, bytes of pixels, type, layout, chips, depth."""

    width: int
    height: int
    pixel_bytes: int
    pixel: str
    layout: str
    chips: int
    depth: int


KINDS = (
    Kind(16, 16, 256, "U08", "   1x1", 1, 6),
    Kind(16, 8, 256, "U16", "   1x1", 1, 12),
    Kind(8, 8, 256, "U32", "   1x1", 1, 24),
    Kind(64, 16, 128, "R64", "   1x1", 1, 1),
    Kind(16, 8, 256, "R64", "   1x1", 1, 12),
    Kind(32, 8, 512, "R64", "   1x1", 1, 24),
    Kind(1024, 1, 1024, "R64", "  2x2G", 4, 6),
)


def message(payload: bytes) -> bytes:
    return b"MPX,%010d," % (len(payload) + 1) + payload


def header(frames: int) -> bytes:
    text = f"HDR,\t\r\nFrames in Acquisition (Number):\t{frames}\r\nScanX:\t{frames}\r\nScanY:\t1\r\nEnd\t"
    return message(text.encode().ljust(256))


def frame(kind: Kind, number: int, pixels: bytes) -> bytes:
    head = f"MQ1,{number:06d},00384,{kind.chips:02d},{kind.width:04d},{kind.height:04d},{kind.pixel},"
    head += f"{kind.layout},01,2020-05-18 16:51:49.971626,0.001,0,0,0,1.2E+2,"
    head += f"MQ1A,2020-05-18T14:51:49.971626178Z,1000000ns,{kind.depth},NXTM,{number},7,"
    return message(head.encode().ljust(HEADER_BYTES) + pixels)


def acquisition(rng: random.Random, kinds: Sequence[Kind]) -> Iterator[bytes]:
    kind = rng.choice(kinds)
    frames = rng.randrange(1, 40)
    yield header(rng.choice((frames, frames, frames, 0)))
    for number in range(1, frames + 1):
        yield frame(kind, number, rng.randbytes(kind.pixel_bytes))


def play_clean(edge: FuzzedEdge, camera: Camera, rng: random.Random) -> None:
    """An acquisition without damage, after all that was damaged, arrives whole."""
    before = edge.ended()
    images = [rng.randbytes(256) for _ in range(CLEAN_FRAMES)]
    frames = [frame(KINDS[0], number, image) for number, image in enumerate(images, 1)]
    camera.play(header(CLEAN_FRAMES) + b"".join(frames), rng)
    edge.wait_for(lambda: edge.ended() == before + 1, "the clean acquisition did not end")
    finished = edge.newest()
    assert (finished.reason, finished.frames_stored) == (pb.FINISH_REASON_COMPLETE, CLEAN_FRAMES)
    total = np.frombuffer(b"".join(images), np.uint8).reshape(-1, 16, 16).sum(axis=0, dtype=np.uint64)
    assert np.array_equal(unpack_pattern(finished.summed_pattern, (16, 16)), total)


def test_damaged_streams_cost_no_frame_that_is_not_listed(tmp_path: Path) -> None:
    mutator = Mutator(seed=1)
    rng = mutator.random

    def connect(sink: Sink, clock: Clock) -> MerlinStream:
        options = MerlinOptions("127.0.0.1", camera.port, 16 << 20, idle_timeout_s=2.0)
        return MerlinStream(options, sink, clock)

    with Camera() as camera, FuzzedEdge(tmp_path, connect) as edge:
        while mutator.mutated < MESSAGES:
            until = min(mutator.mutated + PER_CONNECTION, MESSAGES)
            kinds = rng.sample(KINDS, 3)
            sent = [rng.randbytes(rng.randrange(3000))]  # stale bytes before the first header
            while mutator.mutated < until:
                rate = rng.choice((0.05, 0.3, 1.0))
                sent += mutator.deal(acquisition(rng, kinds), rate=rate, head=PREFIX_BYTES + HEADER_BYTES)
            camera.play(b"".join(sent), rng)
            edge.wait_for(lambda: edge.ended() == len(edge.watch.handed), "an acquisition did not end")
            play_clean(edge, camera, rng)
        edge.check()
        counters = edge.counters()
        handed = sum(len(one.frames) for one in edge.watch.handed.values())
        stored = sum(one.frames_stored for one in edge.finished.values())
        assert (
            counters["frames_received"] == handed + counters["frames_refused"] + counters["frames_lost_ring"]
        )
        assert stored == handed
        assert stored > MESSAGES // 4  # most of the damage left something to store
