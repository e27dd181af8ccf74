"""The kernels of the data path, one thread: reduction, event list, dense codec. Best of many runs.

Frames are 256x256 uint16, big-endian, at an odd offset in a message, as Merlin sends them. "sparse" is a
pattern of diffraction disks with 1000 electrons a frame, "uniform" the same electrons spread evenly (worst
for an event list), "bright" 5 counts in every pixel. The peer is plain numpy, or the other codec.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from table import Row, parser, report

from nextem.edge.reduction import PixelFormat, compile_reduction, mask_pixels
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.blocks import EVENTS, Block, decode_block
from nextem.wire.events import encode_events
from nextem.wire.packing import encode_run
from nextem.wire.representations import Pixels, fill

Array = npt.NDArray[Any]

SHAPE = (256, 256)
PIXELS = SHAPE[0] * SHAPE[1]
FRAMES = 32
OFFSET = 15 + 384
MARK_US = 15.0


def best_us(work: Callable[[], object], repeats: int = 30) -> float:
    """Shortest time of one run, microseconds: what the machine can do, with others kept out."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def patterns(seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disks = np.full(SHAPE, 0.01) + 10.0 * (np.hypot(y - 128, x - 128) < 10)
    for center_y, center_x in rng.uniform(20, 236, (40, 2)):
        disks += rng.exponential() * (np.hypot(y - center_y, x - center_x) < 8)
    return {
        "sparse": rng.poisson(disks * (1000 / disks.sum()), (FRAMES, *SHAPE)).astype(np.uint16),
        "uniform": rng.poisson(1000 / PIXELS, (FRAMES, *SHAPE)).astype(np.uint16),
        "bright": rng.poisson(5, (FRAMES, *SHAPE)).astype(np.uint16),
    }


def masks(count: int) -> list[plan_pb2.Mask]:
    """Three annuli round the middle, or a grid of small disks."""
    if count == 3:
        edges = (0.0, 20.0, 60.0, -1.0)
        return [
            plan_pb2.Mask(
                name=f"m{k}", center_y_px=128, center_x_px=128, inner_px=edges[k], outer_px=edges[k + 1]
            )
            for k in range(3)
        ]
    return [
        plan_pb2.Mask(name=f"m{k}", center_y_px=20 + k // 10 * 22, center_x_px=20 + k % 10 * 22, outer_px=9)
        for k in range(count)
    ]


def numpy_us(raw: Array, wanted: list[plan_pb2.Mask]) -> float:
    """The same figures, without event list, by plain numpy."""
    stack = np.array([mask_pixels(mask, SHAPE).ravel() for mask in wanted], np.float64).T
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices(SHAPE))
    weights = np.column_stack([stack, np.ones(PIXELS), y, x])
    pattern = np.zeros(PIXELS, np.uint64)

    def work() -> Array:
        frames = raw[:, OFFSET:].copy().view(">u2").astype(np.float64)
        np.add(pattern, frames.sum(0).astype(np.uint64), out=pattern)
        product: Array = frames @ weights
        return product

    return best_us(work, repeats=5) / FRAMES


def reduction_rows(frames: dict[str, Array]) -> list[Row]:
    rows = []
    for count in (3, 100):
        wanted = masks(count)
        reduction = plan_pb2.Reduction(masks=wanted, center_of_mass=True)
        reducer = compile_reduction(reduction, SHAPE, PixelFormat(2), FRAMES)
        for name, pixels in frames.items():
            raw = np.zeros((FRAMES, OFFSET + 2 * PIXELS), np.uint8)
            raw[:, OFFSET:] = pixels.astype(">u2").reshape(FRAMES, -1).view(np.uint8)
            reducer.reset()
            reducer.reduce(raw, OFFSET)  # decides the way of those that follow
            us = best_us(lambda raw=raw, reducer=reducer: reducer.reduce(raw, OFFSET)) / FRAMES
            label = f"reduce {name}, {count} masks"
            mark = ("mark", MARK_US) if name != "bright" else ("numpy", numpy_us(raw, wanted))
            rows += [Row(label, us, "us/frame", *mark), Row(label, us * 1e3 / PIXELS, "ns/pixel")]
    return rows


def codec_rows(frames: dict[str, Array]) -> list[Row]:
    rows = []
    for name, pixels in frames.items():
        head = Block("benchmark", 0, 0, FRAMES, SHAPE, pixels.dtype)
        block = fill(head, pixels, EVENTS)
        streams = Pixels(streams=Pixels(frames=pixels).streams)
        packed = dense.pack_lz4(pixels)
        times = {
            "event list from streams": best_us(lambda streams=streams: encode_events(streams.streams)),
            "event list to CSR": best_us(block.events),
            "event list to frames": best_us(block.frames),
        }
        peers = {
            "event list from streams": best_us(lambda pixels=pixels: dense.pack_lz4(pixels)),
            "event list to frames": best_us(
                lambda packed=packed, pixels=pixels: dense.unpack_lz4(packed, pixels.shape, pixels.dtype)
            ),
        }
        for figure, us in times.items():
            peer = ("bitshuffle + LZ4", peers[figure] / FRAMES) if figure in peers else (None, None)
            rows.append(Row(f"{figure}, {name}", us / FRAMES, "us/frame", *peer))
        size = len(block.payload) / FRAMES
        rows.append(Row(f"event list, {name}", size, "bytes/frame", "bitshuffle + LZ4", len(packed) / FRAMES))
        run = encode_run(head, streams)
        rows.append(
            Row(f"block as sent, {name}", sum(len(b.data) for b in run.blocks) / FRAMES, "bytes/frame")
        )
        data = run.blocks[0].data
        count = run.blocks[0].block.count
        rows.append(
            Row(f"block decoded, {name}", best_us(lambda d=data: decode_block(d)) / count, "us/frame")
        )
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    frames = patterns()
    rows = [*reduction_rows(frames), *codec_rows(frames)]
    report("kernels, 256x256 uint16, one thread", rows, options.json)


if __name__ == "__main__":
    main()
