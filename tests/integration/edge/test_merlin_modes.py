"""Every mode of a Merlin through the whole data path: what the log holds is what was encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp
from nextem.simulator.merlin_raw import encode_raw
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2

FRAMES = 40
MODES = [
    FrameFormat(64, depth, raw=raw) for depth in (1, 6, 12, 24) for raw in (False, True)
] + [FrameFormat(514, 12, "2x2G", raw=True)]  # fmt: skip


def images(mode: FrameFormat, lit: float) -> np.ndarray:
    rng = np.random.default_rng(mode.depth_bits)
    frames = FRAMES if mode.chips == 1 else 4
    shape = (frames, mode.size_px, mode.size_px)
    counts = rng.integers(1, mode.saturation + 1, shape) * (rng.random(shape) < lit)
    if mode.gap_px:
        counts[:, 256:258] = 0
        counts[:, :, 256:258] = 0
    return counts.astype(f"u{mode.pixel_bytes}")


def sent(mode: FrameFormat, frames: np.ndarray, first: int = 1) -> bytes:
    rows = np.zeros((len(frames), mode.message_bytes), np.uint8)
    FrameHeaders(mode, 0.001).write(rows, first, Stamp(3, 5, 10**18))
    pixels = encode_raw(frames, mode) if mode.raw else frames.astype(frames.dtype.newbyteorder(">"))
    rows[:, mode.pixels_at :] = pixels.view(np.uint8).reshape(len(frames), -1)
    return rows.tobytes()


@pytest.mark.parametrize("lit", [0.01, 0.6], ids=["sparse", "dense"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_arrives_pixel_by_pixel(rig: Any, kit: Any, mode: FrameFormat, lit: float) -> None:
    frames = images(mode, lit)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(len(frames)), "")
    rig.camera.send(kit.acquisition_header(len(frames)) + sent(mode, frames))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(frames)))
    assert logged.finished.frames_stored == len(frames)
    assert np.array_equal(logged.column("sum"), frames.sum(axis=(1, 2), dtype=np.uint64))
    assert (logged.column("epoch") == 3).all()


def test_electrons_are_counted_in_sparse_raw_frames_too(rig: Any, kit: Any) -> None:
    """Sparse raw frames come as events where they can; counting wants all pixels."""
    mode = FrameFormat(64, 12, raw=True)
    frames = images(mode, 0.01)
    counting = plan_pb2.Counting(threshold=1.5, xray_threshold=float("inf"))
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(FRAMES, counting=counting), "")
    rig.camera.send(kit.acquisition_header(FRAMES) + sent(mode, frames))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    padded = np.pad(frames.astype(int), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    around = np.stack(
        [padded[:, 1 + dy : 65 + dy, 1 + dx : 65 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    )
    inner = np.s_[:, 1:-1, 1:-1]  # what holds at the border is the counting's own business
    wanted = ((frames > 1.5) & (frames > around.max(axis=0)))[inner]
    counted = np.stack([rig.logged()["scan"].frames()[i] for i in range(FRAMES)])[inner]
    assert (counted.astype(bool) == wanted).mean() > 0.9999  # ties are counted by a rule of its own


def test_a_camera_that_runs_until_it_is_stopped_is_accounted_for(rig: Any, kit: Any) -> None:
    """Announced as 0; six digits that start again at 0 are carried on."""
    mode = FrameFormat(64, 6)
    frames = images(mode, 0.05)
    whole = bytearray(sent(mode, frames, first=999_990))
    for i in range(10, FRAMES):  # the camera's seventh digit is not sent
        at = i * mode.message_bytes
        header = bytes(whole[at : at + mode.pixels_at])
        six = header.replace(b"MQ1,%07d," % (999_990 + i), b"MQ1,%06d," % (i - 10))
        whole[at : at + mode.pixels_at] = six.ljust(mode.pixels_at, b"\0")
    pipeline = rig.start(idle_timeout_s=1.0)  # silence is its end
    handle = pipeline.expect("scan", kit.plan(1), "")
    rig.camera.send(kit.acquisition_header(0) + bytes(whole))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.frames_announced, finished.frames_stored) == (999_989 + FRAMES, FRAMES)
    assert finished.frames_lost == 999_989
    logged = rig.logged()["scan"]
    logged.check({999_989 + i: image for i, image in enumerate(frames)})
