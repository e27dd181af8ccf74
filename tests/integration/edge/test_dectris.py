"""The DECTRIS receiver against our simulated detector and against messages made by the test."""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from dectris_kit import (
    ENCODINGS,
    WAIT_S,
    Keeper,
    Pusher,
    check_all,
    detector_of,
    messages_of,
    receiving,
    series_of,
    sparse,
)

from nextem.edge.detectors import dectris_v1 as v1
from nextem.edge.detectors.base import EndKind
from nextem.edge.detectors.dectris import connect
from nextem.edge.detectors.dectris_messages import Start
from nextem.edge.detectors.registry import BadAddress, parse_address
from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import Series, Stream, StreamV1, StreamV2
from nextem.wire.clock import MonotonicClock


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_every_encoding_arrives_whole(version: Any, encoding: Encoding, dtype: str) -> None:
    frames, sink = sparse(50, dtype), Keeper()
    with (
        detector_of(frames, version=version, encoding=encoding) as detector,
        receiving(sink, detector.stream_port) as receiver,
    ):
        detector.configure(nimages=len(frames))
        detector.arm()
        detector.trigger()
        taken = sink.wait()
        check_all(taken, frames)
        assert taken.announcement.frames == len(frames)
        assert receiver.counters()["frames_received"] == len(frames)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"header_detail": "all"}, {"header_detail": "all", "appendix": b'{"scan": 3}'},
        {"joined_header": True}, {"appendix": b"{}"}, {"header_detail": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_headers_of_every_detail(version: Any, options: dict[str, Any]) -> None:
    frames, sink = sparse(20), Keeper()
    with (
        detector_of(frames, version=version, **options) as detector,
        receiving(sink, detector.stream_port, f"?rest=127.0.0.1:{detector.rest_port}"),
    ):
        detector.configure(nimages=len(frames))
        detector.arm()
        detector.trigger()
        check_all(sink.wait(), frames)


def test_without_a_number_of_images_the_end_of_the_series_ends_it() -> None:
    frames, sink = sparse(20), Keeper()
    with detector_of(frames, header_detail="none") as detector, receiving(sink, detector.stream_port):
        detector.configure(nimages=len(frames))
        detector.arm()
        detector.trigger()
        taken = sink.wait()
        assert taken.ending is not None
        assert (taken.ending.kind, taken.ending.error) == (EndKind.SENDING_ENDED, None)
        assert sorted(taken.frames) == list(range(20))


@pytest.mark.parametrize("version", [1, 2])
def test_one_series_after_the_other_armed_and_triggered_by_rest(version: Any) -> None:
    frames, sink = sparse(30), Keeper()

    def put(what: str, value: Any = None) -> Any:
        url = f"http://127.0.0.1:{detector.rest_port}/detector/api/1.8.0/{what}"
        body = json.dumps({"value": value}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=5) as answer:
            return json.load(answer)

    with detector_of(frames, version=version) as detector, receiving(sink, detector.stream_port):
        put("config/ntrigger", 3)
        put("config/nimages", 10)
        put("config/trigger_mode", "ints")
        for number in (1, 2, 3):
            assert put("command/arm") == {"sequence id": number}
            for _ in range(3):
                put("command/trigger")
            check_all(sink.wait(number), frames)
        assert put("command/disarm") == {"sequence id": 3}


def test_several_channels_one_is_taken_and_the_others_are_counted() -> None:
    frames, sink = sparse(12), Keeper()
    series = series_of(frames, channels=("threshold_1", "threshold_2"))
    stream = StreamV2(series)
    with closing(Pusher()) as pusher, receiving(sink, pusher.port, "?channel=threshold_2") as receiver:
        images = [stream.image(i, [frame + 1, frame]) for i, frame in enumerate(frames)]
        pusher.send(*stream.start(), *images, stream.end())
        check_all(sink.wait(), frames)
        assert receiver.counters()["images_other_channels"] == 12


def test_a_channel_that_is_not_there_loses_every_frame_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    frames, sink = sparse(5), Keeper()
    stream = StreamV2(series_of(frames))
    with closing(Pusher()) as pusher, receiving(sink, pusher.port, "?channel=difference") as receiver:
        pusher.send(*messages_of(stream, frames))
        taken = sink.wait()
        assert not taken.frames
        assert receiver.counters()["frames_corrupt"] == 5
    assert "the channel is not among the data" in caplog.text


@pytest.mark.parametrize("order", [True, False])
def test_columns_first(order: bool) -> None:
    frames, sink = sparse(6), Keeper()
    with closing(Pusher()) as pusher, receiving(sink, pusher.port):
        pusher.send(*messages_of(StreamV2(series_of(frames, column_major=order)), frames))
        check_all(sink.wait(), frames)


VERSIONS: list[Callable[[Series], Stream]] = [StreamV1, StreamV2]


@pytest.mark.parametrize("version", VERSIONS)
def test_lost_doubled_swapped_and_foreign_images(version: Callable[[Series], Stream]) -> None:
    frames, sink = sparse(40), Keeper()
    stream, foreign = version(series_of(frames)), version(series_of(frames, number=99))
    images = [stream.image(i, [frame]) for i, frame in enumerate(frames)]
    sent = images[:5] + images[8:10] + images[9:12] + [foreign.image(12, [frames[12]])] + images[13:20]
    sent += [images[21], images[20], *images[22:38]]
    with closing(Pusher()) as pusher, receiving(sink, pusher.port) as receiver:
        pusher.send(*stream.start(), *sent, foreign.end(), [b"nonsense"], [b"{}"], stream.end())
        taken = sink.wait()
        counters = receiver.counters()
    kept = {*range(5), *range(8, 12), *range(13, 20), *range(21, 38)}
    assert set(taken.frames) == kept
    assert all(np.array_equal(image, frames[i]) for i, image in taken.frames.items())
    assert taken.ending is not None
    assert taken.ending.kind is EndKind.SENDING_ENDED
    assert "after frame 37 of 40" in str(taken.ending.error)
    assert counters["frames_refused"] == 3
    assert counters["frames_received"] == len(sent)


def test_corrupt_images_are_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    frames, sink = sparse(20), Keeper()
    stream = StreamV1(series_of(frames))
    messages = messages_of(stream, frames)
    messages[2 + 7][2] = messages[2 + 7][2][:-9]
    messages[2 + 9] = messages[2 + 9][:2]
    messages[2 + 11] += [bytes(100)] * 30
    messages[2 + 12] += [bytes(1 << 20)]  # large, but there is room for it
    messages[2 + 13] += [bytes(40 << 20)]
    messages[2 + 19][2] += b"more"
    with closing(Pusher()) as pusher, receiving(sink, pusher.port) as receiver:
        pusher.send(*messages)
        taken = sink.wait()
        assert receiver.counters()["frames_corrupt"] == 5
    assert set(range(20)) - set(taken.frames) == {7, 9, 11, 13, 19}
    assert taken.ending is not None
    assert (taken.ending.kind, taken.ending.highest_frame) == (EndKind.ALL_FRAMES, 19)
    assert "CorruptFrame: frame 7: the pixels are" in caplog.text


def test_images_that_change_end_the_acquisition() -> None:
    frames, sink = sparse(10), Keeper()
    stream, other = StreamV1(series_of(frames)), StreamV1(series_of(frames[:, :-1]))
    with closing(Pusher()) as pusher, receiving(sink, pusher.port):
        pusher.send(*stream.start(), stream.image(0, [frames[0]]), other.image(1, [frames[1, :-1]]))
        taken = sink.wait()
        assert taken.ending is not None
        assert taken.ending.kind is EndKind.FAILED
        assert "FrameSizeChanged" in repr(taken.ending.error)
        # The next series is whole.
        pusher.send(*messages_of(StreamV1(series_of(frames, number=6)), frames))
        check_all(sink.wait(2), frames)


def test_a_new_series_ends_the_one_before() -> None:
    frames, sink = sparse(10), Keeper()
    with closing(Pusher()) as pusher, receiving(sink, pusher.port):
        messages = messages_of(StreamV1(series_of(frames)), frames)
        pusher.send(*messages[:6], *messages_of(StreamV2(series_of(frames, number=6)), frames))
        check_all(sink.wait(2), frames)
    assert sorted(sink.taken[0].frames) == [0, 1, 2, 3]
    ending = sink.taken[0].ending
    assert ending is not None
    assert "another series began after frame 3 of 10" in str(ending.error)


def test_json_written_otherwise_is_read_all_the_same() -> None:
    frames, sink = sparse(10), Keeper()
    messages = messages_of(StreamV1(series_of(frames)), frames)
    for k, parts in enumerate(messages[2:-1]):
        if k % 3:
            parts[0] = json.dumps(json.loads(parts[0]), indent=k).encode()
        if k % 4 == 0:
            parts[1] = json.dumps(json.loads(parts[1]), sort_keys=True, indent=1).encode()
    with closing(Pusher()) as pusher, receiving(sink, pusher.port):
        pusher.send(*messages)
        check_all(sink.wait(), frames)


def test_silence_ends_it_and_a_stop_does(caplog: pytest.LogCaptureFixture) -> None:
    frames, sink = sparse(10), Keeper()
    messages = messages_of(StreamV2(series_of(frames)), frames)
    with closing(Pusher()) as pusher, receiving(sink, pusher.port, idle_timeout_s=0.3):
        pusher.send(*messages[:5])
        taken = sink.wait()
        assert taken.ending is not None
        assert "nothing came" in str(taken.ending.error)
        pusher.send(messages[0])
        sink.wait_for_header(2)
        sink.taken[1].stopped = "by the test"
        assert sink.wait(2).ending is not None
        assert sink.taken[1].ending is not None
        assert sink.taken[1].ending.kind is EndKind.STOPPED


def listening(caplog: pytest.LogCaptureFixture) -> threading.Event:
    """Set, and to be cleared, with each line that says that the detector is away."""
    told = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "DetectorAway" in record.getMessage():
                told.set()

    caplog.handler.addFilter(lambda record: Listener().emit(record) or True)
    return told


def test_a_detector_that_is_away_is_told_and_found_when_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    frames, sink, away = sparse(10), Keeper(), listening(caplog)
    with closing(Pusher()) as pusher:
        port = pusher.port
    with receiving(sink, port, idle_timeout_s=0.3) as receiver:
        assert away.wait(WAIT_S)
        assert f"DetectorAway: there is no detector at tcp://127.0.0.1:{port}; trying again" in caplog.text
        away.clear()
        messages = messages_of(StreamV2(series_of(frames)), frames)
        with closing(Pusher(port)) as pusher:
            pusher.send(*messages)
            check_all(sink.wait(), frames)
            assert receiver.counters()["connections"] == 1
            pusher.send(*messages[:5])
            sink.wait_for_header(2)
        ending = sink.wait(2).ending
        assert ending is not None
        assert ending.kind is EndKind.SENDING_ENDED
        assert repr(ending.error) == "TruncatedStream('the connection ended after frame 3 of 10')"
        assert away.wait(WAIT_S)
        assert (
            f"DetectorAway: the connection ended to the detector at tcp://127.0.0.1:{port}; trying again"
            in caplog.text
        )
        with closing(Pusher(port)) as pusher:
            pusher.send(*messages)
            check_all(sink.wait(3), frames)
            assert receiver.counters()["connections"] == 2


def test_a_detector_that_dies_before_the_trigger_ends_the_acquisition() -> None:
    sink = Keeper()
    with closing(Pusher()) as pusher, receiving(sink, pusher.port, idle_timeout_s=0.3):
        pusher.send(*StreamV2(series_of(sparse(10))).start())
        sink.wait_for_header(1)
        pusher.close()
        ending = sink.wait().ending
        assert ending is not None
        assert repr(ending.error) == "TruncatedStream('the connection ended after frame -1 of 10')"


def test_a_full_ring_costs_frames_and_they_are_counted() -> None:
    frames = sparse(3000, shape=(64, 64))
    sink = Keeper(hold=True)
    messages = messages_of(StreamV2(series_of(frames, encoding=Encoding("none"))), frames)
    with closing(Pusher()) as pusher, receiving(sink, pusher.port, ring_bytes=4 << 20) as receiver:
        pusher.send(*messages)
        taken = sink.wait()
        counters = receiver.counters()
    assert taken.ending is not None
    held = sum(run.count for batch in sink.held for run in batch.runs)
    assert counters["frames_lost_ring"] == taken.ending.lost_ring == 3000 - held
    assert 0 < held < 3000


def test_nobody_wants_it_and_it_is_drained() -> None:
    frames, sink = sparse(30), Keeper(wanted=False)
    with closing(Pusher()) as pusher, receiving(sink, pusher.port) as receiver:
        pusher.send(*messages_of(StreamV1(series_of(frames)), frames))
        pusher.send(*StreamV1(series_of(frames, number=6)).start())  # is told when all before it is done with
        sink.wait_for_header(2)
        assert receiver.counters()["frames_unclaimed"] == 30


@pytest.mark.data
def test_the_captured_stream_is_understood_and_its_cut_images_are_named(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Keeper()
    with (data_dir / "dectris-stream-v1-capture" / "eiger-small.cbors").open("rb") as file:
        messages = [cbor2.load(file) for _ in range(5)]
    with closing(Pusher()) as pusher, receiving(sink, pusher.port):
        pusher.send(*messages)
        taken = sink.wait()
    config = json.loads(taken.announcement.text.splitlines()[1])
    assert taken.announcement.frames == config["nimages"] * config["ntrigger"]
    assert (config["x_pixels_in_detector"], config["y_pixels_in_detector"]) == (3108, 3262)
    assert not taken.frames
    assert taken.ending is not None
    assert taken.ending.highest_frame == 2
    assert "CorruptFrame: frame 0: the pixels are 20000 bytes, their header says 755083" in caplog.text


@pytest.mark.data
def test_real_configurations_are_open_ended(data_dir: Path) -> None:
    """They were armed for 16,777,215 triggers of a scan each: as many as anybody will want."""
    files = sorted((data_dir / "dectris-arina-metadata").glob("*.json"))
    assert len(files) == 3
    for file in files:
        source = json.loads(file.read_text())["metadata"]["hardware_source"]
        config = source["detector_configuration"]
        header = json.dumps(source["header_info"]).encode()
        message = v1.parse([header, json.dumps(config).encode()])
        assert isinstance(message, Start)
        assert (message.series, message.frames) == (source["header_info"]["series"], 0)
        assert v1.announced(config | {"ntrigger": 1}) == config["nimages"]


def test_a_bad_rest_address_is_named() -> None:
    with pytest.raises(BadAddress, match="rest="):
        connect(parse_address("dectris://127.0.0.1?rest=nowhere"), Keeper(), MonotonicClock())
