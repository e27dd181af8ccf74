"""From a camera's socket to the log: every frame once, exactly accounted for."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextem.edge.acquisition import AcquisitionBusy
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.log import ACQUISITIONS, FRAMES

Rig = Any
Kit = Any


def test_a_commanded_acquisition_arrives_complete(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(200)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(200), "command")
    rig.camera.send(kit.acquisition_header(200) + kit.stream(sent))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    assert (finished.frames_announced, finished.frames_stored, finished.frames_lost) == (200, 200, 0)
    assert finished.bytes_raw == sent.nbytes
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(sent)))
    assert logged.started.command_id == "command"
    assert (logged.started.shape_y, logged.started.shape_x, logged.started.dtype) == (32, 48, "uint16")
    assert logged.started.detector_header.startswith("HDR,")
    assert np.array_equal(logged.column("sum"), sent.sum(axis=(1, 2)))
    assert np.array_equal(logged.column("mask/all"), sent.sum(axis=(1, 2)))
    y = np.arange(32)[:, None]
    assert np.array_equal(logged.column("com_y"), (sent * y).sum(axis=(1, 2)) / sent.sum(axis=(1, 2)))
    assert "epoch" not in logged.blocks[0].scalars
    assert all(
        finished.first_byte_ns <= block.last_byte_ns <= finished.last_byte_ns for block in logged.blocks
    )
    assert finished == logged.finished


def test_events_and_blocks_are_in_order_on_the_log(rig: Rig, kit: Kit) -> None:
    """Started is there before any block, Finished after every block."""
    order = []
    append = rig.log.append

    def watch(topic: str, value: bytes, **how: Any) -> Any:
        order.append((topic, rig.log.real.append(topic, value, **how)))
        return order[-1][1]

    rig.log.append = watch
    pipeline = rig.start()
    for name in ("first", "second"):
        handle = pipeline.expect(name, kit.plan(40), "")
        rig.camera.send(kit.acquisition_header(40) + kit.stream(kit.sparse_frames(40)))
        assert handle.wait(kit.wait_s) is not None
    rig.stop()
    topics = [topic for topic, _ in order]
    blocks = topics.count(FRAMES)
    assert topics[0] == topics[-1] == ACQUISITIONS
    assert topics.count(ACQUISITIONS) == 4
    assert blocks >= 2
    middle = [i for i, topic in enumerate(topics) if topic == ACQUISITIONS]
    assert middle[1] + 1 == middle[2]
    rig.log.append = append


def test_blocks_are_spread_over_the_partitions(rig: Rig, kit: Kit) -> None:
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(64, block_bytes=1), "")
    sent = kit.sparse_frames(64)
    rig.camera.send(kit.acquisition_header(64) + kit.stream(sent[:16]))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 16)
    # From now on the size of an encoded frame is known, and none fits a block of one byte.
    rig.camera.send(kit.stream(sent[16:], 17))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    assert len(rig.logged()["scan"].blocks) >= 32
    reader = rig.log.real.consumer([FRAMES], None)
    assert {record.position.partition for record in reader.poll(500, 0.0)} == {0, 1, 2, 3}
    reader.close()


@pytest.mark.parametrize(("dtype", "density"), [("u1", 0.01), ("u4", 3.0), ("u8", 2.0), ("u2", 200.0)])
def test_every_pixel_type_and_density_arrives(rig: Rig, kit: Kit, dtype: str, density: float) -> None:
    sent = np.random.default_rng(1).poisson(density, (30, 16, 24)).astype(dtype)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(30), "")
    rig.camera.send(kit.acquisition_header(30) + kit.stream(sent))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert sum(finished.blocks_by_representation.values()) == finished.blocks
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_passive_edge_takes_what_somebody_starts_at_the_camera(rig: Rig, kit: Kit) -> None:
    finished: list[pb.AcquisitionFinished] = []
    template = kit.plan(0)
    rig.start(passive_plan=template, on_finished=finished.append)
    sent = kit.sparse_frames(20)
    rig.camera.send((kit.acquisition_header(20) + kit.stream(sent)) * 3)
    rig.stop_when(lambda: len(finished) == 3)
    logged = rig.logged()
    assert len(logged) == 3
    for one in logged.values():
        one.check(dict(enumerate(sent)))
        assert (one.started.plan.scan.size_y, one.started.plan.scan.size_x) == (1, 20)
        assert one.started.command_id == ""


def test_without_a_passive_plan_the_edge_refuses_and_drains(
    rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = rig.start()
    with caplog.at_level(logging.ERROR):
        rig.camera.send(kit.acquisition_header(30) + kit.stream(kit.sparse_frames(30)))
        rig.wait_for(lambda: pipeline.stats()["receiver"]["frames_unclaimed"] == 30)
    assert caplog.text.count("AcquisitionRefused") == 1
    handle = pipeline.expect("scan", kit.plan(3), "")
    rig.camera.send(kit.acquisition_header(3) + kit.stream(kit.sparse_frames(3)))
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.frames_stored == 3
    rig.stop()
    assert set(rig.logged()) == {"scan"}


def test_the_command_epoch_of_each_frame_is_a_column(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(12)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(12), "")
    data = b"".join(kit.frame_message(image, i + 1, epoch=5 + i // 4) for i, image in enumerate(sent))
    rig.camera.send(kit.acquisition_header(12) + data)
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(sent)))
    assert logged.column("epoch").tolist() == [5 + i // 4 for i in range(12)]
    assert logged.column("epoch").dtype == np.uint64


def test_continuous_mode_announces_what_came(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(25)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(0), "")
    rig.camera.send(kit.acquisition_header(0) + kit.stream(sent))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 25)
    handle.stop("enough")
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.frames_announced) == (pb.FINISH_REASON_STOPPED, 25)
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_stop_keeps_the_accounting_exact(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(10)
    pipeline = rig.start(idle_timeout_s=60.0)
    handle = pipeline.expect("scan", kit.plan(100), "")
    rig.camera.send(kit.acquisition_header(100) + kit.stream(sent))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 10)
    handle.stop("by command")
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.frames_stored, finished.frames_lost) == (
        pb.FINISH_REASON_STOPPED,
        10,
        90,
    )
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_only_one_acquisition_at_a_time(rig: Rig, kit: Kit) -> None:
    pipeline = rig.start()
    first = pipeline.expect("first", kit.plan(5), "")
    with pytest.raises(AcquisitionBusy, match="first"):
        pipeline.expect("second", kit.plan(5), "")
    first.stop("changed my mind")
    finished = first.wait(0.0)
    assert finished is not None
    assert (finished.reason, finished.frames_announced) == (pb.FINISH_REASON_STOPPED, 0)
    second = pipeline.expect("second", kit.plan(5), "")
    rig.camera.send(kit.acquisition_header(5) + kit.stream(kit.sparse_frames(5)))
    assert second.wait(kit.wait_s) is not None
    rig.stop()
    assert set(rig.logged()) == {"second"}


def test_the_camera_may_come_after_the_edge(rig: Rig, kit: Kit) -> None:
    port = rig.camera.port
    rig.camera.close()
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(5), "")
    rig.camera = type(rig.camera)(port)
    rig.camera.send(kit.acquisition_header(5) + kit.stream(kit.sparse_frames(5)))
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_COMPLETE


def real_stream(kit: Kit, data: bytes) -> tuple[bytes, np.ndarray]:
    """A MIB file as the camera would send it, and its payload rows."""
    offset = int(data[11:16])
    x, y = int(data[20:24]), int(data[25:29])
    size = offset + x * y * int(data[31:33]) // 8
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return kit.acquisition_header(len(rows)) + b"".join(kit.message(bytes(row)) for row in rows), rows


SPARSE = "merlin-sparse-hotpixel/002_merlin_test_roi_sig256x128_nav4x2_hot_pixel_52x_39y.mib"
PATTERNS = "merlin-testpattern-bitdepths/Merlin_Test_Data_9_Frames.zip"


def real_file(folder: Path, name: str) -> bytes:
    """A file, or a member of an archive: ``archive.zip/member``."""
    if ".zip/" not in name:
        return (folder / name).read_bytes()
    archive, _, member = name.rpartition("/")
    with zipfile.ZipFile(io.BytesIO((folder / archive).read_bytes())) as packed:
        (found,) = (n for n in packed.namelist() if n.endswith("/" + member))
        return packed.read(found)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("merlin-4dstem-4x2-6bit/001_4x2_6bit.mib", (256, 256), ">u1"),
        ("merlin-ued-diffraction/test.mib", (256, 256), ">u2"),
        (SPARSE, (128, 256), ">u2"),
        (f"{PATTERNS}/Quad_9_Frames_CounterDepth_24_Rows_256.mib", (512, 512), ">u4"),
        (f"{PATTERNS}/Quad_9_Frames_CounterDepth_12_Rows_256.mib", (512, 512), ">u2"),
    ],
)
def test_real_files_arrive_pixel_by_pixel(
    rig: Rig, kit: Kit, data_dir: Path, name: str, shape: tuple[int, int], dtype: str
) -> None:
    data = real_file(data_dir, name)
    sent, rows = real_stream(kit, data)
    wanted = np.ascontiguousarray(rows[:, int(data[11:16]) :]).view(dtype).reshape(-1, *shape)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(len(rows)), "")
    rig.camera.send(sent)
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(wanted.astype(wanted.dtype.newbyteorder("=")))))
    assert logged.finished.frames_stored == len(rows)
    assert np.array_equal(logged.column("sum"), wanted.sum(axis=(1, 2), dtype=np.uint64))


@pytest.mark.data
def test_raw_bits_of_a_quad_arrive_as_images(rig: Rig, kit: Kit, data_dir: Path) -> None:
    data = real_file(data_dir, f"{PATTERNS}/Quad_9_Frames_CounterDepth_1_Rows_256RAW.mib")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(9, -1)
    bits = np.unpackbits(rows[:, 768:].reshape(9, 256, 16, 8)[..., ::-1], axis=-1, bitorder="little")
    raw = bits.reshape(9, 256, 4, 256)
    half_turn = raw[:, ::-1, :, ::-1]
    upper = np.concatenate([raw[:, :, 3], raw[:, :, 2]], axis=2)
    lower = np.concatenate([half_turn[:, :, 1], half_turn[:, :, 0]], axis=2)
    wanted = np.concatenate([upper, lower], axis=1)
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(9), "")
    rig.camera.send(kit.acquisition_header(9) + b"".join(kit.message(bytes(row)) for row in rows))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    assert (logged.started.shape_y, logged.started.shape_x, logged.started.dtype) == (512, 512, "uint8")
    logged.check(dict(enumerate(wanted)))
