"""Damaged DECTRIS streams of both versions into the real receiver, over ZeroMQ and through the data path."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from harness import MESSAGES, FuzzedEdge, Mutator
from numpy.typing import NDArray

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.base import HeaderError
from nextem.edge.detectors.dectris import connect, parse
from nextem.edge.detectors.registry import parse_address
from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import Series, Stream, StreamV1, StreamV2

pytestmark = pytest.mark.timeout(300 + MESSAGES // 100)

CLEAN_FRAMES = 57  # more than any damaged series has
ROUND = 600  # mutated messages between two clean series
HEAD_BYTES = 200


def series_of(number: int, shape: tuple[int, int], dtype: str, images: int, encoding: Encoding) -> Series:
    config = {"ntrigger": 1, "nimages": images, "trigger_mode": "exts", "threshold_energy": 1e4}
    return Series(number, shape, dtype, config | {"frame_time": 1e-3, "count_time": 1e-3}, encoding)


def frames_of(rng: random.Random, shape: tuple[int, int], dtype: str, count: int) -> NDArray[Any]:
    mean = rng.choice((0.02, 1.0, 100.0))
    return np.random.default_rng(rng.randrange(1 << 30)).poisson(mean, (count, *shape)).astype(dtype)


def stream_of(series: Series, frames: NDArray[Any], rng: random.Random) -> list[list[bytes]]:
    stream: Stream = rng.choice((StreamV1, StreamV2))(series)
    return [*stream.start(), *(stream.image(i, [frame]) for i, frame in enumerate(frames)), stream.end()]


def random_stream(rng: random.Random, number: int) -> list[list[bytes]]:
    shape, dtype = (rng.randrange(1, 40), rng.randrange(1, 40)), rng.choice(("uint8", "uint16", "uint32"))
    frames = frames_of(rng, shape, dtype, rng.randrange(1, 40))
    encoding = Encoding(rng.choice(("bslz4", "bslz4", "lz4", "none")), zero_header=rng.random() < 0.3)
    return stream_of(series_of(number, shape, dtype, len(frames), encoding), frames, rng)


def damaged(messages: Sequence[list[bytes]], mutator: Mutator, rate: float) -> list[list[bytes]]:
    """Parts of messages damaged, left out or doubled, and messages dealt anew."""
    rng = mutator.random
    dealt: list[list[bytes]] = []
    for parts in messages:
        if rng.random() >= rate:
            dealt.append(parts)
            continue
        way = rng.randrange(12)
        if way < 8:
            at = rng.randrange(len(parts))
            dealt.append([*parts[:at], mutator.mutate(parts[at], HEAD_BYTES), *parts[at + 1 :]])
            continue
        mutator.mutated += 1
        if way == 8:
            at = rng.randrange(len(parts))
            dealt.append([*parts[:at], *parts[at + 1 :]] or [b""])
        elif way == 9:
            dealt += [parts, parts]
        elif way == 10 and dealt:
            dealt.insert(len(dealt) - 1, parts)
    return dealt


class Pusher:
    """The detector's socket."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def send(self, messages: Sequence[list[bytes]]) -> None:
        for parts in messages:
            self._socket.send_multipart(parts)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def play_clean(edge: FuzzedEdge, pusher: Pusher, rng: random.Random, number: int) -> None:
    """A series without damage, after all that was damaged, arrives whole."""
    frames = frames_of(rng, (16, 24), "uint16", CLEAN_FRAMES)
    messages = stream_of(series_of(number, (16, 24), "uint16", CLEAN_FRAMES, Encoding()), frames, rng)
    # Without images first: when it has ended, the ring has been emptied of everything before it.
    for part, stored in ((messages[: -1 - CLEAN_FRAMES] + messages[-1:], 0), (messages, CLEAN_FRAMES)):
        pusher.send(part)
        wanted = (CLEAN_FRAMES, stored)
        edge.wait_for(lambda wanted=wanted: counts(edge) == wanted, f"{wanted} frames did not come")
    total = frames.sum(axis=0, dtype=np.uint64)
    assert np.array_equal(unpack_pattern(edge.newest().summed_pattern, (16, 24)), total)


def counts(edge: FuzzedEdge) -> tuple[int, int]:
    """Frames announced and stored of the series that ended last."""
    if edge.ended() == 0:
        return 0, 0
    return edge.newest().frames_announced, edge.newest().frames_stored


def test_damaged_streams_cost_no_frame_that_is_not_listed(tmp_path: Path) -> None:
    pusher, mutator = Pusher(), Mutator(seed=4)
    rng, number = mutator.random, 1
    address = parse_address(f"dectris://127.0.0.1:{pusher.port}", ring_bytes=64 << 20, idle_timeout_s=2.0)
    with FuzzedEdge(tmp_path, lambda sink, clock: connect(address, sink, clock)) as edge:
        while mutator.mutated < MESSAGES:
            goal = mutator.mutated + ROUND
            while mutator.mutated < goal:
                number += 1
                pusher.send(damaged(random_stream(rng, number), mutator, rng.choice((0.1, 0.5, 1.0))))
            number += 1
            play_clean(edge, pusher, rng, number)
        edge.check()
        pusher.close()


def test_damaged_messages_are_parsed_or_refused() -> None:
    """The parsers alone."""
    mutator = Mutator(seed=5)
    rng = mutator.random
    refused = 0
    while mutator.mutated < MESSAGES:
        for parts in random_stream(rng, rng.randrange(1 << 20)):
            at = rng.randrange(len(parts))
            try:
                parse([*parts[:at], mutator.mutate(parts[at], HEAD_BYTES), *parts[at + 1 :]])
            except HeaderError:
                refused += 1
    assert 0 < refused < mutator.mutated
