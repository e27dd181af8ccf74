"""The encoder against the protocol's own examples and against parsing by the rules."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.simulator.merlin import (
    DAY_NS,
    HEADER_BYTES,
    PREFIX_BYTES,
    FrameFormat,
    FrameHeaders,
    HeaderTooLong,
    Stamp,
    UnknownCounterDepth,
    message,
    prefix,
)
from nextem.simulator.merlin_acquisition import acquisition_header

NOON_NS = 1_589_821_200 * 10**9  # 2020-05-18 17:00:00 UTC


def rows_of(mode: FrameFormat, frames: int) -> np.ndarray:
    return np.full((frames, mode.message_bytes), 0xEE, np.uint8)


def test_the_prefix_counts_the_payload_and_its_own_last_comma() -> None:
    assert prefix(2048) == b"MPX,0000002049,"
    assert message(b"GET,X,0") == b"MPX,0000000008,GET,X,0"


def test_a_frame_header_is_byte_for_byte_as_the_protocol_has_it() -> None:
    mode = FrameFormat(256, 6)
    rows = rows_of(mode, 1)
    stamp = Stamp(command_epoch=7, monotonic_ns=123456789, wall_ns=NOON_NS + 971626178)
    FrameHeaders(mode, exposure_s=0.000555).write(rows, 1, stamp)
    expected = (
        b"MPX,0000065921,MQ1,000001,00384,01,0256,0256,U08,   1x1,01,2020-05-18 17:00:00.971626,0.000555,"
        b"0,0,0,4.000000E+1,5.110000E+2"
        b",0.000000E+0,0.000000E+0,0.000000E+0,0.000000E+0,0.000000E+0,0.000000E+0,"
        b"3RX,068,511,000,000,000,000,000,000,100,255,100,125,100,100,080,100,090,030,128,004,255,126,128,174,"
        b"172,511,511,NXTM,0000000007,000000000123456789,MQ1A,2020-05-18T17:00:00.971626178Z,555000ns,6,"
    )
    head = rows[0, : PREFIX_BYTES + HEADER_BYTES].tobytes()
    assert head == expected.ljust(399, b"\0")
    assert (rows[0, 399:] == 0xEE).all(), "pixels are not the header's"


@pytest.mark.parametrize(("depth", "code", "size"), [(6, b"U08", 1), (12, b"U16", 2), (24, b"U32", 4)])
@pytest.mark.parametrize("size_px", [128, 256])
def test_every_mode_states_its_shape_and_length(depth: int, code: bytes, size: int, size_px: int) -> None:
    mode = FrameFormat(size_px, depth)
    rows = rows_of(mode, 2)
    FrameHeaders(mode, 0.001).write(rows, 1, Stamp(0, 0, NOON_NS))
    fields = rows[1, :399].tobytes().split(b",")
    assert int(fields[1]) - 1 == 384 + size_px * size_px * size == mode.message_bytes - PREFIX_BYTES
    assert fields[2:9] == [b"MQ1", b"000002", b"00384", b"01", b"%04d" % size_px, b"%04d" % size_px, code]
    assert mode.saturation == 2**depth - 1


def test_an_unknown_counter_depth_is_named() -> None:
    with pytest.raises(UnknownCounterDepth, match="not 8"):
        FrameFormat(256, 8)


def test_sequence_numbers_grow_wider_in_the_middle_of_a_batch() -> None:
    mode = FrameFormat(128, 12)
    rows = rows_of(mode, 4)
    FrameHeaders(mode, 10.0).write(rows, 999_998, Stamp(3, 5, NOON_NS))
    heads = [row[15:399].tobytes() for row in rows]
    assert [head.split(b",")[1] for head in heads] == [b"999998", b"999999", b"1000000", b"1000001"]
    assert {head.split(b",")[2] for head in heads} == {b"00384"}
    assert {head[head.find(b"NXTM") : head.find(b"MQ1A")] for head in heads} == {
        b"NXTM,0000000003,000000000000000005,"
    }


def test_a_batch_over_midnight_changes_its_date() -> None:
    mode = FrameFormat(128, 6)
    rows = rows_of(mode, 4)
    midnight = NOON_NS - NOON_NS % DAY_NS + DAY_NS
    FrameHeaders(mode, 1.0).write(rows, 1, Stamp(0, 0, midnight - 1_500_000_000, 1_000_000_000))
    times = [row[15:399].tobytes().split(b",")[9] for row in rows]
    assert times == [
        b"2020-05-18 23:59:58.500000",
        b"2020-05-18 23:59:59.500000",
        b"2020-05-19 00:00:00.500000",
        b"2020-05-19 00:00:01.500000",
    ]


def test_a_header_that_cannot_fit_is_refused() -> None:
    with pytest.raises(HeaderTooLong, match=r"exposure_s=1000\.0"):
        FrameHeaders(FrameFormat(256, 12), 1000.0)


@given(
    first=st.integers(1, 10_000_000),
    frames=st.integers(1, 8),
    epoch=st.integers(0, 10**10 - 1),
    monotonic_ns=st.integers(0, 10**18 - 1),
    wall_ns=st.integers(0, 4 * 10**18),
    step_ns=st.integers(0, 10**10),
    exposure_ns=st.integers(1000, 10**10),
)
def test_what_is_written_reads_back(
    first: int, frames: int, epoch: int, monotonic_ns: int, wall_ns: int, step_ns: int, exposure_ns: int
) -> None:
    mode = FrameFormat(128, 12)
    rows = np.zeros((frames, 399), np.uint8)
    FrameHeaders(mode, exposure_ns / 1e9).write(rows, first, Stamp(epoch, monotonic_ns, wall_ns, step_ns))
    for i, row in enumerate(rows):
        head = row[15:].tobytes()
        assert int(head.split(b",")[1]) == first + i
        found = re.search(rb",NXTM,(\d+),(\d+),MQ1A,(.{19})\.(\d{9})Z,(\d+)ns,12,\0*$", head)
        assert found is not None
        at_ns = wall_ns + i * step_ns
        assert found[3].decode() == time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ns // 10**9))
        assert int(found[4]) == at_ns % 10**9
        assert [int(found[k]) for k in (5, 1, 2)] == [exposure_ns, epoch, monotonic_ns]


def test_the_acquisition_header_has_the_keys_that_readers_need() -> None:
    text = acquisition_header(frames=10, depth_bits=12, taken="18/05/2020 17:00:00", scan_yx=(2, 5))
    assert len(text) == 2048
    assert text.startswith(b"HDR,\t\r\n")
    assert text.rstrip(b" ").endswith(b"\r\nEnd\t")
    values = dict(line.split(":\t", 1) for line in text.decode().split("\r\n") if ":\t" in line)
    assert values["Frames in Acquisition (Number)"] == "10"
    assert values["Counter Depth (number)"] == "12"
    assert (values["ScanX"], values["ScanY"]) == ("5", "2")
    assert values["Assembly Size (NX1, 2X2)"].strip() == "1x1"
    assert len(values["Thresholds (keV)"].split(",")) == 8
