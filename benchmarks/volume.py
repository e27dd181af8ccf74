"""What is sent for what comes in: bytes a frame of each code, against raw and against the entropy.

Frames are simulated: 256x256 uint16 of the polycrystal, one scan row after another, so that grains change
within a block. The bound is the entropy of such frames for somebody who knows each frame's expected pattern:
electrons are Poisson and independent, so it is the sum of the entropies of Poisson numbers with each pixel's
expectation. No lossless code can be shorter on average, and no real code knows the expectation.

Sizes are of whole encoded blocks with their header, columns (sum) and checksum. Times are of one thread,
medians, from event streams to the encoded block (from frames for the others); the codes alternate.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from table import Row, parser, report

from nextem.simulator.sampler import PixelFormat, build_tables, expected_frame, fill_frames
from nextem.simulator.specimen import open_specimen, scan_positions_nm
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.blocks import Block
from nextem.wire.events import frames_to_streams
from nextem.wire.packing import encode_run
from nextem.wire.representations import Pixels
from nextem.wire.zstd import pack_zstd

Array = npt.NDArray[Any]

SHAPE = (256, 256)
RAW_BYTES = SHAPE[0] * SHAPE[1] * 2
FRAMES = 256
DOSES_E = (100, 1_000, 10_000, 100_000)
DOSE_E = 1_000
SEED = 7
STEP_NM = 2.0
ROW = 128  # frames in a scan row
SAMPLED = 16  # every how manieth frame the entropy is computed of

SMALLEST_RAW_RATIO = 50
LARGEST_ENTROPY_RATIO = 1.3


def simulated(dose_e: float, count: int, first: int = 0) -> tuple[Array, float]:
    """Frames (count, y, x) from frame ``first`` of a scan on, and their mean entropy in bytes."""
    specimen = open_specimen("polycrystal", SEED)
    components = specimen.components(SHAPE[0])
    y, x = scan_positions_nm(256, ROW, 100.0, 100.0, STEP_NM)
    mixture = specimen.mixture(y[first : first + count], x[first : first + count])
    raw = np.zeros((count, RAW_BYTES), np.uint8)
    fill_frames(
        raw, 0, PixelFormat(2, 16), build_tables(components), mixture,
        dose_e=dose_e, seed=SEED, acquisition_key=1, first_frame=0,
    )  # fmt: skip
    patterns = components / components.sum((1, 2), keepdims=True, dtype=np.float64)
    rows = range(0, count, SAMPLED)
    entropy = np.mean([entropy_bytes(expected_frame(patterns, mixture, row, dose_e)) for row in rows])
    return raw.view(">u2").astype(np.uint16).reshape(-1, *SHAPE), float(entropy)


def entropy_bytes(expected: Array) -> float:
    """Sum over pixels of the entropy of a Poisson number of this expectation, in bytes."""
    rate = expected[expected > 0].ravel()
    log_rate, total, k = np.log(rate), 0.0, 0
    while k <= rate.max() + 12 * math.sqrt(rate.max()) + 30:
        log_p = k * log_rate - rate - math.lgamma(k + 1)
        total -= float((np.exp(log_p) * log_p).sum())
        k += 1
    return total / math.log(2) / 8


def codes() -> Mapping[str, Callable[[Block, Pixels, Array], int]]:
    """Bytes of a block's frames in each code: ours as encoded blocks, the others' bare payloads."""

    def block(policy: int) -> Callable[[Block, Pixels, Array], int]:
        return lambda head, pixels, _: sum(len(each.data) for each in encode_run(head, pixels, policy).blocks)

    return {
        "pattern code (policy compact)": block(plan_pb2.REPRESENTATION_POLICY_COMPACT),
        "event list (policy smallest)": block(plan_pb2.REPRESENTATION_POLICY_SMALLEST),
        "bitshuffle + LZ4": lambda _, __, frames: len(dense.pack_lz4(frames)),
        "bitshuffle + zstd 3": lambda _, __, frames: len(dense.pack_shuffled_zstd(frames, 3)),
        "zstd 1 of raw": lambda _, __, frames: len(pack_zstd(frames.tobytes(), 1)),
    }


def measured(frames: Array, repeats: int) -> dict[str, tuple[float, float]]:
    """Bytes and microseconds a frame of each code, which take turns."""
    count = len(frames)
    sums = frames.sum((1, 2), dtype=np.uint64)
    head = Block("volume", 0, 0, count, SHAPE, frames.dtype, scalars={"sum": sums})
    sizes: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in codes()}
    for _ in range(repeats + 1):
        for name, encode in codes().items():
            pixels = Pixels(streams=frames_to_streams(frames))
            start = time.perf_counter()
            sizes[name] = encode(head, pixels, frames) / count
            times[name].append((time.perf_counter() - start) / count * 1e6)
    return {name: (sizes[name], statistics.median(times[name][1:])) for name in sizes}


def rows_of(dose_e: int, frames: Array, entropy: float, repeats: int) -> list[Row]:
    rows = [Row(f"{dose_e:,} e: raw over entropy", RAW_BYTES / entropy, "", None, None)]
    for name, (size, micros) in measured(frames, repeats).items():
        rows.append(Row(f"{dose_e:,} e: {name}", size, "B/frame", "entropy", entropy))
        rows.append(Row(f"{dose_e:,} e: {name}, raw over sent", RAW_BYTES / size, ""))
        rows.append(Row(f"{dose_e:,} e: {name}, time", micros, "us/frame"))
    return rows


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=7, help="runs of each code; the median counts")
    arguments = options.parse_args()
    rows: list[Row] = []
    for dose_e in DOSES_E:
        frames, entropy = simulated(dose_e, FRAMES)
        rows += rows_of(dose_e, frames, entropy, arguments.repeats if dose_e <= DOSE_E else 2)
    for count in (16, 64):
        frames, entropy = simulated(DOSE_E, count)
        for name, (size, _) in list(measured(frames, 1).items())[:2]:
            rows.append(Row(f"{DOSE_E:,} e, blocks of {count}: {name}", size, "B/frame", "entropy", entropy))
    sent = next(row for row in rows if row.name == f"{DOSE_E:,} e: pattern code (policy compact)")
    assert sent.ratio is not None
    reached = sent.ratio <= LARGEST_ENTROPY_RATIO and RAW_BYTES / sent.value >= SMALLEST_RAW_RATIO
    report(f"Volume of {SHAPE[0]}x{SHAPE[1]} uint16 frames, blocks of {FRAMES}", rows, arguments.json)
    if not reached:
        print(f"NOT REACHED: sent/entropy <= {LARGEST_ENTROPY_RATIO}, raw/sent >= {SMALLEST_RAW_RATIO}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
