"""Headers of Quantum Detectors Merlin, as text on its data socket and in MIB files. Pure functions.

Every message on the socket is ``MPX,`` + ten digits + ``,`` and a payload; the number counts from that last
comma, so the payload has one byte less. The first payload of an acquisition starts with ``HDR,`` and is text;
each further one starts with ``MQ1,`` and is one frame: a header padded to its data offset, then pixels.

Source: Merlin TCP/IP and MIB format as read by LiberTEM-rs (``libertem_qd_mpx``, base_types.rs) and
RosettaSciIO (``quantumdetector``), checked on camera files of 1, 6, 12 and 24 bit, single and quad chip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nextem.edge.detectors.base import FrameFormat, HeaderError, UnsupportedFormat
from nextem.edge.detectors.merlin_raw import raw_format

DATA_PORT = 6342
PREFIX_BYTES = 15
_PREFIX = re.compile(rb"MPX,(\d{10}),")
_EXTENSION = re.compile(rb"MQ1A,([^,\0]*),(\d+)ns,(\d+)")
_NEXTEM = re.compile(rb"NXTM,(\d+),(\d+),")
_PIXEL_BYTES = {"U08": 1, "U16": 2, "U32": 4, "U64": 8}
MAX_PAYLOAD_BYTES = 1 << 28
_MAX_SIDE_PX = 1 << 14
_MAX_DIGITS = 9  # of a number in an acquisition header


def message_prefix(payload_bytes: int) -> bytes:
    """The 15 bytes before a payload of that many bytes."""
    return b"MPX,%010d," % (payload_bytes + 1)


def payload_length(prefix: bytes | bytearray) -> int | None:
    """Bytes of the payload that follows these 15 bytes, or None where they are no message prefix."""
    match = _PREFIX.fullmatch(prefix)
    if match is None:
        return None
    length = int(match[1]) - 1
    return length if 0 < length <= MAX_PAYLOAD_BYTES else None


@dataclass(frozen=True, slots=True)
class AcquisitionHeader:
    """The text before an acquisition's first frame. ``frames`` is 0 in continuous mode."""

    text: str
    fields: Mapping[str, str]
    frames: int
    frames_per_trigger: int
    counter_depth: int | None
    scan: tuple[int, int] | None  # (y, x), where ScanX and ScanY are given


def parse_acquisition_header(payload: bytes | memoryview) -> AcquisitionHeader:
    """Reads the ``HDR`` text. Raises :class:`HeaderError` where it is none or lacks the number of frames."""
    text = bytes(payload).decode("latin-1")
    if not text.startswith("HDR"):
        raise HeaderError(f"an acquisition header starts with 'HDR', this one with {text[:8]!r}")
    fields = {}
    for line in text.splitlines()[1:]:
        key, tab, value = line.partition("\t")
        if key.strip() == "End":
            break
        if tab:
            fields[key.strip().removesuffix(":")] = value.strip()
    scan_x, scan_y = _number(fields, "ScanX"), _number(fields, "ScanY")
    frames = _number(fields, "Frames in Acquisition (Number)")
    if frames is None:
        raise HeaderError("an acquisition header names 'Frames in Acquisition (Number)', this one does not")
    return AcquisitionHeader(
        text=text.rstrip(" \0\r\n"),
        fields=fields,
        frames=frames,
        frames_per_trigger=_number(fields, "Frames per Trigger (Number)") or 0,
        counter_depth=_number(fields, "Counter Depth (number)"),
        scan=(scan_y, scan_x) if scan_x and scan_y else None,
    )


def _number(fields: Mapping[str, str], key: str) -> int | None:
    value = fields.get(key)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
        raise HeaderError(f"{key!r} is a number of 1 to {_MAX_DIGITS} digits, this one is {value[:40]!r}")
    return int(value)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame. ``width`` and ``height`` are as the header gives them.

    In the raw mode of a quad these are not the image's: :func:`pixel_format` gives the image's shape.
    ``exposed_at`` is the camera's own time stamp (ISO 8601, ns) and ``command_epoch`` and ``instrument_ns``
    are in force at the frame's start, where the instrument tells them in a section ``NXTM``.
    """

    sequence: int  # counts from 1
    data_offset: int  # bytes from the start of the payload to the first pixel
    chips: int
    width: int
    height: int
    pixel: str  # "U08", "U16", "U32", "U64", "R64"
    layout: str  # "1x1", "2x2", "Nx1", "2x2G", "Nx1G"
    chip_select: str
    shutter_s: float
    depth: int | None = None  # counter bits: 1, 6, 12, 24
    exposed_at: str | None = None
    shutter_ns: int | None = None
    command_epoch: int | None = None
    instrument_ns: int | None = None


def parse_frame_header(payload: bytes | memoryview) -> FrameHeader:
    """Reads the header at the start of a frame's payload (at least its first ``data_offset`` bytes).

    Raises :class:`HeaderError`, naming the field and its value.
    """
    head = bytes(payload[:4096])
    if not head.startswith(b"MQ1,"):
        raise HeaderError(f"a frame header starts with 'MQ1,', this one with {head[:8]!r}")
    parts = head.split(b",", 12)
    if len(parts) < 12:
        raise HeaderError(f"a frame header has at least 12 fields, this one {len(parts)}")
    offset = _field(parts, 2, "data offset", 64, 1 << 16)
    head = head[:offset]
    extension, own = _EXTENSION.search(head), _NEXTEM.search(head)
    return FrameHeader(
        sequence=_field(parts, 1, "sequence", 0, 1 << 62),
        data_offset=offset,
        chips=_field(parts, 3, "chips", 0, 1024),
        width=_field(parts, 4, "width", 1, _MAX_SIDE_PX),
        height=_field(parts, 5, "height", 1, _MAX_SIDE_PX),
        pixel=_text(parts, 6),
        layout=_text(parts, 7),
        chip_select=_text(parts, 8),
        shutter_s=_seconds(parts[10]),
        depth=int(extension[3]) if extension else None,
        exposed_at=extension[1].decode("latin-1") if extension else None,
        shutter_ns=int(extension[2]) if extension else None,
        command_epoch=int(own[1]) if own else None,
        instrument_ns=int(own[2]) if own else None,
    )


def _text(parts: list[bytes], index: int) -> str:
    return parts[index].decode("latin-1").strip()


def _field(parts: list[bytes], index: int, name: str, low: int, high: int) -> int:
    text = _text(parts, index)
    if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        raise HeaderError(
            f"the {name} of a frame header is a number in {low}..{high}, this one is {text[:40]!r}"
        )
    return int(text)


def _seconds(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        raise HeaderError(
            f"the shutter time of a frame header is in seconds, this one is {text[:40]!r}"
        ) from None


def pixel_format(header: FrameHeader) -> FrameFormat:
    """How the pixels of a frame with this header are read.

    Raises :class:`UnsupportedFormat` for packed single bits (``U01``) and raw 24 bit, which come in pieces.
    """
    if header.pixel == "R64":
        return raw_format(header.width, header.height, header.layout, header.chips, header.depth)
    width = _PIXEL_BYTES.get(header.pixel)
    if width is None:
        raise UnsupportedFormat(f"pixels are U08, U16, U32, U64 or R64, these are {header.pixel!r}")
    return FrameFormat(
        shape=(header.height, header.width),
        dtype=np.dtype(f"u{width}"),
        pixel_bytes=header.height * header.width * width,
    )
