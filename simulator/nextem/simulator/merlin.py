"""Merlin's data protocol, written: messages, and frame headers patched into whole batches.

Source: the MQ1 and HDR headers of Quantum Detectors' Merlin as its MIB files and TCP stream carry them.
A message is ``MPX,`` + ten digits + ``,`` and then its payload; the digits count the payload and the comma.
Before the ``MQ1A`` section every frame header carries one of ours, so that a frame says which commands were
in force: ``NXTM,<command epoch>,<instrument monotonic ns>,``. Readers search for ``MQ1A`` or take the last
field of the header, the counter depth, so that none of them meets ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

PREFIX_BYTES = 15
HEADER_BYTES = 384  # of a single chip's frame; a quad's header has twice as many
CHIP_PX = 256
GAP_PX = 2
EPOCH_DIGITS = 10
MONOTONIC_DIGITS = 18
DAY_NS = 86_400_000_000_000

_PIXELS = {1: ("U08", 1), 6: ("U08", 1), 12: ("U16", 2), 24: ("U32", 4)}
_RAW_BITS = {1: 1, 6: 8, 12: 16, 24: 32}
_CHIPS = {"1x1": 1, "2x2": 4, "2x2G": 4}
THRESHOLDS = "4.000000E+1,5.110000E+2" + ",0.000000E+0" * 6
DACS = (
    "068,511,000,000,000,000,000,000,100,255,100,125,100,"
    "100,080,100,090,030,128,004,255,126,128,174,172,511,511"
)


class MerlinError(ValueError):
    """What the protocol cannot carry."""


class UnknownCounterDepth(MerlinError):
    """A counter depth that the simulated detector does not have."""


class HeaderTooLong(MerlinError):
    """A frame header that does not fit into its 384 bytes, or 768 of a quad."""


class UnknownLayout(MerlinError):
    """An arrangement of chips that the simulated detector does not have."""


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """One detector mode: images of ``size_px`` by ``size_px``, counted to ``depth_bits`` (1, 6, 12 or 24).

    ``layout`` is ``1x1``, a quad ``2x2``, or a quad with a gap of two pixels between its chips, ``2x2G``.
    ``raw`` pixels go out as the chips send them (:mod:`nextem.simulator.merlin_raw`).
    Raises :class:`UnknownCounterDepth`, and :class:`UnknownLayout` for what has no such chips: a raw row is
    whole groups of 64 pixels, a quad is two chips wide.
    """

    size_px: int
    depth_bits: int
    layout: str = "1x1"
    raw: bool = False

    def __post_init__(self) -> None:
        if self.depth_bits not in _PIXELS:
            raise UnknownCounterDepth(f"counter depth is one of 1, 6, 12, 24 bits, not {self.depth_bits}")
        if self.layout not in _CHIPS:
            raise UnknownLayout(f"the layout is one of {', '.join(_CHIPS)}, not {self.layout!r}")
        if self.chips == 4 and self.size_px != 2 * CHIP_PX + self.gap_px:
            raise UnknownLayout(f"{self.layout} has {2 * CHIP_PX + self.gap_px} columns, not {self.size_px}")
        if self.raw and self.chips == 1 and self.size_px % 64:
            raise UnknownLayout(f"raw rows are whole groups of 64 pixels, not {self.size_px}")

    @property
    def chips(self) -> int:
        return _CHIPS[self.layout]

    @property
    def gap_px(self) -> int:
        return GAP_PX if self.layout.endswith("G") else 0

    @property
    def header_bytes(self) -> int:
        return HEADER_BYTES if self.chips == 1 else 2 * HEADER_BYTES

    @property
    def stated_shape(self) -> tuple[int, int]:
        """(y, x) as the header states them: raw quads side by side, raw 24 bit in two halves."""
        if not self.raw:
            return self.size_px, self.size_px
        halves = 2 if self.depth_bits == 24 else 1
        if self.chips == 1:
            return self.size_px, halves * self.size_px
        return CHIP_PX, halves * 4 * CHIP_PX

    @property
    def pixel_code(self) -> str:
        """The protocol's name of the pixel type: ``U08``, ``U16`` or ``U32``, big-endian, or ``R64``."""
        return "R64" if self.raw else _PIXELS[self.depth_bits][0]

    @property
    def pixel_bytes(self) -> int:
        """Of one pixel of the image, not raw."""
        return _PIXELS[self.depth_bits][1]

    @property
    def frame_bytes(self) -> int:
        """The pixels of one frame as they are sent."""
        if not self.raw:
            return self.size_px * self.size_px * self.pixel_bytes
        return (self.size_px - self.gap_px) ** 2 * _RAW_BITS[self.depth_bits] // 8

    @property
    def message_bytes(self) -> int:
        """Prefix, header and pixels of one frame."""
        return self.pixels_at + self.frame_bytes

    @property
    def pixels_at(self) -> int:
        """Where the pixels start in a message."""
        return PREFIX_BYTES + self.header_bytes

    @property
    def saturation(self) -> int:
        """The largest count of one pixel."""
        return (1 << self.depth_bits) - 1


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a batch of frames says about when it was made.

    ``command_epoch`` was in force when the batch was begun, at ``monotonic_ns`` of the instrument's clock.
    ``wall_ns`` is Unix time of the first frame; later frames follow every ``wall_step_ns``.
    """

    command_epoch: int
    monotonic_ns: int
    wall_ns: int
    wall_step_ns: int = 0


def prefix(payload_bytes: int) -> bytes:
    """The 15 bytes before a payload. The length counts from the prefix's last comma, so it is one more."""
    return b"MPX,%010d," % (payload_bytes + 1)


