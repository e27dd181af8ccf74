"""The structure of a MIB file: Merlin frame messages one after another, without the stream's prefix.

Source: the file layout of Quantum Detectors' Merlin (MQ1 frame headers). A text file of the same name and the
ending ``.hdr`` may lie beside it: the acquisition header. Pixels are not decoded here.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

# magic, sequence and data offset are at the start; the longest known header has 768 bytes
_START_BYTES = 96
_PIXEL_BITS = {"U01": 1, "U08": 8, "U16": 16, "U32": 32, "U64": 64}
_RAW_BITS = {1: 1, 6: 8, 12: 16, 24: 16}  # at 24 bits the header counts the two 12-bit halves as width
_FRAMES_KEY = re.compile(rb"(Frames in Acquisition \(Number\):\t?[ ]*)(\d+)")


class MibError(ValueError):
    """A file that cannot be read as MIB."""


class NotAMib(MibError):
    """Bytes that are no Merlin frame header where one must be."""


class TruncatedMib(MibError):
    """A file that ends inside a frame. ``frame`` counts from 0; ``missing_bytes`` are those of that frame."""

    def __init__(self, path: Path, frame: int, missing_bytes: int) -> None:
        super().__init__(f"{path}: ends inside frame {frame}, counted from 0; {missing_bytes} bytes missing")
        self.path = path
        self.frame = frame
        self.missing_bytes = missing_bytes


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame header says of its own size and kind.

    ``depth_bits`` is 0 and ``taken``, the camera's local time, is empty where it does not say.
    """

    sequence: int
    sequence_digits: int
    data_offset: int
    chips: int
    width_px: int
    height_px: int
    pixel_code: str
    layout: str
    depth_bits: int
    taken: str

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all pixels of the frame."""
        bits = _RAW_BITS[self.depth_bits] if self.pixel_code == "R64" else _PIXEL_BITS[self.pixel_code]
        return self.width_px * self.height_px * bits // 8

    @property
    def image_shape(self) -> tuple[int, int]:
        """Shape (y, x) of the image. Raw headers of four chips count their columns side by side."""
        if self.pixel_code != "R64" or self.chips != 4:
            return self.height_px, self.width_px
        gap = 2 if self.layout.endswith("G") else 0
        return 2 * self.height_px + gap, 2 * 256 + gap

    @property
    def frame_bytes(self) -> int:
        """Header and pixels."""
        return self.data_offset + self.pixel_bytes


def parse_frame_header(data: bytes | memoryview, where: str) -> FrameHeader:
    """The header at the start of ``data``, which may hold more than the header.

    ``where`` names the place in the message of :class:`NotAMib`, raised for anything that is no such header.
    """
    start = bytes(data[:_START_BYTES]).split(b",")
    if start[0] != b"MQ1" or len(start) < 8:
        raise NotAMib(f"{where}: a frame starts with 'MQ1,' and seven fields, not {bytes(data[:24])!r}")
    try:
        sequence, offset, chips, width, height = (int(field) for field in start[1:6])
    except ValueError as error:
        raise NotAMib(f"{where}: fields 2 to 6 are numbers, not {start[1:6]!r}") from error
    code, layout = start[6].decode("latin-1"), start[7].decode("latin-1").strip()
    depth = _counter_depth(bytes(data[:offset]))
    if code not in _PIXEL_BITS and not (code == "R64" and depth in _RAW_BITS):
        raise NotAMib(f"{where}: unknown pixel type {code!r} at counter depth {depth}")
    if min(sequence, offset, width, height) < 1:
        raise NotAMib(f"{where}: sequence, data offset, width and height are positive: {start[1:6]!r}")
    return FrameHeader(
        sequence, len(start[1]), offset, chips, width, height, code, layout, depth, _taken(start)
    )


def _taken(fields: list[bytes]) -> str:
    return fields[9].decode("latin-1").strip() if len(fields) > 10 else ""


def _counter_depth(header: bytes) -> int:
    """From the ``MQ1A`` section, which is searched: the sections before it vary. 0 without one."""
    at = header.find(b"MQ1A,")
    fields = header[at:].split(b",", 4) if at >= 0 else []
    return int(fields[3]) if len(fields) > 4 and fields[3].isdigit() else 0


def open_mib(path: Path) -> MibFile:
    """Opens a MIB file; use it in a ``with``. Raises what :class:`MibFile` raises, and OSError."""
    return MibFile(path)


class MibFile:
    """A MIB file, mapped into memory, with where each of its whole frames lies.

    Attributes: ``path``; ``first`` the first frame's header; each int64 ``(frames,)``: ``starts`` and
    ``sizes`` in bytes, ``data_offsets`` within a frame, ``sequences`` and ``sequence_digits`` of the headers;
    ``acquisition_text`` the bytes of the ``.hdr`` file, or None; ``truncated`` the :class:`TruncatedMib` of
    a last frame cut short, or None.

    Raises :class:`NotAMib`, also for an empty file, and :class:`TruncatedMib` when not one frame is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size == 0:
            raise NotAMib(f"{path}: the file is empty")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.truncated: TruncatedMib | None = None
        headers, starts = self._walk()
        self.first = headers[0]
        self.starts = np.array(starts, np.int64)
        self.sizes = np.array([header.frame_bytes for header in headers], np.int64)
        self.data_offsets = np.array([header.data_offset for header in headers], np.int64)
        self.sequences = np.array([header.sequence for header in headers], np.int64)
        self.sequence_digits = np.array([header.sequence_digits for header in headers], np.int64)
        beside = path.with_suffix(".hdr")
        self.acquisition_text = beside.read_bytes() if beside.is_file() else None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def equal_frames(self) -> bool:
        """Whether every frame has the same size."""
        return bool((self.sizes == self.sizes[0]).all())

    @property
    def stated(self) -> int | None:
        """The number of frames that the ``.hdr`` file states; None without one."""
        found = None if self.acquisition_text is None else _FRAMES_KEY.search(self.acquisition_text)
        return None if found is None else int(found[2])

    @property
    def numbered(self) -> bool:
        """Whether sequence numbers increase, so that they can tell which frames are missing."""
        return bool((np.diff(self.sequences) > 0).all())

    @property
    def announced(self) -> int:
        """Frames that one replay announces: those that the ``.hdr`` file states or that the file should hold.

        The larger of both. A last frame that is cut short and numbers that are left out count as held.
        """
        last = int(self.sequences[-1]) if self.numbered else len(self)
        return max(self.stated or 0, last + (self.truncated is not None))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (y, x) of the image of the first frame."""
        return self.first.image_shape

    def frame(self, index: int) -> memoryview:
        """Header and pixels of one whole frame, not copied."""
        start = int(self.starts[index])
        return self.bytes[start : start + int(self.sizes[index])].data

    def close(self) -> None:
        """Lets the file go. Memory still referred to by an array stays mapped until that array is gone."""
        del self.bytes
        try:
            self._map.close()
        except BufferError:
            return  # somebody still holds a frame; the map goes with it

    def __enter__(self) -> MibFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _walk(self) -> tuple[list[FrameHeader], list[int]]:
        """Follows the headers from frame to frame and notes a last one that is cut short."""
        view, end = memoryview(self._map), len(self._map)
        headers: list[FrameHeader] = []
        starts: list[int] = []
        at = 0
        while at < end:
            where = f"{self.path}: frame {len(headers)} at byte {at}"
            missing = self._missing(view[at:], headers, where)
            if missing is not None:
                self.truncated = TruncatedMib(self.path, len(headers), missing)
                break
            header = parse_frame_header(view[at : at + 4096], where)
            headers.append(header)
            starts.append(at)
            at += header.frame_bytes
        if not headers:
            raise self.truncated or NotAMib(f"{self.path}: no frames")
        return headers, starts

    def _missing(self, rest: memoryview, before: list[FrameHeader], where: str) -> int | None:
        """Bytes missing of the frame that starts ``rest``; None when it is whole.

        A rest too short for a header is taken to be a frame like the one before it.
        """
        try:
            header = parse_frame_header(rest[:4096], where)
        except NotAMib:
            if not before or len(rest) >= before[-1].data_offset or bytes(rest[:4]) != b"MQ1,"[: len(rest)]:
                raise
            header = before[-1]
        return header.frame_bytes - len(rest) if header.frame_bytes > len(rest) else None


def announce(text: bytes, frames: int) -> bytes:
    """The acquisition header ``text`` with its number of frames set to ``frames``; same length if it can be.

    Raises :class:`NotAMib` when the text does not say how many frames there are.
    """
    found = _FRAMES_KEY.search(text)
    if not text.startswith(b"HDR") or found is None:
        raise NotAMib(f"an acquisition header starts with 'HDR' and counts its frames, not {text[:24]!r}")
    changed = text[: found.start(2)] + b"%d" % frames + text[found.end(2) :]
    return changed.rstrip(b" ").ljust(len(text))
