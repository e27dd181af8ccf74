"""CSR messages: every type, what is written is read, and what cannot be is refused or lost alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import DetectorError, HeaderError, UnsupportedFormat
from nextem.edge.detectors.csr_messages import (
    HEADER_BYTES,
    AcquisitionHeader,
    ChunkHeader,
    EndHeader,
    ScanHeader,
    chunk_arrays,
    fill_records,
    parse_header,
    value_dtype,
)
from nextem.edge.detectors.timepix3_records import record_dtype
from nextem.simulator.csr import CsrFormat

FORMAT = CsrFormat((2, 3), (16, 12))
NUMBERS = ["uint8", "uint16", "uint32", "uint64"]


def header_of(form: CsrFormat) -> AcquisitionHeader:
    header = parse_header(form.acquisition_start(), None)
    assert isinstance(header, AcquisitionHeader)
    return header


def decode_chunk(form: CsrFormat, message: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(records of each frame, records)."""
    within = header_of(form)
    header = parse_header(message[:HEADER_BYTES], within)
    assert isinstance(header, ChunkHeader)
    body = np.frombuffer(message[HEADER_BYTES:], np.uint8)
    assert body.size == header.total_bytes()
    counts = np.empty(header.frames, np.int64)
    records: Any = np.zeros(header.length, record_dtype(value_dtype(header.values)))
    pixels = within.frame[0] * within.frame[1]
    arrays = chunk_arrays(body, header, within)
    made = fill_records(*arrays, pixels, counts, records["pixel"], records["value"])
    return counts, records[:made]


@settings(max_examples=60)
@given(
    st.sampled_from(NUMBERS[1:]),
    st.sampled_from(NUMBERS),
    st.sampled_from([*NUMBERS, "u1bit", "u4bit"]),
    st.integers(0, 9),
    st.integers(0, 2**32),
)
def test_every_type_is_read_as_it_was_written(
    indptr: str, indices: str, values: str, padding: int, seed: int
) -> None:
    form = replace(FORMAT, indptr=indptr, indices=indices, values=values, padding=padding)
    most = {"u1bit": 1, "u4bit": 15}.get(values) or int(np.iinfo(values).max)
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, most, (3, 16, 12), np.uint64, endpoint=True)
    frames[rng.random(frames.shape) < 0.9] = 0
    counts, records = decode_chunk(form, form.chunk(frames))
    flat = frames.reshape(3, -1)
    assert counts.tolist() == np.count_nonzero(flat, axis=1).tolist()
    row, pixel = np.nonzero(flat)
    assert records["pixel"].tolist() == pixel.tolist()
    assert records["value"].tolist() == flat[row, pixel].tolist()


def test_headers_are_read_as_they_were_written() -> None:
    form = replace(FORMAT, indptr="uint64", indices="uint16", tot=True, sequence=2**32 - 1, metadata={"a": 1})
    assert header_of(form) == AcquisitionHeader(True, (2, 3), 64, (16, 12), 16, 2**32 - 1)
    start = form.scan_start(7)
    assert parse_header(start[:32], None) == ScanHeader(7, len(start) - 32)
    assert parse_header(form.scan_end(7), None) == EndHeader(False, 7)
    assert parse_header(form.acquisition_end(), None) == EndHeader(True, 2**32 - 1)


def test_bytes_of_headers() -> None:
    """As LiberTEM-rs lays them out."""
    form = CsrFormat((512, 511), (516, 515), "uint32", "uint16", "uint8", sequence=9)
    start = bytes([0, 1, 0, 0, 2, 255, 1, 4, 4, 2, 3, 2, 3, 9, 0, 0, 0])
    assert form.acquisition_start() == start.ljust(32, b"\0")
    chunk = form.chunk_of([0, 1, 3], [5, 6, 7], [1, 2, 3])
    assert chunk[:18] == bytes([2, 2, 2, 0, 0, 0, 3, 0, 0, 0, 12, 0, 0, 0, 18, 0, 0, 0])
    assert chunk[32:] == bytes([0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 5, 0, 6, 0, 7, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("indptr", "indices", "good"),
    [
        ([0, 2, 2, 4], [1, 5, 0, 191], [2, 0, 2]),
        ([0, 2, 2, 4], [5, 1, 0, 191], [-1, 0, 2]),  # not ascending
        ([0, 2, 2, 4], [5, 5, 0, 191], [-1, 0, 2]),  # twice
        ([0, 2, 2, 4], [1, 5, 0, 192], [2, 0, -1]),  # outside the frame
        ([0, 3, 2, 4], [1, 5, 6, 191], [3, -1, -1]),  # backwards
        ([0, 2, 2, 5], [1, 5, 0, 191], [2, 0, -1]),  # beyond the arrays
        ([2**32 - 1, 2, 2, 4], [1, 5, 0, 191], [-1, 0, 2]),
        ([1, 2, 3, 4], [9, 5, 4, 3], [1, 1, 1]),  # some values belong to no frame
    ],
)
def test_a_frame_that_is_not_sorted_is_lost_alone(
    indptr: list[int], indices: list[int], good: list[int]
) -> None:
    counts, records = decode_chunk(FORMAT, FORMAT.chunk_of(indptr, indices, [1, 2, 3, 4]))
    assert counts.tolist() == good
    assert len(records) == counts[counts > 0].sum()


def test_zeros_are_left_out() -> None:
    counts, records = decode_chunk(FORMAT, FORMAT.chunk_of([0, 3, 4], [1, 2, 3, 0], [5, 0, 6, 0]))
    assert counts.tolist() == [2, 0]
    assert records.tolist() == [(1, 5), (3, 6)]


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_nothing_is_written_outside(indptr: list[int], indices: list[int]) -> None:
    small = [value % 12 if value < 2**31 else value for value in indptr]
    counts, records = decode_chunk(FORMAT, FORMAT.chunk_of(small, indices, np.ones(len(indices))))
    assert counts[counts > 0].sum() == len(records) <= len(indices)


@given(st.binary(min_size=32, max_size=32))
def test_any_header_is_read_or_refused(data: bytes) -> None:
    within = header_of(FORMAT)
    for prefix in (bytes([data[0] % 6]), data[:1]):
        try:
            header = parse_header(prefix + data[1:], within)
        except DetectorError:
            continue
        if isinstance(header, ChunkHeader):
            assert header.total_bytes() >= (header.frames + 1) * 4


def test_what_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(HeaderError, match="no header begins with 9"):
        parse_header(bytes([9]) * 32, None)
    with pytest.raises(HeaderError, match="outside an acquisition"):
        parse_header(FORMAT.chunk_of([0, 0], [], [])[:32], None)
    with pytest.raises(UnsupportedFormat, match="no numbers of bits"):
        header_of(replace(FORMAT, indices="u4bit"))
    with pytest.raises(HeaderError, match="metadata"):
        parse_header(bytes([1]) + bytes(4) + b"\xff" * 27, None)
    overlapping = bytearray(FORMAT.chunk_of([0, 1], [3], [4])[:32])
    overlapping[10] = 4
    with pytest.raises(HeaderError, match="indices at byte 4"):
        parse_header(bytes(overlapping), header_of(FORMAT))