def message(payload: bytes) -> bytes:
    """A payload with its prefix."""
    return prefix(len(payload)) + payload


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def put_digits(row: Bytes, column: int, width: int, value: int) -> None:
    """Writes ``value`` as ``width`` decimal digits with leading zeros at ``row[column:]``."""
    for at in range(column + width - 1, column - 1, -1):
        row[at] = 48 + value % 10
        value //= 10


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _put_time(row: Bytes, column: int, day_ns: int, fraction_digits: int) -> None:
    seconds = day_ns // 1_000_000_000
    fraction = day_ns % 1_000_000_000
    put_digits(row, column, 2, seconds // 3600)
    put_digits(row, column + 3, 2, seconds // 60 % 60)
    put_digits(row, column + 6, 2, seconds % 60)
    put_digits(row, column + 9, fraction_digits, fraction // 10 ** (9 - fraction_digits))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _stamp_rows(
    out: Bytes,
    template: Bytes,
    columns: NDArray[np.int64],  # of sequence, local time, ISO time
    sequence: int,
    digits: int,
    day_ns: int,
    step_ns: int,
) -> None:
    for i in range(out.shape[0]):
        row = out[i]
        row[: template.size] = template
        put_digits(row, columns[0], digits, sequence + i)
        _put_time(row, columns[1], day_ns + i * step_ns, 6)
        _put_time(row, columns[2], day_ns + i * step_ns, 9)


@dataclass(frozen=True, slots=True)
class _Template:
    """Prefix and header of a frame with its moving fields blank, and where these fields are."""

    text: Bytes
    columns: NDArray[np.int64]
    local_date: int
    iso_date: int
    epoch: int
    monotonic: int


class FrameHeaders:
    """Writes prefix and header of frames into the first bytes of each row of a batch, up to the pixels.

    ``exposure_s`` is the shutter time that the headers state. Raises :class:`HeaderTooLong` when a header
    cannot fit, which takes an exposure above 10 s or more than 10**8 frames.
    """

    def __init__(self, mode: FrameFormat, exposure_s: float) -> None:
        self._mode = mode
        self._exposure_s = exposure_s
        self._templates: dict[int, _Template] = {}
        self._template(6)

    def write(self, out: Bytes, first_sequence: int, stamp: Stamp) -> None:
        """Stamps the rows of ``out``, uint8 ``(frames, at least pixels_at)``, from ``first_sequence`` on.

        The number has six digits, more after 999,999; the header then grows into its own padding.
        """
        done = 0
        while done < len(out):
            sequence = first_sequence + done
            wall_ns = stamp.wall_ns + done * stamp.wall_step_ns
            digits = max(6, len(str(sequence)))
            before_midnight = _frames_before_midnight(wall_ns, stamp.wall_step_ns)
            run = min(len(out) - done, 10**digits - sequence, before_midnight)
            template = self._template(digits)
            self._set_batch(template, wall_ns, stamp)
            day_ns = wall_ns % DAY_NS
            rows = out[done : done + run]
            _stamp_rows(rows, template.text, template.columns, sequence, digits, day_ns, stamp.wall_step_ns)
            done += run

    def _set_batch(self, template: _Template, wall_ns: int, stamp: Stamp) -> None:
        """What is the same in every frame of a batch goes into the template."""
        date = np.frombuffer(time.strftime("%Y-%m-%d", time.gmtime(wall_ns // 10**9)).encode(), np.uint8)
        template.text[template.local_date : template.local_date + 10] = date
        template.text[template.iso_date : template.iso_date + 10] = date
        put_digits(template.text, template.epoch, EPOCH_DIGITS, stamp.command_epoch)
        put_digits(template.text, template.monotonic, MONOTONIC_DIGITS, stamp.monotonic_ns)

    def _template(self, digits: int) -> _Template:
        if digits not in self._templates:
            self._templates[digits] = _make_template(self._mode, self._exposure_s, digits)
        return self._templates[digits]


def _frames_before_midnight(wall_ns: int, step_ns: int) -> int:
    left_ns = DAY_NS - wall_ns % DAY_NS
    return 1 << 62 if step_ns == 0 else -(-left_ns // step_ns)


def _make_template(mode: FrameFormat, exposure_s: float, digits: int) -> _Template:
    """The fields in the order of the protocol; the columns are found while they are written."""
    head = prefix(mode.message_bytes - PREFIX_BYTES).decode()
    sequence = len(head) + len("MQ1,")
    height, width = mode.stated_shape
    select = (1 << mode.chips) - 1
    shape = f"{mode.chips:02d},{width:04d},{height:04d},{mode.pixel_code},{mode.layout:>6},{select:02X},"
    text = f"{head}MQ1,{0:0{digits}d},{mode.header_bytes:05d},{shape}"
    local_date = len(text)
    text += f"0000-00-00 00:00:00.000000,{exposure_s:.6f},0,0,0,{THRESHOLDS},"
    text += f"3RX,{DACS}," * mode.chips
    epoch = len(text) + len("NXTM,")
    monotonic = epoch + EPOCH_DIGITS + 1
    text += f"NXTM,{0:0{EPOCH_DIGITS}d},{0:0{MONOTONIC_DIGITS}d},"
    iso_date = len(text) + len("MQ1A,")
    text += f"MQ1A,0000-00-00T00:00:00.000000000Z,{round(exposure_s * 1e9)}ns,{mode.depth_bits},"
    limit = mode.pixels_at
    if len(text) > limit:
        needed = len(text) - PREFIX_BYTES
        raise HeaderTooLong(
            f"frame headers have {mode.header_bytes} bytes; exposure_s={exposure_s} needs {needed}"
        )
    columns = np.array([sequence, local_date + 11, iso_date + 11], np.int64)
    padded = np.frombuffer(text.encode().ljust(limit, b"\0"), np.uint8).copy()
    return _Template(padded, columns, local_date, iso_date, epoch, monotonic)
