"""Writes files of every format that the edge plays, and plays them into a sink that keeps all frames."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bitshuffle
import h5py
import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import Announcement, BlockLimits, Claim, Detector, Ending, FrameBatch
from nextem.edge.detectors.registry import connect, parse_address
from nextem.wire.clock import MonotonicClock
from nextem.wire.events import Events

Frames = NDArray[Any]
WAIT_S = 30.0


@dataclass(slots=True)
class Taker:
    """A sink and claim. Reads each batch at once; with ``hold`` batches are kept and not given back."""

    hold: bool = False
    max_frames: int = 64
    waiting: float = 0.0
    announcement: Announcement | None = None
    ending: Ending | None = None
    images: dict[int, Frames] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    held: list[FrameBatch] = field(default_factory=list)
    reason: str | None = None
    news: threading.Condition = field(default_factory=threading.Condition)
    acquisition_id: str = "taker"

    @property
    def limits(self) -> BlockLimits:
        return BlockLimits(256 << 10, 5_000_000, lambda: 0.0, self.max_frames)

    def hungry(self) -> bool:
        return True

    def backlog(self) -> float:
        return self.waiting

    def stop_reason(self) -> str | None:
        return self.reason

    def open(self, announcement: Announcement) -> Claim | None:
        assert self.announcement is None
        self.announcement = announcement
        return self

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        assert self.ending is None
        if self.hold:
            with self.news:
                self.held.append(batch)
                self.news.notify_all()
            return
        self.read(batch)

    def read(self, batch: FrameBatch) -> None:
        """Decodes the frames of a batch and gives it back."""
        for run in batch.runs:
            assert run.last_byte_ns.shape == (run.count,)
            read = batch.read(run)
            for i, image in enumerate(images_of(read, batch, run.count)):
                assert run.first_frame + i not in self.images
                self.images[run.first_frame + i] = image
                if run.epoch is not None:
                    self.epochs[run.first_frame + i] = int(run.epoch[i])
        batch.release()

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        assert self.ending is None
        with self.news:
            self.ending = ending
            self.news.notify_all()

    def broken(self, error: Exception) -> None:
        raise AssertionError("the player died") from error

    def wait_for_end(self) -> Ending:
        with self.news:
            assert self.news.wait_for(lambda: self.ending is not None, WAIT_S), "it does not end"
        assert self.ending is not None
        return self.ending

    def stack(self) -> Frames:
        """All frames, when none is missing."""
        assert sorted(self.images) == list(range(len(self.images)))
        return np.stack([self.images[i] for i in range(len(self.images))])


def images_of(read: NDArray[np.uint8] | Events, batch: FrameBatch, count: int) -> Frames:
    """``(count, y, x)``, native, from what a batch gives."""
    form = batch.format
    if isinstance(read, Events):
        assert len(read) == count
        return read.to_frames(form.shape)
    order = ">" if form.big_endian else "<"
    words = np.ascontiguousarray(read).view(form.dtype.newbyteorder(order))
    return words.reshape(count, *form.shape).astype(form.dtype)


def address(path: Path, **parameters: object) -> str:
    """The detector address of a file."""
    query = "?" + urlencode(parameters) if parameters else ""
    return path.absolute().as_uri() + query


def detector(taker: Taker, path: Path, ring_bytes: int = 64 << 20, **parameters: object) -> Detector:
    """A player that is not started."""
    options = parse_address(address(path, **parameters), ring_bytes=ring_bytes)
    return connect(options, taker, MonotonicClock())


def play(path: Path, **parameters: object) -> Taker:
    """Plays a file to its end."""
    taker = Taker()
    player = detector(taker, path, **parameters)
    player.start()
    taker.wait_for_end()
    player.close()
    return taker


def sparse(count: int, shape: tuple[int, int] = (24, 40), dtype: str = "u2", seed: int = 0) -> Frames:
    return np.random.default_rng(seed).poisson(0.2, (count, *shape)).astype(dtype)


def mib_message(image: Frames, number: int, epoch: int | None = None, offset: int = 384) -> bytes:
    y, x = image.shape
    head = f"MQ1,{number:06d},{offset:05d},01,{x:04d},{y:04d},U{8 * image.dtype.itemsize:02d},   1x1,01,"
    head += "2020-05-18 16:51:49.971626,0.001,0,0,0,1.2E+2,MQ1A,2020-05-18T14:51:49.971626178Z,1000000ns,12,"
    if epoch is not None:
        head += f"NXTM,{epoch},1000,"
    return head.encode().ljust(offset) + image.astype(image.dtype.newbyteorder(">")).tobytes()


def write_mib(path: Path, frames: Frames, first: int = 1, header_frames: int | None = None) -> Path:
    path.write_bytes(b"".join(mib_message(image, first + i) for i, image in enumerate(frames)))
    if header_frames is not None:
        text = (
            f"HDR,\t\r\nFrames in Acquisition (Number):\t{header_frames}\r\nScanX:\t4\r\nScanY:\t2\r\nEnd\t"
        )
        path.with_suffix(".hdr").write_text(text.ljust(2044))
    return path


def mrc_header(
    shape: Sequence[int], mode: int, order: str = "<", extended: int = 0, stamp: bool = True, imod: int = -1
) -> bytes:
    """``shape`` is (z, y, x); ``imod`` the flags behind IMOD's stamp, -1: no stamp."""
    head = bytearray(1024)
    struct.pack_into(order + "4i", head, 0, shape[2], shape[1], shape[0], mode)
    struct.pack_into(order + "i", head, 92, extended)
    if imod >= 0:
        struct.pack_into(order + "2i", head, 152, 1146047817, imod)
    head[208:212] = b"MAP "
    if stamp:
        head[212:214] = b"\x44\x44" if order == "<" else b"\x11\x11"
    return bytes(head)


