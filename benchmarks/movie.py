"""Movies of 256x256 pixels at 5 electrons a pixel: drift, key frames, speed; against the simulator's truth.

Averages of 8 frames. Drift: root mean square error of each axis. Key frames: recall and delay of particles
that appear, and alarms in scenes where nothing happens, as the frames between two (at least). Speed: one
thread, 512x512 pixels of 8 bit, binned by 4. ``--frames`` sets the length of the quiet scenes together.
"""

from __future__ import annotations

import time

import numpy as np
from table import Row, parser, report

from nextem.cli.console import screen
from nextem.edge.reduction.movie import MovieBlock, MovieReducer
from nextem.simulator.movie import MovieOptions, MovieScene, Nucleation
from nextem.v1 import plan_pb2

AVERAGE = 8
SCENE_FRAMES = 1600
U1 = np.dtype("u1")
DRIFT_MARK_PX, RECALL_MARK, DELAY_MARK, QUIET_MARK, SPEED_MARK = 0.1, 0.95, 20.0, 1e5, 1000.0


def reduced(scene: MovieScene) -> list[MovieBlock]:
    movie = plan_pb2.Movie(average_frames=AVERAGE, drift=True, key_frames=plan_pb2.KeyFrames())
    reducer = MovieReducer(movie, scene.options.shape, U1)
    blocks: list[MovieBlock] = []
    for first in range(0, scene.frames, 64):
        frames = np.stack([scene.frame(k) for k in range(first, min(first + 64, scene.frames))])
        blocks += reducer.add(first, frames, {}, np.zeros(len(frames), np.int64))
    return blocks + reducer.finish()


def alarms(blocks: list[MovieBlock]) -> list[int]:
    """The first frame after each average that raised one."""
    return [block.first_frame + block.count for block in blocks if block.columns["novelty"][0] > 8.0]


def quiet_rows(frames: int) -> list[Row]:
    """Scenes in which nothing happens."""
    found, squares, count = 0, np.zeros(2), 0
    for seed in range(max(1, frames // SCENE_FRAMES)):
        drift = ((0.01, -0.006), (0.03, 0.02), (-0.02, 0.025))[seed % 3]
        scene = MovieScene(MovieOptions(drift_px_per_frame=drift, walk_px=0.01, seed=seed), SCENE_FRAMES)
        blocks = reduced(scene)
        found += len(alarms(blocks))
        columns = [np.concatenate([b.columns[f"drift_{axis}_px"] for b in blocks]) for axis in "yx"]
        error = np.stack(columns, axis=1) - scene.drift_px
        squares += ((error - error[:AVERAGE].mean(axis=0)) ** 2).sum(axis=0)
        count += len(error)
        screen(stderr=True).print(f"quiet scene {seed}: {found} false alarms in {count:,} frames so far")
    y, x = np.sqrt(squares / count)
    return [
        Row("drift error, y", float(y), "px RMS", "mark", DRIFT_MARK_PX),
        Row("drift error, x", float(x), "px RMS", "mark", DRIFT_MARK_PX),
        Row("false alarms", found, f"in {count:,} frames"),
        Row("frames to a false alarm, at least", count / max(1, found), "frames", "mark", QUIET_MARK),
    ]


def event_rows(scenes: int) -> list[Row]:
    rng = np.random.default_rng(7)
    delays: list[int] = []
    planted = 0
    for seed in range(scenes):
        events = tuple(
            Nucleation(start + int(rng.integers(0, 40)), *rng.uniform(30, 226, 2), rng.uniform(5, 8))
            for start in range(200, SCENE_FRAMES - 100, 200)
        )
        options = MovieOptions(drift_px_per_frame=(0.01, -0.008), walk_px=0.01, nucleations=events, seed=seed)
        told = alarms(reduced(MovieScene(options, SCENE_FRAMES)))
        planted += len(events)
        for event in events:
            delays += [at - event.frame for at in told if 0 < at - event.frame <= 60][:1]
    return [
        Row("events found", len(delays) / planted, f"of {planted}", "mark", RECALL_MARK),
        Row("delay, median", float(np.median(delays)), "frames", "mark", DELAY_MARK),
        Row("delay, 95 %", float(np.percentile(delays, 95)), "frames", "mark", DELAY_MARK),
    ]


def speed_rows() -> list[Row]:
    frames = np.random.default_rng(0).poisson(5, (64, 512, 512)).astype(np.uint8)
    movie = plan_pb2.Movie(bin_px=4, average_frames=AVERAGE, drift=True, key_frames=plan_pb2.KeyFrames())
    reducer = MovieReducer(movie, (512, 512), U1)
    times = []
    for turn in range(9):
        start = time.perf_counter()
        reducer.add(turn * 64, frames, {}, np.zeros(64, np.int64))
        times.append(time.perf_counter() - start)
    return [Row("512² uint8, binned by 4", 64 / float(np.median(times)), "frames/s", "mark", SPEED_MARK)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--frames", type=int, default=16_000, help="of the quiet scenes together")
    options.add_argument("--scenes", type=int, default=6, help="with events")
    chosen = options.parse_args()
    rows = speed_rows() + event_rows(chosen.scenes) + quiet_rows(chosen.frames)
    report("Movies", rows, chosen.json)


if __name__ == "__main__":
    main()
