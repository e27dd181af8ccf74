"""Damaged Timepix3 and CSR streams into the real receivers, over TCP, through the real data path."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from harness import MESSAGES, Camera, FuzzedEdge, Mutator

from nextem.edge.detectors import csr, receiving, timepix3
from nextem.edge.detectors.base import Detector, Sink
from nextem.edge.detectors.registry import parse_address
from nextem.edge.detectors.stream_socket import Backoff
from nextem.simulator import timepix3_words as words
from nextem.simulator.csr import CsrFormat
from nextem.simulator.timepix3 import Timepix3Camera, Timepix3Scan, record
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.clock import Clock

pytestmark = pytest.mark.timeout(300 + MESSAGES // 50)

PER_CONNECTION = 400  # mutated messages
HEAD_BYTES = 32
SCAN = Timepix3Scan((4, 8), dwell_ns=2000, flyback_ns=500)
CSR = CsrFormat((2, 6), (16, 12), frames_per_chunk=3)
KINDS = (
    CSR,
    replace(CSR, values="uint8", indices="uint16", padding=5),
    replace(CSR, values="u4bit", indptr="uint64", metadata={"a": [1, 2, 3]}),
    replace(CSR, values="uint64", indices="uint8", tot=True),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand connections, each of which would else wait a tenth of a second before it."""
    monkeypatch.setattr(receiving, "Backoff", partial(Backoff, 0.001, 0.01))


def edge_on(folder: Path, connect: Callable[..., Detector], address: str) -> FuzzedEdge:
    options = parse_address(address, ring_bytes=16 << 20, idle_timeout_s=2.0)

    def make(sink: Sink, clock: Clock) -> Detector:
        return connect(options, sink, clock)

    return FuzzedEdge(folder, make)


def check(edge: FuzzedEdge) -> None:
    """Every acquisition is accounted for, and what was handed over was stored."""
    edge.check()
    handed = sum(len(one.frames) for one in edge.watch.handed.values())
    stored = sum(one.frames_stored for one in edge.finished.values())
    assert stored == handed


def scan_chunks(rng: random.Random, scan: Timepix3Scan = SCAN) -> list[bytes]:
    """A short scan, one message for each chunk."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    frames = np.sort(numbers.integers(0, scan.shape[0] * scan.shape[1], 40))
    places = numbers.uniform(5, 250, (2, 40))
    start = rng.choice((1000, 2**34 - 30_000, 2**33, rng.randrange(2**34)))
    # Never later than the window of 20 us: a clean scan must have no late hit, in ten thousand of them.
    camera = Timepix3Camera(disorder_ns=2000, most_disorder_ns=15_000, chunk_ns=rng.choice((2000, 10_000)))
    made = record(camera, replace(scan, start_ticks=start), frames, places[0], places[1], numbers)
    parts = made.data.split(b"TPX3")[1:]
    return [b"TPX3" + part for part in parts]


def test_damaged_words_cost_no_frame_that_is_not_listed(tmp_path: Path) -> None:
    mutator = Mutator(seed=3)
    rng = mutator.random
    address = "tpx3://127.0.0.1:{}?scan=4x8&dwell_ns=2000&window_ns=20000"
    with Camera() as camera, edge_on(tmp_path, timepix3.connect, address.format(camera.port)) as edge:
        while mutator.mutated < MESSAGES:
            until = min(mutator.mutated + PER_CONNECTION, MESSAGES)
            sent = [rng.randbytes(rng.randrange(300))]
            while mutator.mutated < until:
                rate = rng.choice((0.05, 0.3, 1.0))
                sent += mutator.deal(scan_chunks(rng), rate=rate, head=HEAD_BYTES)
            camera.play(b"".join(sent), rng)
            edge.wait_for(lambda: edge.ended() == len(edge.watch.handed), "an acquisition did not end")
            before = edge.ended()
            camera.play(b"".join(scan_chunks(rng)), rng)
            edge.wait_for(lambda before=before: edge.ended() == before + 1, "the clean scan did not end")
            assert edge.newest().frames_stored == 32
            assert edge.newest().reason == pb.FINISH_REASON_COMPLETE
        check(edge)
        assert len(edge.finished) > MESSAGES // 100


def test_random_words_cost_no_frame_that_is_not_listed(tmp_path: Path) -> None:
    """Whole chunks of known kinds of words with random fields: times from anywhere, edges in any order."""
    rng = random.Random(5)
    numbers = np.random.default_rng(5)
    address = "tpx3://127.0.0.1:{}?scan=3x5&dwell_ns=100&chips=4&window_ns=1000&sync=pixel"
    tops = np.array([0xB, 0xB, 0xB, 0x6F >> 4, 0x4, 0xA, 0x5, 0x7], np.uint64)
    sent_words = 0
    with Camera() as camera, edge_on(tmp_path, timepix3.connect, address.format(camera.port)) as edge:
        while sent_words < 10 * MESSAGES:
            chunks = []
            for _ in range(40):
                made = numbers.integers(0, 2**60, 50, np.uint64)
                kinds = numbers.choice(tops, 50)
                made = made | kinds << np.uint64(60)
                close = numbers.random(50) < 0.7  # most of the times are close to each other
                near = words.hit_words(numbers.integers(0, 100_000, 50), 5, 5, 5)
                made = np.where(close, near, made)
                edge_word = words.edge_words(numbers.integers(0, 600_000, 50), numbers.integers(0, 9, 50))
                made = np.where(numbers.random(50) < 0.2, edge_word, made)
                chunks.append(words.chunk(made, int(numbers.integers(0, 6))))
                sent_words += 50
            camera.play(b"".join(chunks), rng)
        edge.wait_for(lambda: edge.ended() == len(edge.watch.handed), "an acquisition did not end")
        check(edge)
        assert edge.finished


def test_damaged_csr_costs_no_frame_that_is_not_listed(tmp_path: Path) -> None:
    mutator = Mutator(seed=4)
    rng = mutator.random
    with Camera() as camera, edge_on(tmp_path, csr.connect, f"csr://127.0.0.1:{camera.port}") as edge:
        while mutator.mutated < MESSAGES:
            # A header that cannot be understood ends the connection: a few messages for each.
            sent: list[bytes] = []
            rate = rng.choice((0.05, 0.2))
            until = mutator.mutated + 80
            while mutator.mutated < min(until, MESSAGES):
                form = rng.choice(KINDS)
                seed = rng.randrange(2**32)
                most = 1 if form.values == "u4bit" else 9
                frames = np.random.default_rng(seed).integers(0, most + 1, (12, 16, 12)).astype("u1")
                sent += mutator.deal(list(form.messages(frames, frames)), rate=rate, head=HEAD_BYTES)
            camera.play(b"".join(sent), rng)
            edge.wait_for(lambda: edge.ended() == len(edge.watch.handed), "an acquisition did not end")
        clean = np.ones((12, 16, 12), np.uint32)
        before = edge.ended()
        camera.play(b"".join(CSR.messages(clean)), rng)
        edge.wait_for(lambda: edge.ended() == before + 1, "the clean scan did not end")
        assert edge.newest().frames_stored == 12
        check(edge)