def write_empad(path: Path, frames: Frames) -> Path:
    """Frames (n, 128, 128); the two rows behind each hold what must not be read."""
    raw = np.full((len(frames), 130, 128), np.nan, dtype="<f4")
    raw[:, :128] = frames
    path.write_bytes(raw.tobytes())
    return path


def pack_bitshuffle(image: Frames) -> bytes:
    """One chunk as HDF5's filter 32008 has it."""
    packed = bitshuffle.compress_lz4(image, 8192 // image.dtype.itemsize)
    return struct.pack(">QI", image.nbytes, 8192) + bytes(packed)


def pack_lz4(image: Frames) -> bytes:
    """One chunk as filter 32004 has it, by blocks that are stored as they are."""
    data, block = image.tobytes(), 4096
    parts = [data[at : at + block] for at in range(0, len(data), block)]
    return struct.pack(">QI", len(data), block) + b"".join(struct.pack(">I", len(p)) + p for p in parts)


def write_array(
    group: h5py.Group, name: str, frames: Frames, packing: str, missing: Sequence[int] = ()
) -> h5py.Dataset:
    """``packing``: "bslz4", "lz4", "gzip" or "none"; ``missing`` frames are never written."""
    if packing in ("gzip", "none"):
        chunks = (3, *frames.shape[1:]) if packing == "gzip" else None
        compression = "gzip" if packing == "gzip" else None
        return group.create_dataset(name, data=frames, chunks=chunks, compression=compression)
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1, *frames.shape[1:]))
    code = 32008 if packing == "bslz4" else 32004
    parameters: tuple[int, ...] = (0, 2) if packing == "bslz4" else (0,)
    if packing == "bslz4" and not h5py.h5z.filter_avail(code):
        parameters = (0, 3, frames.dtype.itemsize, *parameters)  # what the filter itself puts before them
    created.set_filter(code, h5py.h5z.FLAG_OPTIONAL, parameters)
    space = h5py.h5s.create_simple(frames.shape)
    kind = h5py.h5t.py_create(frames.dtype, logical=True)
    made = h5py.h5d.create(group.id, name.encode(), kind, space, created)
    pack = pack_bitshuffle if packing == "bslz4" else pack_lz4
    for i, image in enumerate(frames):
        if i not in missing:
            made.write_direct_chunk((i, 0, 0), pack(np.ascontiguousarray(image)))
    return h5py.Dataset(made)


def write_nxmx(
    folder: Path,
    files: Sequence[Frames],
    packing: str = "bslz4",
    stated: tuple[int, int] | None = None,
    missing: Sequence[int] = (),
) -> Path:
    """Master and data files as DECTRIS' file writer leaves them; returns the master. ``stated``: images,
    triggers."""
    master = folder / "scan_master.h5"
    first = 1
    with h5py.File(master, "w") as file:
        data = file.create_group("entry/data")
        specific = file.create_group("entry/instrument/detector/detectorSpecific")
        total = sum(len(frames) for frames in files)
        specific["nimages"], specific["ntrigger"] = stated or (1, total)
        file["entry/instrument/detector/description"] = np.bytes_(b"ARINA")
        for i, frames in enumerate(files, start=1):
            name = f"scan_data_{i:06d}.h5"
            with h5py.File(folder / name, "w") as part:
                array = write_array(part.create_group("entry/data"), "data", frames, packing, missing)
                array.attrs["image_nr_low"], array.attrs["image_nr_high"] = first, first + len(frames) - 1
            data[f"data_{i:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
            first += len(frames)
    return master


def damage_chunk(path: Path, frame: int) -> None:
    """Makes the first packed block of one frame's chunk longer than the chunk."""
    with h5py.File(path) as file:
        place = file["entry/data/data"].id.get_chunk_info(frame)
    data = bytearray(path.read_bytes())
    data[place.byte_offset + 12 : place.byte_offset + 16] = b"\xff" * 4
    path.write_bytes(data)


def write_stempy(
    path: Path,
    lists: Sequence[Sequence[int]],
    positions: Sequence[int],
    scan: tuple[int, int],
    shape: tuple[int, int],
    version: int | None,
) -> Path:
    """As stempy does: attributes of the frames are rows and columns, of the scan columns and rows."""
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["version"] = version
        group = file.create_group("electron_events")
        told = group.create_dataset("scan_positions", data=np.array(positions, dtype=np.int64))
        told.attrs["Nx"], told.attrs["Ny"] = scan[1], scan[0]
        kind = h5py.special_dtype(vlen=np.uint32)
        frames = group.create_dataset("frames", (len(lists),), dtype=kind)
        frames.attrs["Nx"], frames.attrs["Ny"] = shape
        for i, indices in enumerate(lists):
            frames[i] = np.array(indices, dtype=np.uint32)
    return path


def counted(lists: Mapping[int, Sequence[Sequence[int]]], count: int, shape: tuple[int, int]) -> Frames:
    """What lists by position mean, by plain numpy."""
    frames = np.zeros((count, shape[0] * shape[1]), dtype=np.uint16)
    for position, of_position in lists.items():
        for indices in of_position:
            np.add.at(frames[position], np.array(indices, dtype=np.int64), 1)
    return frames.reshape(count, *shape)
