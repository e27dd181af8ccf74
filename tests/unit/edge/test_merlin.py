"""Merlin headers and pixels: the specification's examples, every real file, and anything else."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.detectors.base import HeaderError, UnsupportedFormat
from nextem.edge.detectors.merlin import (
    message_prefix,
    parse_acquisition_header,
    parse_frame_header,
    payload_length,
    pixel_format,
)
from nextem.edge.detectors.merlin_check import Expectation, check, spans

SINGLE = (
    b"MQ1,000001,00384,01,0256,0256,U08,   1x1,01,2020-05-18 16:51:49.971626,0.000555,0,0,0,"
    b"1.200000E+2,5.110000E+2,0.0E+0,0.0E+0,0.0E+0,0.0E+0,0.0E+0,0.0E+0,3RX,175,511,000,"
    b"MQ1A,2020-05-18T14:51:49.971626178Z,555000ns,6,"
)
QUAD_RAW = (
    b"MQ1,000017,00768,04,1024,0256,R64,   2x2,0F,2019-09-18 11:15:08.157060,0.010000,0,0,0,,"
    b"MQ1A,2019-09-18T10:15:08.157060199Z,10000000ns,12,"
)


def header(text: bytes, offset: int = 384) -> bytes:
    return text.ljust(offset)


def image(payload: np.ndarray, head: bytes) -> np.ndarray:
    """Frames (n, y, x) from whole payloads (n, bytes), by the code under test."""
    parsed = parse_frame_header(head)
    pixels = pixel_format(parsed)
    raw = payload[:, parsed.data_offset :]
    words = pixels.decode(raw) if pixels.decode else np.ascontiguousarray(raw)
    order = ">" if pixels.big_endian else "<"
    return words.view(pixels.dtype.newbyteorder(order)).reshape(-1, *pixels.shape).astype(pixels.dtype)


def real_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("merlin-*/*")):
        if path.suffix == ".mib":
            yield path.name, path.read_bytes()
        elif path.suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".mib") and not Path(name).name.startswith("._"):
                        yield Path(name).name, archive.read(name)


def payloads(data: bytes) -> np.ndarray:
    parsed = parse_frame_header(data)
    size = parsed.data_offset + pixel_format(parsed).pixel_bytes
    assert len(data) % size == 0
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, size)


def test_a_frame_header_gives_what_the_specification_says() -> None:
    parsed = parse_frame_header(header(SINGLE))
    assert (parsed.sequence, parsed.data_offset, parsed.chips) == (1, 384, 1)
    assert (parsed.width, parsed.height, parsed.pixel, parsed.layout) == (256, 256, "U08", "1x1")
    assert (parsed.shutter_s, parsed.shutter_ns, parsed.depth) == (0.000555, 555000, 6)
    assert parsed.exposed_at == "2020-05-18T14:51:49.971626178Z"
    assert parsed.command_epoch is None


def test_the_extension_is_found_behind_an_empty_dac_section() -> None:
    parsed = parse_frame_header(header(QUAD_RAW, 768))
    assert (parsed.sequence, parsed.depth, parsed.shutter_ns) == (17, 12, 10_000_000)
    assert pixel_format(parsed).shape == (512, 512)


def test_the_command_epoch_is_read_from_the_padding() -> None:
    parsed = parse_frame_header(header(SINGLE + b"NXTM,42,123456789,"))
    assert (parsed.command_epoch, parsed.instrument_ns) == (42, 123456789)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (b"MQ1,", b"MQ2,", "MQ1"),
        (b"000001", b"00000x", "sequence"),
        (b"00384", b"00000", "data offset"),
        (b",0256,0256", b",0256,-256", "height"),
        (b"0.000555", b"soon", "shutter"),
    ],
)
def test_a_bad_field_is_named_with_its_value(old: bytes, new: bytes, names: str) -> None:
    with pytest.raises(HeaderError, match=names):
        parse_frame_header(header(SINGLE.replace(old, new, 1)))


@given(st.binary(max_size=400))
def test_whatever_bytes_come_the_answer_is_a_header_or_a_header_error(tail: bytes) -> None:
    for data in (tail, b"MQ1," + tail, SINGLE[:60] + tail):
        with contextlib.suppress(HeaderError):
            parse_frame_header(data)


@pytest.mark.parametrize(("pixel", "width", "depth"), [(b"U01", b"0256", b"1"), (b"R64", b"0256", b"14")])
def test_formats_that_cannot_be_decoded_are_refused(pixel: bytes, width: bytes, depth: bytes) -> None:
    text = SINGLE.replace(b"U08", pixel).replace(b",6,", b"," + depth + b",")
    with pytest.raises(UnsupportedFormat):
        pixel_format(parse_frame_header(header(text)))


def test_the_length_counts_from_the_last_comma() -> None:
    assert message_prefix(384) == b"MPX,0000000385,"
    assert payload_length(b"MPX,0000000385,") == 384
    for bad in (b"MPX,0000000001,", b"MPX,00000x0385,", b"MPX.0000000385,", b"MPX,9999999999,"):
        assert payload_length(bad) is None


def test_the_acquisition_header_tolerates_carriage_returns_and_padding() -> None:
    text = b"HDR,\t\r\nFrames in Acquisition (Number):\t8\r\nCounter Depth (number):\t12\r\n"
    text += b"ScanX:\t4\r\nScanY:\t2\r\n"
    parsed = parse_acquisition_header(text + b"End\t" + b" " * 500)
    assert (parsed.frames, parsed.counter_depth, parsed.scan) == (8, 12, (2, 4))
    assert parsed.text.endswith("End\t")


@pytest.mark.parametrize(
    "text",
    [
        b"MQ1,",
        b"HDR,\nEnd\t",
        b"HDR,\nFrames in Acquisition (Number):\tmany\nEnd\t",
        b"HDR,\nFrames in Acquisition (Number):\t9999999999\nEnd\t",
        b"HDR,\nFrames in Acquisition (Number):\t8\nScanX:\t9999999999\nScanY:\t1\nEnd\t",
    ],
)
def test_an_acquisition_header_without_a_usable_number_of_frames_is_refused(text: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_acquisition_header(text)


@pytest.mark.data
def test_every_real_file_is_parsed(data_dir: Path) -> None:
    seen = {}
    for name, data in real_files(data_dir):
        try:
            frames = payloads(data)
        except UnsupportedFormat as error:
            seen[f"refused: {error}"] = name
            continue
        heads = [parse_frame_header(bytes(row[:768])) for row in frames]
        # One file holds the same frame twice, under the same number.
        if name != "example.mib":
            assert [head.sequence for head in heads] == list(range(1, len(frames) + 1)), name
        assert heads[0].depth in (1, 6, 12, 24)
        expected = Expectation.of(bytes(frames[0]), len(frames[0]))
        assert expected.format.pixel_bytes == frames.shape[1] - heads[0].data_offset
        seen[f"{heads[0].pixel} {heads[0].depth} {heads[0].layout}"] = name
    # How a quad sends 24 raw bits is not published; one file has them, and no image in it.
    refused = {name: text for text, name in seen.items() if text.startswith("refused")}
    assert list(refused) == ["test_24bit_RAW_1frame.mib"]
    assert "24 bit can be decoded of one chip" in refused["test_24bit_RAW_1frame.mib"]
    assert {"U08 6 1x1", "U16 12 2x2", "U32 24 2x2", "R64 1 2x2", "R64 1 1x1"} <= set(seen)


@pytest.mark.data
def test_real_acquisition_headers_are_parsed(data_dir: Path) -> None:
    headers = [parse_acquisition_header(path.read_bytes()) for path in data_dir.glob("merlin-*/*.hdr")]
    assert {parsed.frames for parsed in headers} >= {1, 8}
    assert {parsed.counter_depth for parsed in headers} >= {1, 6, 12, 24}


@pytest.mark.data
def test_plain_pixels_are_big_endian_words_in_rows(data_dir: Path) -> None:
    data = (data_dir / "merlin-ued-diffraction" / "test.mib").read_bytes()
    frames = image(payloads(data), data)
    wanted = np.frombuffer(data[384:], dtype=">u2").reshape(1, 256, 256)
    assert np.array_equal(frames, wanted)
    assert int(frames.sum()) == 728_470


@pytest.mark.data
@pytest.mark.parametrize("layout", ["Single", "Quad"])
@pytest.mark.parametrize("rows", [256, 128])
def test_raw_bits_make_the_image_that_the_camera_makes_of_them(
    data_dir: Path, layout: str, rows: int
) -> None:
    """The camera took the same test pattern raw and not raw, a second apart, with a few noise hits."""
    files = dict(real_files(data_dir))
    stem = f"{layout}_9_Frames_CounterDepth_1_Rows_{rows}"
    raw, plain = files[f"{stem}RAW.mib"], files[f"{stem}.mib"]
    ours, camera = image(payloads(raw), raw) > 0, image(payloads(plain), plain) > 0
    assert ours.shape == camera.shape
    assert (ours & camera).sum() > 0.97 * (ours | camera).sum()


@pytest.mark.data
def test_raw_bits_of_a_single_chip_are_exactly_the_reversed_words(data_dir: Path) -> None:
    data = dict(real_files(data_dir))["Single_9_Frames_CounterDepth_1_Rows_256RAW.mib"]
    rows = payloads(data)
    words = rows[:, 384:].reshape(len(rows), 256, 4, 8)
    wanted = np.unpackbits(words, axis=-1).reshape(len(rows), 256, 4, 64)[..., ::-1].reshape(-1, 256, 256)
    assert np.array_equal(image(rows, data), wanted)


@pytest.mark.parametrize(("depth", "dtype"), [(6, "u1"), (12, ">u2")])
@pytest.mark.parametrize("layout", [b"   2x2", b"  2x2G"])
def test_raw_quads_of_six_and_twelve_bits_are_put_together(depth: int, dtype: str, layout: bytes) -> None:
    height, gap = 8, 2 if layout.endswith(b"G") else 0
    wanted = np.zeros((2 * height + gap, 512 + gap), dtype=dtype)
    rng = np.random.default_rng(depth)
    upper, lower = wanted[:height], wanted[height + gap :]
    for half in (upper, lower):
        half[:, :256] = rng.integers(0, 1 << depth, (height, 256))
        half[:, 256 + gap :] = rng.integers(0, 1 << depth, (height, 256))
    turned = lower[::-1, ::-1]
    raw = np.stack(
        [turned[:, :256], turned[:, 256 + gap :], upper[:, 256 + gap :], upper[:, :256]], axis=1
    ).reshape(height, -1)
    per_group = 8 // wanted.dtype.itemsize
    words = raw.astype(wanted.dtype)
    sent = np.ascontiguousarray(words.reshape(-1, per_group)[:, ::-1]).view(np.uint8).reshape(1, -1)
    text = QUAD_RAW.replace(b"0256,R64", b"0008,R64").replace(b"   2x2", layout)
    head = header(text.replace(b"ns,12,", b"ns,%d," % depth), 768)
    payload = np.concatenate([np.frombuffer(head, dtype=np.uint8)[None], sent], axis=1)
    assert np.array_equal(image(payload, head)[0], wanted)


# ---- the check of whole slabs ------------------------------------------------------------------


def messages(numbers: list[int], epochs: list[int] | None = None) -> np.ndarray:
    rows = []
    for i, number in enumerate(numbers):
        text = SINGLE.replace(b"000001", b"%06d" % number).replace(b"0256,0256", b"0004,0002")
        if epochs:
            text += b"NXTM,%d,5," % epochs[i]
        payload = header(text) + bytes(8)
        rows.append(message_prefix(len(payload)) + payload)
    return np.frombuffer(b"".join(rows), dtype=np.uint8).copy()


def expectation(data: np.ndarray) -> Expectation:
    return Expectation.of(bytes(data[15 : 15 + 384]), 392)


def test_a_slab_gives_sequence_numbers_and_epochs() -> None:
    data = messages([1, 2, 3, 1_000_000, 12_345_678], [7, 7, 8, 9, 10])
    checked = check(data, 5, expectation(data))
    assert checked.sequence.tolist() == [1, 2, 3, 1_000_000, 12_345_678]
    assert checked.epoch is not None
    assert checked.epoch.tolist() == [7, 7, 8, 9, 10]


@pytest.mark.parametrize("at", [0, 14, 16, 26, 45])
def test_the_check_stops_before_the_first_odd_message(at: int) -> None:
    data = messages([1, 2, 3, 4])
    data[2 * 407 + at] ^= 0x40
    assert len(check(data, 4, expectation(data)).sequence) == 2


def test_a_length_that_is_not_header_and_pixels_is_refused() -> None:
    data = messages([1])
    with pytest.raises(HeaderError, match="384 \\+ 8"):
        Expectation.of(bytes(data[15 : 15 + 384]), 393)


@given(
    st.lists(st.integers(0, 60), max_size=40),
    st.integers(0, 10),
    st.sampled_from([0, 20, 50]),
)
def test_spans_hold_each_frame_at_most_once_and_count_the_rest(
    numbers: list[int], next_frame: int, announced: int
) -> None:
    if announced and next_frame > announced:
        return
    found, refused, after = spans(np.array(numbers, dtype=np.int64), next_frame, announced)
    frames = [span.first_frame + i for span in found for i in range(span.count)]
    assert frames == sorted(set(frames))
    assert len(frames) + refused == len(numbers)
    assert all(frame >= next_frame and (not announced or frame < announced) for frame in frames)
    assert after == (frames[-1] + 1 if frames else next_frame)
    for span in found:
        assert [number - 1 for number in numbers[span.start : span.start + span.count]] == list(
            range(span.first_frame, span.first_frame + span.count)
        )


def test_six_digits_that_start_again_are_carried_on() -> None:
    found, refused, after = spans(np.array([999_999, 0, 1, 3], dtype=np.int64), 999_998, 0)
    assert [(span.first_frame, span.count) for span in found] == [(999_998, 3), (1_000_002, 1)]
    assert (refused, after) == (0, 1_000_003)
